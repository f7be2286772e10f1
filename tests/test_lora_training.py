"""Seven groups with adapters on one shared base train as each does alone, on one device or eight; the base stays."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from scpo_jax import score, sharding, train_reward
from scpo_jax.models import lora, module
from scpo_jax.models.lora import Lora
from scpo_jax.training_state import TrainingState
from tests.run_helpers import with_devices
from tests.test_reference import make_program
from tests.test_stacked import CAUSAL, SIZES, trainings
from tests.test_train_reward import Stop, distance, some_pairs

STEPS = 6
LORA = Lora(2, 4.0, ("all-linear",))


class World:
    """A model with adapters on a mesh, its compiled step and score function, and the seven groups' trainings."""

    def __init__(self, shape=(1, 1, 1), adapters=LORA):
        plain = module.build(CAUSAL)
        base = module.init(plain, jax.random.key(3))
        self.model, self.params = module.adapt(plain, base, adapters, jax.random.key(4))
        self.groups = trainings(SIZES, STEPS)
        mesh = sharding.make_mesh(*shape, jax.devices()[: np.prod(shape)])
        self.program = make_program(self.model, self.groups[0].options, mesh)
        self.score = score.score_function(self.model, "float32")
        self.shapes = train_reward.choose_shapes([self.groups], mesh, self.model.width)

    def train(self, groups, stop_at=None, **state):
        """(losses of every group, whole parameters of every group)."""
        losses = [[] for _ in groups]

        def log(g, step, metrics):
            if step == stop_at:
                raise Stop
            losses[g].append(metrics["loss"])

        how = {"log": log, "score_function": self.score, "shapes": self.shapes, **state}
        trained = train_reward.train(self.program, self.params, groups, **how)
        return losses, [jax.device_get(own.params) for own in trained]

    def scores(self, params) -> np.ndarray:
        fixed = some_pairs(8, seed=99)
        return np.stack([score.score_texts(self.score, own, [*fixed.chosen, *fixed.rejected]) for own in params])


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def stacked(world):
    """(losses, parameters, scores) of all groups at once."""
    losses, params = world.train(world.groups)
    return losses, params, world.scores(params)


def test_groups_on_one_base_train_as_each_does_alone(world, stacked):
    losses, params, scores = stacked
    assert [len(own) for own in losses] == [6, 2, 6, 6, 2, 6, 6]
    for g, training in enumerate(world.groups):
        [alone], [own] = world.train([training])
        np.testing.assert_allclose(losses[g], alone, rtol=0, atol=1e-5)
        np.testing.assert_allclose(scores[g], world.scores([own])[0], rtol=0, atol=1e-5)
        assert distance(lora.split(params[g])[0], lora.split(own)[0]) < 1e-5
    assert np.abs(scores - world.scores([world.params])).max(1).min() > 1e-3 and np.std(scores, 0).max() > 1e-3


def test_only_adapters_and_head_move(world, stacked):
    before, _ = lora.split(jax.device_get(world.params))
    for own in stacked[1]:
        moved, frozen = lora.split(own)
        assert frozen.keys() == {"embeddings", "layers", "norm"}
        jax.tree.map(np.testing.assert_array_equal, frozen, lora.split(jax.device_get(world.params))[1])
        steps = jax.tree.map(lambda a, b: np.abs(a - b).max(), moved["layers"], before["layers"])
        assert min(jax.tree.leaves(steps)) > 1e-5 and np.abs(moved["score"]["kernel"] - before["score"]["kernel"]).min()


def test_the_base_has_neither_groups_nor_optimizer_state(world):
    live = train_reward.start(world.program, lora.split(world.params)[0], 7, [None] * 7)
    trained, base = lora.split(world.model.shapes)
    for tree in (live["params"], live["opt_state"][0].mu):
        jax.tree.map(lambda leaf, one: np.testing.assert_equal(leaf.shape, (7, *one.shape)), tree, trained)
    jax.tree.map(lambda leaf, one: np.testing.assert_equal(leaf.shape, one.shape), world.program.frozen, base)
    text = str(jax.tree.map(lambda leaf: leaf.shape, live["opt_state"]))
    assert "lora_a" in text and "kernel" in text and "embedding" not in text and "layers" in text


def test_where_products_are_in_bfloat16_so_is_the_base(world):
    options = dataclasses.replace(world.groups[0].options, dtype="bfloat16")
    placed = train_reward.place_frozen(make_program(world.model, options), base_of(world))
    assert placed["embeddings"]["word"]["embedding"].dtype == "bfloat16"
    attention = placed["layers"]["attention"]
    assert attention["query"]["kernel"].dtype == "bfloat16" and attention["norm"]["scale"].dtype == "float32"


def base_of(world) -> dict:
    return lora.split(world.params)[1]


def test_resuming_is_bitwise_and_saves_no_base(world, stacked, tmp_path):
    state = TrainingState(tmp_path / "state", keep=1, every=2)
    with pytest.raises(Stop):
        world.train(world.groups, stop_at=5, state=state)
    state.close()
    state = TrainingState(tmp_path / "state", keep=1, every=2)
    losses, params = world.train(world.groups, state=state)
    state.close()
    assert [len(own) for own in losses] == [2, 0, 2, 2, 0, 2, 2]
    jax.tree.map(np.testing.assert_array_equal, params, stacked[1])
    metadata = next((tmp_path / "state").rglob("_METADATA")).read_text()
    assert "lora_a" in metadata and "embedding" not in metadata


def test_eight_devices_are_one(stacked, tmp_path):
    """On a mesh of all three axes; the devices share the parameters also when they score."""
    command = [sys.executable, "-m", "tests.test_lora_training", str(tmp_path / "there.npz")]
    subprocess.run(command, env=with_devices(8), check=True, timeout=900)
    there = np.load(tmp_path / "there.npz")
    np.testing.assert_allclose(there["losses"], np.concatenate(stacked[0]), rtol=0, atol=1e-5)
    np.testing.assert_allclose(there["scores"], stacked[2], rtol=0, atol=1e-5)
    assert there["whole"].all() and there["shared"]


def main(output: str) -> None:
    score.SHARED_FROM = 0
    world = World((2, 2, 2))
    words = world.score.params["embeddings"]["word"]["embedding"]
    losses, params = world.train(world.groups)
    base = base_of(world)
    np.savez(
        output,
        losses=np.concatenate(losses),
        scores=world.scores(params),
        whole=[jax.tree.all(jax.tree.map(np.array_equal, lora.split(own)[1], base)) for own in params],
        shared=words.sharding.spec[1:] == ("data",),
    )


if __name__ == "__main__":
    main(sys.argv[1])
