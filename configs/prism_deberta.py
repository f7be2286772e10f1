"""The paper's experiment: PRISM, seven countries, from the OpenAssistant DeBERTa-v3 reward model (184M parameters).

The model is published as `pytorch_model.bin` only: reading it, once, needs the `torch` extra.

    pip install -e '.[torch]'
    scpo run --config=configs/prism_deberta.py --workdir=runs/prism_deberta

Data set and model come from the Hugging Face hub (about 750 MB). Expected: on PRISM honest systems reach 55 to 68 %
pairwise accuracy; the paper's authors publish 60.40 % -> 66.19 % for Canada. Seven trainings of 1024 steps of 8 pairs,
at once: 19 GiB of parameters, gradients and optimizer; on a smaller device --config.train.groups_per_program=2 or less.
This run has not been made with this code yet: no hub and no accelerator where it was written. Look at
`scpo run --plan` for an estimate of the time on your machine.
"""

from scpo_jax.configs import base


def get_config():
    """The settings of the paper, section 4."""
    config = base.get_config()
    config.data.source = "prism"
    config.data.path = "HannahRoseKirk/prism-alignment"
    config.data.revision = "main"
    config.data.groups = ("Chile", "South Africa", "New Zealand", "Australia", "Mexico", "Israel", "Canada")
    config.data.split_seed = 0
    config.model.name_or_path = "OpenAssistant/reward-model-deberta-v3-base"
    config.model.revision = "main"
    config.scpo.methods = ("scpo", "full", "random_subset")
    return config
