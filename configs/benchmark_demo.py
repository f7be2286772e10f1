"""How much data SCPO saves in the simulated world of the demo, offline.

    scpo benchmark --config=configs/benchmark_demo.py --workdir=runs/benchmark

Nine methods on 10, 25, 50 and 100 % of the users, under two rules for the optimiser, three seeds: 216 cells of seven
countries.
"""

from scpo_jax.configs import demo


def get_config():
    """The demo with fewer training users, so that full finetuning sees every pair once and more pairs could help.

    No step is chosen by validation: users for that need labels too, and few of them choose badly.
    """
    config = demo.get_config()
    config.controls = ()
    config.data.simulated.users_per_group = 300
    config.data.test_size = 0.4  # 180 users of a country train, 120 test
    config.train.max_steps = 100
    config.train.warmup_steps = 10
    config.train.eval_every = 0
    config.checkpoint.every_steps = 0
    return config
