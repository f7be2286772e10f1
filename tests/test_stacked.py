"""Several groups in one program train as each does alone, on one device or shared out over eight."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from scpo_jax import hlo, score, sharding, train_reward, train_step
from scpo_jax.models import module
from tests.run_helpers import with_devices
from tests.test_reference import make_program
from tests.test_train_reward import CONFIG, OPTIONS, distance, some_pairs

SIZES = (40, 3, 17, 64, 9, 28, 5)
SPARE = CONFIG | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CAUSAL = {
    "model_type": "llama", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 16, "attention_bias": True, "mlp_bias": True,
    "max_position_embeddings": 32, "initializer_range": 0.2,
}  # fmt: skip


def trainings(sizes=SIZES, steps=20):
    """Groups of different sizes; some end early, one has its own rate."""
    made = []
    for g, size in enumerate(sizes):
        own = {
            "seed": g,
            "max_steps": steps - 4 * (g % 3 == 1),
            "learning_rate": 2.5e-3 / (1 + (g == 2)),
            "batch_size": 8,
        }
        options = dataclasses.replace(OPTIONS, **own)
        made.append(train_reward.Training(f"group {g}", some_pairs(size, seed=g), options))
    return made


def train(trainings, shape=(1, 1, 1), config=SPARE):
    """(losses of every group, scores of 64 fixed texts by every group, parameters of every group)."""
    model = module.build(config)
    params = module.init(model, jax.random.key(3))
    function = score.score_function(model, "float32")
    mesh = sharding.make_mesh(*shape, jax.devices()[: np.prod(shape)])
    program = make_program(model, trainings[0].options, mesh)
    losses = [[] for _ in trainings]

    def log(g, step, metrics):
        losses[g].append(metrics["loss"])

    trained = train_reward.train(program, params, trainings, log=log, score_function=function)
    fixed = some_pairs(32, seed=99)
    scores = [score.score_texts(function, jax.device_get(t.params), [*fixed.chosen, *fixed.rejected]) for t in trained]
    return losses, scores, [jax.device_get(t.params) for t in trained], params


def without_key_biases(params):
    """Parameters but for the biases of the attention keys, whose exact gradient is zero: softmax does not see them."""
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    return [leaf for name, leaf in sorted(flat.items()) if "['key']['bias']" not in name]


def assert_equal(ours, theirs):
    losses, scores, params, before = ours
    assert all(distance(before, own) > 1e-2 for own in params)
    for g in range(len(losses)):
        np.testing.assert_allclose(losses[g], theirs[0][g], rtol=0, atol=1e-5)
        np.testing.assert_allclose(scores[g], theirs[1][g], rtol=0, atol=1e-5)
        assert distance(without_key_biases(params[g]), without_key_biases(theirs[2][g])) < 1e-5


@pytest.fixture(scope="module")
def stacked():
    return train(trainings())


def test_groups_train_as_each_does_alone(stacked):
    alone = [train([training]) for training in trainings()]
    assert [len(own) for own in stacked[0]] == [20, 16, 20, 20, 16, 20, 20]
    assert_equal(stacked, [[one[part][0] for one in alone] for part in range(3)])


def test_what_is_shared_out():
    """Groups over group, large parameters over data, heads and inner width over model; odd dimensions stay whole."""
    device = jax.devices()[0]
    mesh = jax.sharding.Mesh(np.array([[[device]]]), sharding.AXES)
    model = module.build(CONFIG)
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), model.shapes)
    specs = sharding.specs(stacked, mesh)
    attention = specs["layers"]["attention"]
    assert attention["query"] == {"kernel": P("group", None, "data", "model"), "bias": P("group", None, "model")}
    assert attention["output"] == {"kernel": P("group", None, "model", "data"), "bias": P("group")}
    whole = sharding.specs(stacked, mesh, ("group", "model"))["layers"]["attention"]["query"]["kernel"]
    assert whole == P("group", None, None, "model")
    assert specs["embeddings"]["word"]["embedding"] == P("group", None, "data")
    assert specs["pooler"]["kernel"] == P("group", "data")
    assert specs["score"]["kernel"] == P("group")
    eight = sharding.specs({"embedding": jax.ShapeDtypeStruct((8, 40, 12), "float32")}, Eight())
    assert eight == {"embedding": P("group", None, None)}


class Eight:
    """A mesh of eight shares of everything, as far as rules ask."""

    shape = {"group": 8, "data": 8, "model": 8}


MESHES = [(1, 8, 1), (2, 4, 1), (8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 2, 4)]


@pytest.fixture(scope="module")
def on_eight_devices(tmp_path_factory):
    """Mesh -> what `train` gives on it, of a process with eight CPU devices."""
    folder = tmp_path_factory.mktemp("eight")
    command = [sys.executable, "-m", "tests.test_stacked", str(folder)]
    subprocess.run(command, env=with_devices(8), check=True, timeout=900)
    given = {mesh: dict(np.load(folder / f"{i}.npz")) for i, mesh in enumerate(MESHES)}
    return given | {name: dict(np.load(folder / f"{name}.npz")) for name in ("texts", "causal")}


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_eight_devices_are_one(mesh, on_eight_devices, stacked):
    there = on_eight_devices[mesh]
    for g, (losses, scores, params) in enumerate(zip(*stacked[:3], strict=True)):
        np.testing.assert_allclose(there[f"losses {g}"], losses, rtol=0, atol=1e-5)
        np.testing.assert_allclose(there[f"scores {g}"], scores, rtol=0, atol=1e-5)
        for i, leaf in enumerate(without_key_biases(params)):
            np.testing.assert_allclose(there[f"params {g} {i}"], leaf, rtol=0, atol=1e-5)


def test_a_causal_model_on_eight_devices_is_as_on_one(on_eight_devices):
    losses, scores, _, _ = train(trainings((9, 17), 6), config=CAUSAL)
    assert np.std(scores) > 0.1 and np.abs(np.diff(losses[0])).max() > 1e-3
    np.testing.assert_allclose(on_eight_devices["causal"]["losses"], np.concatenate(losses), rtol=0, atol=1e-5)
    np.testing.assert_allclose(on_eight_devices["causal"]["scores"], scores, rtol=0, atol=1e-5)


def compiled_step(shard_parameters: bool):
    """The training step of one group on eight devices."""
    model = module.build(SPARE)
    program = make_program(model, OPTIONS, sharding.make_mesh(1, 8, 1), shard_parameters=shard_parameters)
    return program.step.lower(*train_step.step_arguments(program, model, 1, 2, (2, 64))).compile()


def collective_bytes(on_eight_devices, name):
    """(bytes moved by each kind of collective, bytes of all parameters) of a step that `main` has compiled."""
    text = str(on_eight_devices["texts"][name])
    parameters = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(module.build(SPARE).shapes))
    return hlo.collective_bytes(hlo.parse(text), {}), parameters


def test_whole_parameters_need_one_reduction(on_eight_devices):
    moved, parameters = collective_bytes(on_eight_devices, "whole")
    assert 0.99 * parameters < moved.pop("all-reduce") < 1.05 * parameters
    assert not moved


def test_shared_parameters_are_gathered_and_their_gradients_scattered(on_eight_devices):
    moved, parameters = collective_bytes(on_eight_devices, "shared")
    assert moved["all-reduce"] < 0.1 * parameters < min(moved["all-gather"], moved["reduce-scatter"])
    assert sum(moved.values()) < 3.2 * parameters


def main(folder: str) -> None:
    texts = {name: compiled_step(name == "shared").as_text() for name in ("shared", "whole")}
    np.savez(f"{folder}/texts.npz", **texts)
    losses, scores, _, _ = train(trainings((9, 17), 6), (2, 2, 2), CAUSAL)
    np.savez(f"{folder}/causal.npz", losses=np.concatenate(losses), scores=scores)
    for i, mesh in enumerate(MESHES):
        losses, scores, params, _ = train(trainings(), mesh)
        arrays = {}
        for g in range(len(losses)):
            arrays |= {f"losses {g}": losses[g], f"scores {g}": scores[g]}
            arrays |= {f"params {g} {j}": leaf for j, leaf in enumerate(without_key_biases(params[g]))}
        np.savez(f"{folder}/{i}.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
