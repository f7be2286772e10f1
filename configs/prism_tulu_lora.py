"""The paper's second global RM: allenai/Llama-3.1-Tulu-3-8B-RM with LoRA on PRISM's seven countries, on a TPU slice.

    pip install -e '.[tpu]'
    scpo run --config=configs/prism_tulu_lora.py --workdir=runs/prism_tulu_lora

Needs 16 devices (v5e:4x4; the base in bfloat16 is shared out over 4, the countries over 4), a host with 64 GB of memory
to read the model (8B parameters, about 16 GB from the Hugging Face hub), and that you have accepted its licence
(`huggingface-cli login`). Four devices with 95 GB (v5p:2x2x1) hold the base each. Ask first what it takes:

    scpo preflight --config=configs/prism_tulu_lora.py --topology=v5e:4x4

for which a folder with the model's config.json is enough (--config.model.name_or_path=FOLDER); it says that steps of
seven countries take 10.2 and 10.8 of 15.75 GiB there, about 0.9 s each. Rank and learning rate are ours; the paper's
authors do not state theirs. LoRA dropout is left out: with it, a step was not compiled for TPUs within ten minutes of
CPU time. This run has not been made with this code yet: no hub and no accelerator where it was written.
"""

from scpo_jax.configs import prism_deberta


def get_config():
    """The experiment of `prism_deberta.py` with adapters."""
    config = prism_deberta.get_config()
    config.model.name_or_path = "allenai/Llama-3.1-Tulu-3-8B-RM"
    config.model.dtype = "bfloat16"
    config.train.lora.rank = 16
    config.train.lora.alpha = 32.0
    config.train.learning_rate = 1e-4  # adapters take larger steps than whole matrices
    config.train.remat = True
    config.mesh.group = 4
    return config
