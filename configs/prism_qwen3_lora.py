"""PRISM's seven countries from a current reward model of the Qwen3 family (0.6B parameters), by LoRA; one GPU.

    pip install -e '.[cuda]'
    scpo run --config=configs/prism_qwen3_lora.py --workdir=runs/prism_qwen3_lora

Data set and model (Skywork-Reward-V2-Qwen3-0.6B, about 1.2 GB) come from the Hugging Face hub; local copies do as well:
--config.data.path=FOLDER, --config.model.name_or_path=FOLDER. Needs a GPU with 24 GB or more: the base takes 1.1 GiB in
bfloat16, the adapters of seven countries with gradients and optimizer 1.1 GiB, the rest is what a step computes (7 x 8
pairs of up to 512 tokens; with less memory --config.train.groups_per_program=2). The checkpoint of a country is 40 MB.
The 1.7B model of the same family: --config.model.name_or_path=Skywork/Skywork-Reward-V2-Qwen3-1.7B.
This run has not been made with this code yet: no hub and no accelerator where it was written.
"""

from scpo_jax.configs import prism_deberta


def get_config():
    """The experiment of `prism_deberta.py` with adapters."""
    config = prism_deberta.get_config()
    config.model.name_or_path = "Skywork/Skywork-Reward-V2-Qwen3-0.6B"
    config.model.dtype = "bfloat16"
    config.scpo.calibrate = True  # this RM's rewards have another scale than the paper's: so have tau and beta
    config.train.lora.rank = 16
    config.train.lora.alpha = 32.0
    config.train.learning_rate = 1e-4  # adapters take larger steps than whole matrices
    config.train.remat = True
    return config
