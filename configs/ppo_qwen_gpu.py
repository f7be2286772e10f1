"""A policy of the 0.6B class on one GPU, to debug with: PPO against one country's RM of PRISM.

    pip install -e '.[cuda]'
    scpo run --config=configs/ppo_qwen_gpu.py --workdir=runs/ppo_qwen_gpu

Qwen/Qwen3-0.6B (1.5 GB from the Hugging Face hub), values by a head on it; the RM is Chile's DeBERTa of
`prism_deberta.py`. This run has not been made with this code yet: no hub and no GPU where it was written.
"""

from scpo_jax.configs import prism_deberta


def get_config():
    """The experiment of `prism_deberta.py` for Chile, then PPO."""
    config = prism_deberta.get_config()
    config.data.groups = ("Chile",)
    config.policy.name_or_path = "Qwen/Qwen3-0.6B"
    config.policy.sft.max_steps = 0
    config.policy.steps = 50
    config.policy.dtype = "bfloat16"
    config.policy.value = "head"
    config.policy.batch_size = 64
    config.policy.num_mini_batches = 4
    config.policy.num_ppo_epochs = 2
    config.policy.learning_rate = 1e-6
    config.policy.kl_budget = 20.0
    config.policy.remat = True
    return config
