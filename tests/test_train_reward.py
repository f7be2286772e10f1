"""The training loop: weights, batches, validation, resuming, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scpo_jax import hlo, score, sharding, train_reward, train_step
from scpo_jax.data import batches
from scpo_jax.data.encoding import Text
from scpo_jax.models import module
from scpo_jax.train_reward import Training
from tests.test_reference import make_program, options

CONFIG = {
    "model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 32, "type_vocab_size": 2, "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1, "initializer_range": 0.2,
}  # fmt: skip
OPTIONS = options(max_steps=6, learning_rate=3e-3, batch_size=4, batch_order="shuffled", seed=11)


@pytest.fixture(scope="module")
def model():
    return module.build(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    return module.init(model, jax.random.key(3))


@pytest.fixture(scope="module")
def program(model):
    return make_program(model, OPTIONS)


@pytest.fixture(scope="module")
def score_function(model):
    return score.score_function(model, "float32")


def some_pairs(n: int, seed: int = 0) -> batches.Pairs:
    """The chosen text holds token 7, the rejected one token 8."""
    rng = np.random.default_rng(seed)

    def text(mark):
        ids = np.concatenate([[1], rng.integers(10, 40, rng.integers(3, 9)), [mark, 2]]).astype(np.int32)
        return Text(ids, np.zeros_like(ids), 0)

    chosen, rejected = ([text(mark) for _ in range(n)] for mark in (7, 8))
    return batches.Pairs(chosen, rejected, np.ones(n, np.float32), np.zeros(n, np.float32))


def run(program, params, pairs, options=OPTIONS, held_out=None, stop_at=None, score_function=None, **more):
    log = []

    def record(group, step, metrics):
        if step == stop_at:
            raise Stop
        log.append((step, metrics))

    training = Training("test", pairs, options, held_out)
    [trained] = train_reward.train(program, params, [training], log=record, score_function=score_function, **more)
    return trained, log


class Stop(Exception):
    """Ends a training."""


def distance(a, b) -> float:
    return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_it_learns_and_leaves_the_initial_parameters_alone(program, params):
    before = jax.tree.map(np.array, params)
    trained, log = run(program, params, some_pairs(32), train_reward.dataclasses.replace(OPTIONS, max_steps=100))
    assert [k for k, _ in log] == list(range(1, 101))
    assert np.mean([m["accuracy"] for _, m in log[-10:]]) > 0.9 > np.mean([m["accuracy"] for _, m in log[:5]])
    assert distance(before, params) == 0 and trained.step == 100


def test_models_of_one_structure_share_a_program(model, program):
    again, other = module.build(CONFIG), module.build(CONFIG | {"hidden_dropout_prob": 0.0})
    assert again is not model and again == model and hash(again) == hash(model) and other != model
    assert make_program(again, OPTIONS) is program
    assert make_program(again, OPTIONS, remat=True) is not program
    assert make_program(again, options(max_grad_norm=2.0)) is not program
    assert make_program(other, OPTIONS) is not program


def test_nothing_is_compiled_twice(model, program, params):
    program.step.clear_cache()  # of what other tests have compiled
    shapes = set()

    def step(*arguments):
        batch, rows = arguments[2], arguments[2].texts.input_ids.shape[2:]
        wanted = train_step.step_arguments(program, model, 1, batch.weights.shape[2], rows)
        as_given = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arguments[:3])]
        assert as_given == [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(wanted[:3])]
        shapes.add(rows)
        return program.step(*arguments)

    options = train_reward.dataclasses.replace(OPTIONS, max_steps=60)
    run(program._replace(step=step), params, some_pairs(40), options)
    compiled = program.step._cache_size()
    assert 0 < len(shapes) <= 6 and compiled == len(shapes)
    run(program, params, some_pairs(40), options)
    assert program.step._cache_size() == compiled


def test_a_pair_of_weight_0_teaches_nothing(program, params):
    pairs = some_pairs(4)
    silent = pairs._replace(weights=np.zeros(4, np.float32))
    trained, _ = run(program, params, silent)
    assert distance(trained.params, params) < 1e-7
    assert distance(run(program, params, pairs)[0].params, params) > 1e-3


def test_resuming_gives_the_same_bits(program, params, tmp_path, score_function):
    options = train_reward.dataclasses.replace(OPTIONS, eval_every=2)
    given = program, params, some_pairs(9), options, some_pairs(5, seed=1)
    straight, log = run(*given, score_function=score_function)
    state = train_reward.TrainingState(tmp_path / "state", keep=2, every=2)
    with pytest.raises(Stop):
        run(*given, score_function=score_function, state=state, stop_at=5)
    state.close()
    state = train_reward.TrainingState(tmp_path / "state", keep=2, every=2)
    resumed, rest = run(*given, score_function=score_function, state=state)
    state.close()
    assert [k for k, _ in rest] == [5, 6] and rest == log[5:]
    assert distance(resumed.params, straight.params) == 0 and resumed.step == straight.step


def test_validation_keeps_the_best_step(program, params, score_function):
    """Trained on reversed labels every step is worse than none, so step 0 stays."""
    held_out = some_pairs(40, seed=1)
    good, _ = run(program, params, some_pairs(32), train_reward.dataclasses.replace(OPTIONS, max_steps=60))
    backwards = some_pairs(32, seed=2)
    backwards = backwards._replace(chosen=backwards.rejected, rejected=backwards.chosen)
    options = train_reward.dataclasses.replace(OPTIONS, max_steps=20, eval_every=5)
    trained, log = run(program, good.params, backwards, options, held_out, score_function=score_function)
    assert trained.step == 0 and distance(trained.params, good.params) == 0
    accuracies = {k: m["validation_accuracy"] for k, m in log if "validation_accuracy" in m}
    assert list(accuracies) == [0, 5, 10, 15, 20] and accuracies[20] < accuracies[0]


def test_validation_tells_agreed_from_edited_pairs():
    first, now = np.float32([1, 1, 1, 0, 0]), np.float32([1, 0, 1, 1, 0])
    found = train_reward.validation_metrics(now, first)
    expected = {"validation_accuracy": 0.6, "validation_agreed": 2 / 3, "validation_edited": 0.5}
    assert found == pytest.approx(expected)
    assert "validation_edited" not in train_reward.validation_metrics(now, np.ones(5, np.float32))


def test_dropout_differs_by_step_and_repeats_by_seed(program, params):
    pairs = some_pairs(4)
    first, second, other = (
        run(program, params, pairs, train_reward.dataclasses.replace(OPTIONS, max_steps=2, seed=seed))[1]
        for seed in (1, 1, 2)
    )
    assert first == second and first[0][1]["loss"] != other[0][1]["loss"]


def test_the_score_bias_moves_only_with_centring(params, model):
    pairs = some_pairs(8)
    centred = train_reward.dataclasses.replace(OPTIONS, center_rewards_coefficient=0.1)
    without, _ = run(make_program(model, OPTIONS), params, pairs)
    with_it, _ = run(make_program(model, centred), params, pairs, centred)
    assert float(without.params["score"]["bias"][0]) == float(params["score"]["bias"][0])
    assert abs(float(with_it.params["score"]["bias"][0] - params["score"]["bias"][0])) > 1e-4


@pytest.mark.parametrize(
    ("gained", "lost", "better"),
    [(0, 0, False), (1, 1, False), (3, 0, True), (10, 7, False), (12, 6, True), (2, 5, False)],
)
def test_a_step_has_to_be_better_by_a_standard_error(gained, lost, better):
    """sqrt(gained + lost), nearly, is the standard error of gained - lost."""
    best = np.array([0.0] * gained + [1.0] * lost + [1.0, 0.0] * 100)
    correct = np.array([1.0] * gained + [0.0] * lost + [1.0, 0.0] * 100)
    assert train_reward.clearly_better(correct, best) == better


def test_a_step_transfers_nothing_by_itself(program, params, monkeypatch):
    """Numbers that are left on the host would be sent to the device inside the step."""
    place = sharding.place
    monkeypatch.setattr(
        sharding, "place", lambda tree, *where: tree if isinstance(tree, tuple) else place(tree, *where)
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        run(program, params, some_pairs(8))


def test_remat_computes_layers_twice_and_changes_nothing():
    model = module.build(CONFIG | {"num_hidden_layers": 2})
    params = module.init(model, jax.random.key(0))
    flops, losses = [], []
    for remat in (False, True):
        program = make_program(model, OPTIONS, remat=remat)
        [shape] = train_reward.choose_shapes([[Training("test", some_pairs(16), OPTIONS)]], program.mesh, model.width)
        compiled = program.step.lower(*train_step.step_arguments(program, model, 1, 4, tuple(shape))).compile()
        flops.append(hlo.product_flops(hlo.parse(compiled.as_text()), {}))
        losses.append([metrics["loss"] for _, metrics in run(program, params, some_pairs(16))[1]])
    assert flops[1] > 1.2 * flops[0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-6)
