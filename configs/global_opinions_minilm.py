"""GlobalOpinionQA: survey answers of eight countries, from the real weights of all-MiniLM-L6-v2 (22M parameters).

    scpo run --config=configs/global_opinions_minilm.py --workdir=runs/global_opinions

Data set and model come from the Hugging Face hub; --config.data.path=FILE.csv and --config.model.name_or_path=FOLDER
take local copies. The global RM is trained on the pooled pairs of all countries. Expected: no gain that outlasts
another seed (README.md has three); more than half an hour on two cores.
"""

from scpo_jax.configs import base


def get_config():
    """A pair is two options of a question; the question is the prompt, the more chosen option is chosen."""
    config = base.get_config()
    config.data.source = "global_opinions"
    config.data.path = "Anthropic/llm_global_opinions"
    config.data.groups = ("Germany", "France", "Pakistan", "Mexico", "Jordan", "Turkey", "Brazil", "Britain")
    config.data.split_seed = 0
    config.model.name_or_path = "sentence-transformers/all-MiniLM-L6-v2"
    config.model.fresh_head = True
    config.model.max_length = 128
    config.global_rm.train = True
    config.global_rm.groups = ()
    config.global_rm.max_steps = 600
    config.global_rm.learning_rate = 5e-5
    config.global_rm.batch_size = 8
    config.scpo.methods = ("scpo", "full")
    config.train.max_steps = 100
    config.train.learning_rate = 2e-5
    return config
