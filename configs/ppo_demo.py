r"""PPO against a country's reward model in a small simulated world whose truth judges the result, offline.

    scpo run --config=configs/ppo_demo.py --workdir=runs/ppo_demo

Expected (seeds 1, 2, 3): by the truth responses to held-out prompts are worth 1.28, 1.67, 1.89 standard deviations more
to South Africa, at a KL of 6.5, 5.8, 7.0 nats a response; 93, 90, 87 % of the responses are of the world's grammar.
Another processor gave 1.58, 1.54, 1.67.

PPO against the global RM, on a copy of the workdir (1.25, 1.34, 1.15 deviations at 6.9, 6.8, 6.2 nats):

    cp -r runs/ppo_demo runs/ppo_global
    scpo run --config=configs/ppo_demo.py --workdir=runs/ppo_global --config.policy.method=global \
        --stages=policy --force

Without a budget, to see what becomes of an RM that is optimised too far, add --config.policy.kl_coef=0
--config.policy.kl_target=0 --config.policy.kl_budget=1000 --config.policy.steps=200.
"""

from scpo_jax.configs import demo


def get_config():
    """The demo's world and reward models; a small Llama learns to answer, then to please South Africa."""
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
