"""Checkpoints: one self-contained Orbax folder per reward model, and the state of a training under way."""

import base64
import pathlib
import tempfile
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from scpo_jax import distributed, logs
from scpo_jax.data.fields import one_line
from scpo_jax.errors import InputError
from scpo_jax.models import hf, module
from scpo_jax.models.module import RewardModel

SCHEMA_VERSION = 1


class Loaded(NamedTuple):
    """A reward model, ready to score."""

    model: RewardModel
    params: dict  # nested, float32
    tokenizer: object
    card: dict  # method, group, max_length, encoding, score_mean, score_std, provenance


def save(folder: epath.PathLike, loaded: Loaded) -> None:
    """Writes everything needed to load the model alone into `folder`, replacing it; whole or not at all.

    The parameters are whole on this process, which alone calls this.
    """
    description = {
        "schema_version": SCHEMA_VERSION,
        "family": loaded.model.family,
        "config": loaded.model.config,
        "card": loaded.card,
        "tokenizer": _pack_tokenizer(loaded.tokenizer),
    }
    with _checkpointer() as checkpointer:
        params = jax.device_get(loaded.params)
        items = {"params": ocp.args.StandardSave(params), "model": ocp.args.JsonSave(description)}
        checkpointer.save(epath.Path(folder).resolve(), ocp.args.Composite(**items), force=True)


def is_checkpoint(folder: epath.PathLike) -> bool:
    """Whether a folder was written by `save`."""
    folder = epath.Path(folder)
    return (folder / "model").is_dir() and (folder / "params").is_dir()


def load_card(folder: epath.PathLike) -> dict:
    """The card of a checkpoint without its parameters; {} where there is no whole checkpoint."""
    return _describe(folder)["card"] if is_checkpoint(folder) else {}


def load(folder: epath.PathLike) -> Loaded:
    """Reads a checkpoint that `save` wrote. Raises InputError."""
    description = _describe(folder)
    model = module.build(description["config"])
    args = ocp.args.StandardRestore(jax.tree.map(_abstract, module.abstract_params(model)))
    params = _restore(folder, "params", args)
    return Loaded(model, params, _unpack_tokenizer(description["tokenizer"]), description["card"])


def _describe(folder: epath.PathLike) -> dict:
    if not is_checkpoint(folder):
        raise InputError(f"{folder} is not a checkpoint of scpo: it needs the folders 'model' and 'params'")
    description = _restore(folder, "model", ocp.args.JsonRestore())
    if description["schema_version"] != SCHEMA_VERSION:
        raise InputError(
            f"{folder} has checkpoint schema {description['schema_version']}, this version reads {SCHEMA_VERSION}: "
            "train it again, or use the version of scpo that wrote it"
        )
    return description


def _restore(folder: epath.PathLike, item: str, args):
    """One item of a checkpoint."""
    try:
        with _checkpointer() as checkpointer:
            return checkpointer.restore(epath.Path(folder).resolve(), ocp.args.Composite(**{item: args}))[item]
    except Exception as error:  # a damaged file surfaces as almost any type
        raise InputError(f"{folder} is a damaged checkpoint ({one_line(error):.200}): train it again") from error


def _checkpointer() -> ocp.Checkpointer:
    """Writes and reads whole arrays for this process alone: it waits for no other one."""
    me = distributed.index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process {me}"
    )
    options = ocp.CompositeOptions(multiprocessing_options=alone)
    handler = ocp.CompositeCheckpointHandler(composite_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _abstract(leaf):
    """What an array is and where it is restored to: where it lives, or else to a device of this process."""
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = leaf.sharding if isinstance(leaf, jax.Array) else one
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)


def _as_before(leaf, restored):
    """A restored array, on the host if it was there: several processes cannot save an array of a single device."""
    return restored if isinstance(leaf, jax.Array) else np.asarray(restored)


def _pack_tokenizer(tokenizer) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        hf.save_tokenizer(tokenizer, folder)
        files = sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): base64.b64encode(path.read_bytes()).decode() for path in files}


def _unpack_tokenizer(files: dict[str, str]):
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            if pathlib.Path(name).name != name:
                raise InputError(f"the checkpoint's tokenizer holds the file name {name!r}: refused")
            (pathlib.Path(folder) / name).write_bytes(base64.b64decode(content))
        return hf.load_tokenizer(folder)


class TrainingState:
    """The state of one training under way, saved every so often; resuming takes the newest.

    `state` is a nested dict of arrays, with the number of finished steps as the checkpoint's number. Of several
    processes all call everything here, and each writes and reads its parts of the arrays.
    """

    def __init__(self, folder: epath.PathLike, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._folder = epath.Path(folder).resolve()
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, state: dict) -> None:
        """Starts to write the state after `step` steps; it is safe to change the arrays afterwards."""
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, like: dict) -> tuple[int, dict]:
        """(steps finished, state) of the newest state that can be read; (0, `like`) when there is none."""
        abstract = jax.tree.map(_abstract, like)
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
                return step, jax.tree.map(_as_before, like, state)
            except Exception as error:  # a damaged file surfaces as almost any type
                logs.say(f"{self._folder}: the state after {step} steps is damaged, removed ({one_line(error):.200})")
                self._manager.delete(step)
        return 0, like

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()
