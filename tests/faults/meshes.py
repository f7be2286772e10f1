"""A training goes on from one device on meshes of eight, and back, as the straight one; eight fake devices.

    python -m tests.faults.meshes [--restore-only] FOLDER

With --restore-only nothing is trained: states are saved and restored. That is what the suite does.
"""

import functools
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np

from scpo_jax import score, sharding, train_reward
from scpo_jax.models import module
from scpo_jax.training_state import TrainingState
from tests import test_stacked
from tests.test_reference import make_program
from tests.test_train_reward import some_pairs

SHAPES = ((1, 1, 1), (2, 4, 1), (8, 1, 1), (1, 1, 1))
GROUPS = (40, 3, 17)  # their pairs


class Stop(Exception):
    """Ends a training."""


@functools.cache
def made(shape):
    """(program on a mesh, initial parameters, score function) of a small model without dropout."""
    model = module.build(test_stacked.SPARE)
    mesh = sharding.make_mesh(*shape, jax.devices()[: np.prod(shape)])
    params = module.init(model, jax.random.key(3))
    return make_program(model, test_stacked.OPTIONS, mesh), params, score.score_function(model, "float32")


def train(shape, state=None, stop_at=None):
    """(losses by group and step, scores of fixed texts) of the groups on a mesh."""
    (program, params, function), losses = made(shape), {}
    trainings = test_stacked.trainings(GROUPS, steps=8)

    def log(g, step, metrics):
        losses[g, step] = metrics["loss"]
        if step == stop_at:
            raise Stop

    try:
        trained = train_reward.train(program, params, trainings, log=log, score_function=function, state=state)
    except Stop:
        return losses, None
    finally:
        if state:
            state.close()
    fixed = some_pairs(32, seed=99)
    texts = [*fixed.chosen, *fixed.rejected]
    return losses, [score.score_texts(function, jax.device_get(one.params), texts) for one in trained]


class Checked(TrainingState):
    """Checks that what is restored is bitwise what was saved, where the program has it."""

    saved = {}

    def save(self, step, state):
        self.saved[step] = jax.device_get(state)
        super().save(step, state)

    def restore(self, like):
        step, state = super().restore(like)
        for ours, wanted in zip(*map(jax.tree.leaves, (state["params"], like["params"])), strict=True):
            assert ours.sharding == wanted.sharding
        if step:
            for ours, theirs in zip(*map(jax.tree.leaves, (jax.device_get(state), self.saved[step])), strict=True):
                np.testing.assert_array_equal(ours[: len(GROUPS)], theirs[: len(GROUPS)])
        print("restored", step, len(state["best_step"]))
        return step, state


def check_restoring(folder: str) -> None:
    """States that differ in every step, restored and saved again on one mesh after the other."""
    for step, shape in enumerate(SHAPES):
        program, params, _ = made(shape)
        states = Checked(folder, keep=1, every=1)
        like = train_reward.start(program, params, train_reward.padded(len(GROUPS), program.mesh), [])
        _, state = states.restore(like)
        changed = jax.tree.map(lambda leaf: leaf * 1.25 + 1, state["params"])
        states.save(step + 1, state | {"params": changed})
        states.close()


def check_training(folder: str) -> None:
    """Two or three steps on each mesh."""
    straight, scores = train(SHAPES[0])
    seen = {}
    for shape, stop_at in zip(SHAPES, (3, 5, 7, None), strict=True):
        losses, found = train(shape, Checked(folder, keep=1, every=2), stop_at)
        seen |= losses
    for key, loss in straight.items():
        np.testing.assert_allclose(seen[key], loss, rtol=0, atol=1e-5)
    assert np.std(scores[0]) > 1e-3
    np.testing.assert_allclose(found, scores, rtol=0, atol=1e-5)


if __name__ == "__main__":
    (check_restoring if "--restore-only" in sys.argv else check_training)(sys.argv[-1])
