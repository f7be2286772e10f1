"""The demo with a causal reward model: a tiny Llama from scratch, and low-rank adapters for the countries.

    scpo run --config=configs/demo_lora.py --workdir=runs/demo_lora

The whole Llama is trained as the global RM; the seven countries then share it, frozen, and train adapters of rank 8 and
the score head. It shows that all of it runs, not that it pays: scpo gains 1.0 [0.5, 1.6] points, full 0.2 and a random
subset 0.5; held-out users keep the global RM itself for two of seven countries with scpo, three with full. In so small
a model what a country values sits in the embeddings of the words, which adapters leave as they are: with all parameters
trained (`--config.train.lora.rank=0 --config.train.learning_rate=3e-3`) scpo gains 6.6 points and full 7.6, with
adapters of rank 64 at the same rate (`--config.train.lora.rank=64 --config.train.learning_rate=3e-3`) 2.0 and 1.0. Six
to eleven minutes on two cores, of which other work had most.
"""

from scpo_jax.configs import demo


def get_config():
    """The demo's world; the model and the adapters differ."""
    config = demo.get_config()
    config.model.scratch.family = "llama"
    config.model.scratch.num_hidden_layers = 2
    config.scpo.methods = ("scpo", "full", "random_subset")
    config.controls = ()
    config.train.lora.rank = 8
    config.train.lora.alpha = 16.0
    config.train.learning_rate = 2e-3
    return config
