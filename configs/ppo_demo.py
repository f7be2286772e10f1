"""draft"""

from scpo_jax.configs import demo


def get_config():
    """The demo's world and reward models; a small Llama learns to answer, then to please Chile."""
    config = demo.get_config()
    config.policy.max_prompt = 24
    config.policy.new_tokens = 112
    config.policy.scratch.vocab_size = 1024
    config.policy.scratch.hidden_size = 128
    config.policy.scratch.num_hidden_layers = 2
    config.policy.scratch.intermediate_size = 256
    config.policy.sft.responses = "chosen"
    config.policy.sft.max_steps = 800
    config.policy.sft.batch_size = 32
    config.policy.sft.learning_rate = 2e-3
    return config
