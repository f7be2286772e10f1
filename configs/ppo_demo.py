"""PPO against a country's reward model in a small simulated world whose truth judges the result, offline.

    scpo run --config=configs/ppo_demo.py --workdir=runs/ppo_demo

Expected (seed 1): by the truth responses to held-out prompts are worth 1.5 standard deviations more to Chile, 95 %
interval 1.4 to 1.6, at a KL of 3.1 nats a response; 95 % of the policy's responses are of the world's grammar.

To compare with PPO against the global RM, in a workdir of its own: --config.policy.method=global
"""

from scpo_jax.configs import demo


def get_config():
    """The demo's world and reward models; a small Llama learns to answer, then to please Chile."""
    config = demo.get_config()
    config.scpo.methods = ("scpo",)
    config.controls = ()
    config.checkpoint.every_steps = 500
    config.policy.steps = 80
    config.policy.groups = ("South Africa",)
    config.policy.batch_size = 128
    config.policy.num_mini_batches = 2
    config.policy.num_ppo_epochs = 2
    config.policy.learning_rate = 2e-4
    config.policy.kl_coef = 0.1
    config.policy.kl_target = 6.0  # so that policies against different RMs can be compared
    config.policy.kl_horizon = 1000
    config.policy.value_warmup_steps = 4
    config.policy.kl_budget = 10.0
    config.policy.max_prompt = 24
    config.policy.new_tokens = 112  # with a prompt as much as the RMs read; 1 % of the responses are longer
    config.policy.scratch.vocab_size = 1024
    config.policy.sft.responses = "both"
    config.policy.sft.max_steps = 2500
    config.policy.sft.batch_size = 16
    config.policy.sft.learning_rate = 4e-3
    return config
