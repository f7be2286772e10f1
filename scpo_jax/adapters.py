"""The groups' RMs by low-rank adapters (`config.train.lora`): what they start from, and what they say of their base."""

import jax
from etils import epath

from scpo_jax import checkpoint, stages, storage
from scpo_jax.checkpoint import Loaded
from scpo_jax.models import module
from scpo_jax.models.lora import Lora
from scpo_jax.models.module import RewardModel
from scpo_jax.train_reward import derived_seed
from scpo_jax.workdir import Workdir


def options_from(config) -> Lora | None:
    """The adapters that the config asks for; None where all parameters are trained."""
    settings = config.train.lora
    options = settings.rank, float(settings.alpha), tuple(settings.targets), settings.dropout
    return Lora(*options) if settings.rank else None


def adapted(config, model: RewardModel) -> RewardModel:
    """The model of the groups' trainings: with adapters, if the config asks for them. Raises InputError."""
    options = options_from(config)
    return module.build(model.config, "config.train.lora", options) if options else model


def load_to_train(config, workdir: Workdir) -> Loaded:
    """The global RM, with fresh adapters if the config asks for them. Raises InputError."""
    start, options = stages.load_global(config, workdir), options_from(config)
    if options is None:
        return start
    key = jax.random.key(derived_seed(config.seed, "lora"))
    # on the host: the devices hold the base in the form that the program takes
    model, params = module.adapt(start.model, jax.device_get(start.params), options, key)
    return start._replace(model=model, params=params, card={"base": base_of(config, workdir, params)})


def base_of(config, workdir: Workdir, params: dict) -> dict:
    """What the checkpoints of adapters say of the global RM, see `checkpoint.reference`."""
    name = config.model.name_or_path
    if config.global_rm.train:  # the workdir may move
        return checkpoint.reference(f"../../{workdir.global_checkpoint.name}", "", params)
    folder = epath.Path(name).expanduser()
    place = str(storage.absolute(folder)) if folder.exists() else name
    return checkpoint.reference(place, config.model.revision, params)
