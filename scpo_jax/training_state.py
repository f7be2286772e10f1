"""The state of a training under way: saved every so often, checked when read, restored onto any devices."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from scpo_jax import checkpoint, checksums, cores, distributed, logs, preemption, storage
from scpo_jax.data.fields import one_line
from scpo_jax.errors import InputError

SCHEMA_VERSION = 1
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"  # of XLA_FLAGS; GPUs add in an order that changes without it


class TrainingState:
    """Saves the state of one training every `every` steps, keeps the newest `keep`; resuming takes the newest.

    `state` is a nested dict of arrays; those on devices may have a leading axis of groups, of which the last may be
    inert and differ in number when it is restored. Of several processes all call everything here, and each writes and
    reads its parts of the arrays.
    """

    def __init__(self, folder: epath.PathLike, keep: int, every: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._folder, self._every, self._last = storage.absolute(folder), every, False
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def is_due(self, step: int) -> bool:
        """Whether to save after `step` steps; to be asked once after every step."""
        self._last = preemption.due()
        return self._last or step % self._every == 0

    def save(self, step: int, state: dict) -> None:
        """Starts to write the state after `step` steps; it is safe to change the arrays afterwards.

        Raises Interrupted, once it is written, where the process has to end.
        """
        about = {"schema_version": SCHEMA_VERSION, "place": place(), "shapes": shapes_of(state)}
        about |= {"checksums": checksums.of_tree(state)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about))
        self._manager.save(step, args=items)
        if self._last:
            self._manager.wait_until_finished()
            raise preemption.Interrupted(f"the state after {step} steps is saved in {self._folder}")

    def restore(self, like: dict) -> tuple[int, dict]:
        """(steps finished, state) of the newest whole state, arranged as `like`; (0, `like`) when none was saved.

        States that are damaged are removed, if there is a whole one. Raises InputError.
        """
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            about, problem = self._read_about(step)
            if not problem:
                self._check_version(step, about)
                state, problem = self._read(step, like, about)
            if problem:
                damaged[step] = problem
                continue
            for bad, why in damaged.items():
                logs.say(f"{self._folder}: the state after {bad} steps is damaged, removed ({why})")
                self._manager.delete(bad)
            logs.say(f"{self._folder}: goes on after {step} steps{change_of_place(about['place'])}")
            return step, state
        if damaged:
            raise InputError(
                f"{self._folder} has no training state that is whole: that after {max(damaged)} steps is damaged "
                f"({damaged[max(damaged)]}){', and the others' if len(damaged) > 1 else ''}. Bring its files back, or "
                "remove the folder to begin this training anew"
            )
        return 0, like

    def _read_about(self, step: int) -> tuple[dict, str]:
        """(what a state says of itself, what is wrong with it: "" for nothing)."""
        if not (self._folder / str(step) / "about").exists():  # before there were schemas
            return {"schema_version": 0}, ""
        about, problem = self._try(step, {"about": ocp.args.JsonRestore()})
        return about and about["about"], problem

    def _read(self, step: int, like: dict, about: dict) -> tuple[dict | None, str]:
        """(a state arranged as `like`, what is wrong with it)."""
        paths = jax.tree_util.tree_leaves_with_path(like)
        if {jax.tree_util.keystr(path) for path, _ in paths} != about["shapes"].keys():
            return None, "it is of another training"
        abstract = jax.tree_util.tree_map_with_path(lambda path, leaf: saved_as(path, leaf, about["shapes"]), like)
        found, problem = self._try(step, {"state": ocp.args.StandardRestore(abstract)})
        if problem:
            return None, problem
        sums = checksums.of_tree(found["state"])
        wrong = [path for path, value in about["checksums"].items() if sums[path] != value]
        problem = f"{len(wrong)} arrays are not what was saved, first {wrong[0]}" if wrong else ""
        return jax.tree.map(as_like, like, found["state"]), problem

    def _try(self, step: int, items: dict) -> tuple[object, str]:
        """(items of a state, why they cannot be read), the latter alike on all processes."""
        found, problem = None, ""
        checkpoint.expect_failures()
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # a damaged file surfaces as almost any type
            problem = f"{one_line(error):.200}" or type(error).__name__
        if problem:
            checkpoint.forget_failures()
        problems = distributed.gather(f"the state after {step} steps", problem)
        return found, next((one for one in problems if one), "")

    def _check_version(self, step: int, about: dict) -> None:
        """Refuses the state of another version of scpo."""
        if about["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"{self._folder}: the training state after {step} steps has schema {about['schema_version']}, this "
                f"version reads {SCHEMA_VERSION}: remove the folder to begin anew, or use the version that wrote it"
            )

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()


def place() -> dict:
    """What the bits of a training depend on besides its config."""
    device = jax.devices()[0]
    own = {"device": device.device_kind, "devices": jax.device_count(), "processes": jax.process_count()}
    if device.platform == "cpu":
        own["cpus"] = cores.available()
    if device.platform == "gpu":  # others add in the same order each time
        own["deterministic_ops"] = DETERMINISTIC in os.environ.get("XLA_FLAGS", "").split()
    return own


def change_of_place(before: dict) -> str:
    """What is said of a training that goes on elsewhere; "" where it does not."""
    now = place()
    names = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    if not names:
        bitwise = now.get("deterministic_ops", True)
        return "" if bitwise else f", bitwise only with XLA_FLAGS={DETERMINISTIC}, from its beginning on"
    changes = ", ".join(f"{key} {before.get(key)} -> {now.get(key)}" for key in names)
    return f", elsewhere ({changes}): results are those of an uninterrupted training up to rounding, not bitwise"


def shapes_of(state: dict) -> dict[str, list[int]]:
    """Path of each leaf -> its shape."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): list(np.shape(leaf)) for path, leaf in leaves}


def saved_as(path, leaf, shapes: dict) -> jax.ShapeDtypeStruct:
    """How an array is read that is to become one like `leaf`: with as many groups as it was saved with."""
    wanted, shape = checkpoint.abstract(leaf), tuple(shapes[jax.tree_util.keystr(path)])
    if shape == wanted.shape:
        return wanted
    sharding = wanted.sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, P(None, *sharding.spec[1:]))
    return jax.ShapeDtypeStruct(shape, wanted.dtype, sharding=sharding)


def as_like(like, restored):
    """A restored array where and with as many groups as `like`, which gives those that it lacks.

    On the host if it was there: several processes cannot save an array of a single device.
    """
    if not isinstance(like, jax.Array):
        return np.asarray(restored if np.shape(restored) == like.shape else regrouped(restored, like))
    if restored.shape == like.shape:
        return restored
    return jax.jit(regrouped, out_shardings=like.sharding)(restored, like).block_until_ready()  # see checksums.of_tree


def regrouped(restored, like) -> jax.Array:
    """`restored` `[G1, ...]` with the groups of `like` `[G, ...]`: cut, or filled up with its last ones."""
    return jnp.concatenate([restored, like[len(restored) :]])[: len(like)]
