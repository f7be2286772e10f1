"""An 8B policy with LoRA against the country RMs of PRISM, on a TPU slice; one policy for each of the seven countries.

    pip install -e '.[tpu]'
    scpo run --config=configs/ppo_tulu.py --workdir=runs/ppo_tulu

The RMs are DeBERTa's of `prism_deberta.py`: they read the responses as text, so that policy and RM may have tokenizers
of their own (for 8B RMs start from `prism_tulu_lora.py`). The policy is allenai/Llama-3.1-Tulu-3-8B-SFT, 16 GB from the
Hugging Face hub, which stands in bfloat16, shared out over the devices; policy and value model are adapters on it, and
the reference is the policy without them. Needs a host with 64 GB of memory to read it. Ask first what it takes:

    scpo preflight --config=configs/ppo_tulu.py --topology=v5p:2x2x4

This run has not been made with this code yet: no hub and no accelerator where it was written.
"""

from scpo_jax.configs import prism_deberta


def get_config():
    """The experiment of `prism_deberta.py`, then PPO."""
    config = prism_deberta.get_config()
    config.policy.name_or_path = "allenai/Llama-3.1-Tulu-3-8B-SFT"
    config.policy.sft.max_steps = 0  # it is finetuned already
    config.policy.steps = 200
    config.policy.dtype = "bfloat16"
    config.policy.max_prompt = 512
    config.policy.new_tokens = 256
    config.policy.batch_size = 256
    config.policy.num_mini_batches = 4
    config.policy.num_ppo_epochs = 2
    config.policy.learning_rate = 2e-5  # adapters take larger steps than whole matrices
    config.policy.lora.rank = 32
    config.policy.lora.alpha = 64.0
    config.policy.value_warmup_steps = 5
    config.policy.kl_budget = 20.0
    config.policy.remat = True
    return config
