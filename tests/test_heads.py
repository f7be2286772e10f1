"""One backbone with a head for each group: what its heads compute, and how they are trained together."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from scpo_jax import benchmark, checkpoint, heads, score, sharding, train_reward, train_step
from scpo_jax.checkpoint import Loaded
from scpo_jax.configs import base
from scpo_jax.data import batches, vocabulary
from scpo_jax.errors import InputError
from scpo_jax.models import lora, module
from scpo_jax.models.lora import Lora
from scpo_jax.train_reward import Training
from scpo_jax.training_state import TrainingState
from tests import model_helpers as helpers
from tests.run_helpers import with_devices
from tests.test_reference import make_program
from tests.test_stacked import CAUSAL, SPARE
from tests.test_train_reward import OPTIONS, Stop, some_pairs

GROUPS = ("Chile", "Mexico", "Israel")
LORA = Lora(2, 4.0, ("all-linear",))


def wide(config, adapters=None) -> Loaded:
    """A tiny model with a head for each of GROUPS, which differ."""
    model = module.build(config)
    params = module.init(model, jax.random.key(3))
    if adapters:
        model, params = module.adapt(model, params, adapters, jax.random.key(4))
    loaded = heads.widen(Loaded(model, params, None, {}), GROUPS)
    kernel = np.random.default_rng(5).normal(0, 0.3, loaded.params["score"]["kernel"].shape).astype(np.float32)
    loaded.params["score"]["kernel"] = loaded.params["score"]["kernel"] + kernel
    return loaded


def three_groups(sizes=(9, 0, 14), seed=0) -> batches.Pairs:
    rng = np.random.default_rng(seed)
    parts = [some_pairs(size, seed=seed + g) for g, size in enumerate(sizes)]
    weights = [rng.uniform(0.2, 1, size).astype(np.float32) for size in sizes]
    return heads.together([own._replace(weights=w, margins=w / 2) for own, w in zip(parts, weights, strict=True)])


@pytest.mark.parametrize("name", ["bert", "llama31"])
def test_heads_are_columns_packed_or_padded(name):
    model, params = helpers.make(name)
    loaded = heads.widen(Loaded(model, params, None, {}), GROUPS)
    for name, leaf in loaded.params["score"].items():
        np.testing.assert_array_equal(leaf, np.concatenate([params["score"][name]] * 3, -1))
    rng = np.random.default_rng(0)
    shapes = {name: leaf.shape for name, leaf in params["score"].items()}
    own = [{n: rng.normal(0, 0.2, shape).astype(np.float32) for n, shape in shapes.items()} for _ in GROUPS]
    head = {name: np.concatenate([part[name] for part in own], -1) for name in own[0]}
    pairs = helpers.texts([9, 12])
    packed, padded = helpers.pack(pairs, 1, 24, [(0, 2), (0, 11)]), helpers.one_per_row(pairs, 16)
    scores = [jax.jit(loaded.model.score)(params | {"score": head}, batch) for batch in (packed, padded)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-5)
    assert scores[1].shape == (2, 3) and np.std(scores[1]) > 0.1
    single = jax.jit(model.score)
    for column, part in enumerate(own):
        alone = single(params | {"score": part}, padded)
        assert alone.shape == (2,)
        np.testing.assert_allclose(scores[1][:, column], alone, rtol=0, atol=1e-5)


def test_a_step_has_the_loss_and_gradient_of_each_pair_by_its_own_head():
    """Directly: texts padded and one a row, the heads as models of one output, pair by pair."""
    for config, adapters in ((SPARE, None), (CAUSAL, LORA)):
        loaded, pairs, found = wide(config, adapters), three_groups(), []
        options = dataclasses.replace(OPTIONS, max_steps=1, batch_size=6, max_grad_norm=0.0)
        program = make_program(loaded.model, options)

        def step(*arguments, program=program, found=found, loaded=loaded):
            shapes = arguments[2].weights.shape[2], arguments[2].texts.input_ids.shape[2:]
            wanted = train_step.step_arguments(program, loaded.model, 1, *shapes)
            assert jax.tree.map(np.shape, arguments[2]) == jax.tree.map(np.shape, wanted[2])
            found.append(program.step(*arguments))
            return found[-1]

        def log(_, __, metrics, found=found):
            found.append(metrics)

        training = Training("heads", pairs, options)
        how = {"log": log, "score_function": None}
        train_reward.train(program._replace(step=step), loaded.params, [training], **how)
        used = train_reward.order_of(pairs, options)[0]
        loss, gradient = direct(loaded, pairs, used)
        ours = jax.tree.map(lambda leaf: np.asarray(leaf[0]) / 0.1, found[0][1][0].mu)
        np.testing.assert_allclose(found[1]["loss"], loss, rtol=0, atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), ours, gradient)
        assert set(pairs.columns[used]) == {0, 2}
        largest = np.abs(ours["score"]["kernel"]).max(0)
        assert largest[1] == 0 and largest[[0, 2]].min() > 1e-3


def direct(loaded, pairs, used):
    """(loss, gradient of what is trained) of these pairs; the score head's bias has none."""
    single = module.build(loaded.model.config, "config", loaded.model.lora)
    texts = [side[i] for side in (pairs.chosen, pairs.rejected) for i in used]
    batch = helpers.one_per_row([(text.input_ids, text.token_type_ids) for text in texts], 16)

    def loss_of(trained):
        params, total = lora.join(trained, loaded.params), 0.0
        alone = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0)[..., None], params["score"])  # C models of one
        scores = jax.vmap(lambda head: single.score(params | {"score": head}, batch))(alone)
        for place, i in enumerate(used):
            own = scores[int(pairs.columns[i])]
            difference = own[place] - own[len(used) + place]
            total -= pairs.weights[i] * jax.nn.log_sigmoid(difference - pairs.margins[i])
        return total / len(used)

    loss, gradient = jax.jit(jax.value_and_grad(loss_of))(lora.split(loaded.params)[0])
    if "bias" in gradient["score"]:
        gradient["score"]["bias"] *= 0
    return loss, gradient


def fit(loaded, mesh=None, stop_at=None, **more):
    """(metrics of every step, scores of fixed texts by all heads afterwards, parameters)."""
    logged, held_out = [], three_groups((4, 3, 2), seed=7)
    options = dataclasses.replace(OPTIONS, max_steps=6, eval_every=2)
    function = score.score_function(loaded.model, "float32", None if mesh is None else list(mesh.devices.flat))

    def log(_, step, metrics):
        if step == stop_at:
            raise Stop
        logged.append(metrics)

    training = Training("heads", three_groups((9, 5, 14)), options, held_out)
    program = make_program(loaded.model, options, mesh)
    [trained] = train_reward.train(program, loaded.params, [training], log=log, score_function=function, **more)
    params = jax.device_get(trained.params)
    return logged, score.score_texts(function, params, [*held_out.chosen, *held_out.rejected]), params


@pytest.fixture(scope="module")
def fitted():
    return fit(wide(SPARE))


def test_resuming_is_bitwise(fitted, tmp_path):
    logged, _, params = fitted
    state = TrainingState(tmp_path / "state", keep=1, every=2)
    with pytest.raises(Stop):
        fit(wide(SPARE), stop_at=5, state=state)
    state.close()
    state = TrainingState(tmp_path / "state", keep=1, every=2)
    again = fit(wide(SPARE), state=state)
    state.close()
    assert 0 < len(again[0]) < len(logged) and again[0] == logged[-len(again[0]) :]
    jax.tree.map(np.testing.assert_array_equal, again[2], params)


def test_each_held_out_pair_is_judged_by_its_own_head():
    loaded, pairs = wide(SPARE), three_groups((9, 5, 14))
    function = score.score_function(loaded.model, "float32")
    correct = train_reward.Validation(function, pairs, {}).correct(loaded.params)
    scores = score.score_texts(function, loaded.params, [*pairs.chosen, *pairs.rejected])
    right = scores[:28] > scores[28:]
    np.testing.assert_array_equal(correct, np.concatenate([right[:9, 0], right[9:14, 1], right[14:, 2]]))
    assert all((correct != right[:, column]).any() for column in range(3))


def test_two_devices_are_one(fitted, tmp_path):
    """Sharing out pairs and parameters; the devices score a batch each."""
    command = [sys.executable, "-m", "tests.test_heads", str(tmp_path / "there.npz")]
    subprocess.run(command, env=with_devices(2), check=True, timeout=900)
    there = np.load(tmp_path / "there.npz")
    assert np.std(fitted[1], axis=1).min() > 1e-3
    np.testing.assert_allclose(there["scores"], fitted[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(there["losses"], [m["loss"] for m in fitted[0] if "loss" in m], rtol=0, atol=1e-5)


def test_the_options_are_stretched_and_overrides_of_groups_do_not_count():
    config = base.get_config()
    config.train.max_steps, config.train.warmup_steps, config.train.eval_every = 100, 10, 40
    config.per_group = (("Chile", "learning_rate", 1.0), ("Chile", "max_steps", 7))
    own = heads.options_from(config, 3)
    assert (own.max_steps, own.warmup_steps, own.eval_every) == (300, 30, 120)
    assert own.learning_rate == config.train.learning_rate and own.batch_size == config.train.batch_size


def test_a_benchmark_has_no_heads():
    with pytest.raises(InputError, match="--methods names 'heads'"):
        benchmark.design_of(("1",), ("0",), ("scpo", "heads"), ("steps",))


@pytest.mark.parametrize("adapters", [None, LORA])
def test_checkpoints_hold_a_head_each_or_with_adapters_these_too(adapters, tmp_path):
    start = module.build(CAUSAL)
    tokenizer = vocabulary.make_tokenizer(["a warm answer"], 40, 32)
    whole = Loaded(start, module.init(start, jax.random.key(3)), tokenizer, {"method": "global"})
    checkpoint.save(tmp_path / "global", whole)
    card = {"fingerprint": "1", "method": "heads", "score_mean": [1.0, 2.0, 3.0], "score_std": [4.0, 5.0, 6.0]}
    card |= {"heads": {group: {"pairs": i} for i, group in enumerate(GROUPS)}}
    card |= {"base": checkpoint.reference("../../global", "", whole.params)} if adapters else {}
    loaded = wide(CAUSAL, adapters)._replace(tokenizer=tokenizer, card=card)
    place = epath.Path(tmp_path) / "heads"
    folders = {group: place / group.lower() for group in GROUPS}
    checkpoint.save(place / "_backbone", loaded)
    checkpoint.save(place / "stale", whole)
    for _ in range(2):  # the second time there is nothing to do
        heads.write(place / "_backbone", folders)
    assert not (place / "stale").exists()
    batch = helpers.one_per_row([(t.input_ids, t.token_type_ids) for t in some_pairs(5).chosen], 16)
    scores = jax.jit(loaded.model.score)(loaded.params, batch)
    for column, group in enumerate(GROUPS):
        own = checkpoint.load(folders[group])
        np.testing.assert_allclose(jax.jit(own.model.score)(own.params, batch), scores[:, column], rtol=0, atol=1e-5)
        assert own.card["group"] == group and own.card["pairs"] == column and own.card["score_std"] == 4.0 + column
        stored = (folders[group] / "params" / "_METADATA").read_text()
        assert "score" in stored and "embedding" not in stored and ("lora_a" in stored) == bool(adapters)
    again = checkpoint.load(place / "_backbone")
    assert again.model.heads == GROUPS
    jax.tree.map(np.testing.assert_array_equal, again.params["score"], loaded.params["score"])


def main(path: str) -> None:
    logged, scores, _ = fit(wide(SPARE), sharding.make_mesh(1, 2, 1))
    np.savez(path, scores=scores, losses=[metrics["loss"] for metrics in logged if "loss" in metrics])


if __name__ == "__main__":
    main(sys.argv[1])
