"""The authors' small conformance case (../shared/reference), whose numbers the tests hold.

    scpo run --config=configs/reference.py --workdir=runs/reference --config.data.path=../shared/reference/prism_like \
        --config.model.name_or_path=../shared/reference/model

Expected: its full_report.json to the last digit, in about a minute on two cores.
"""

from scpo_jax.configs import base


def get_config():
    """The settings of its expected/config.json."""
    config = base.get_config()
    config.data.source = "prism"
    config.data.groups = ("Chile", "South Africa", "New Zealand", "Australia", "Mexico", "Israel", "Canada")
    config.data.split_seed = 0
    config.model.encoding = "reference"
    config.train.batch_order = "reference"
    config.train.learning_rate = 5e-4
    config.train.max_steps = 30
    config.checkpoint.every_steps = 0
    return config
