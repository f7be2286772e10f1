"""Steps whose loss or gradient is not finite change nothing, are counted and named; many in a row end a training."""

import dataclasses
import json
import math
import re
import shutil

import jax
import numpy as np
import pytest

from scpo_jax import skipping, train_reward
from scpo_jax.data import batches
from scpo_jax.errors import InputError
from scpo_jax.models import module
from scpo_jax.train_reward import Training
from scpo_jax.training_state import TrainingState
from tests.run_helpers import refusal
from tests.test_reference import make_program
from tests.test_train_reward import CONFIG, OPTIONS, some_pairs

PLANTED = {"weight nan": 1, "margin inf": 6, "gradient inf": 11}  # what is wrong with a pair, and which it is


@pytest.fixture(scope="module")
def world():
    """(model, parameters, compiled step)."""
    model = module.build(CONFIG)
    return model, module.init(model, jax.random.key(3)), make_program(model, OPTIONS)


def planted() -> batches.Pairs:
    pairs = some_pairs(16)._replace(ids=[f"pair {i}" for i in range(16)])
    pairs.weights[PLANTED["weight nan"]] = np.nan
    pairs.margins[PLANTED["margin inf"]] = np.inf
    pairs.weights[PLANTED["gradient inf"]] = 1e30  # a finite loss, but the square of the gradient overflows
    return pairs


def train(world, pairs, step=None, options=OPTIONS, **more):
    """(what each training gave, metrics of each by step)."""
    _, params, program = world
    logged = [{} for _ in pairs]
    trainings = [Training(f"scpo/{g}", own, options) for g, own in enumerate(pairs)]
    trained = train_reward.train(
        program if step is None else program._replace(step=step), params, trainings,
        log=lambda g, k, metrics: logged[g].update({k: metrics}), score_function=None, **more,
    )  # fmt: skip
    return trained, logged


def test_such_a_step_changes_nothing(world, capsys):
    kept = []

    def step(*arguments):
        before = jax.device_get(arguments[:2])
        results = world[2].step(*arguments)
        same = jax.tree.map(lambda old, new: (old == new).reshape(2, -1).all(1), before, jax.device_get(results[:2]))
        kept.append(np.all(jax.tree.leaves(same), axis=0))
        return results

    options = dataclasses.replace(OPTIONS, max_steps=8)
    pairs = [planted(), some_pairs(16, seed=1)]
    _, logged = train(world, pairs, step, options)
    order = train_reward.order_of(pairs[0], options)
    bad = np.isin(order, list(PLANTED.values())).any(1)
    assert 2 <= bad.sum() <= 6
    np.testing.assert_array_equal(np.array(kept), np.stack([bad, np.zeros(8, bool)], 1))
    assert [logged[0][k]["skipped"] for k in range(1, 9)] == list(np.cumsum(bad))
    assert all(math.isfinite(value) for own in logged for metrics in own.values() for value in metrics.values())
    said = re.findall(r"train scpo/0: step (\d+) is skipped, .*; its pairs: (.*)", capsys.readouterr().err)
    named = [(int(k), sorted(names.split(", "))) for k, names in said]
    assert named == [(k + 1, sorted(f"pair {i}" for i in order[k])) for k in np.flatnonzero(bad)]
    _, clean = train(world, [some_pairs(16), pairs[1]], options=options)
    assert logged[1] == clean[1], "a group's bad steps are no matter of another group"
    first = int(np.flatnonzero(bad)[0])
    assert [logged[0][k] for k in range(1, first + 1)] == [clean[0][k] for k in range(1, first + 1)]


def test_many_in_a_row_end_the_training_and_leave_what_was_saved(world, tmp_path):
    calls = []

    def step(params, opt_state, batch, *numbers):
        calls.append(1)
        poison = np.float32(np.nan if 5 <= len(calls) <= 7 else 1)
        params = {**params, "score": jax.tree.map(lambda leaf: leaf * poison, params["score"])}
        return world[2].step(params, opt_state, batch, *numbers)

    options, pairs = dataclasses.replace(OPTIONS, max_steps=8), [some_pairs(16)]
    state = TrainingState(tmp_path, keep=2, every=4)
    with jax.transfer_guard("allow"), pytest.raises(InputError, match="scpo/0: 3 steps in a row up to step 7 had no"):
        train(world, pairs, allowing(step), options, state=state, max_skipped=3)
    state.close()
    assert len(calls) in (7, 8)  # the host looks one step late
    assert (tmp_path / "4").is_dir() and not (tmp_path / "8").exists()
    state = TrainingState(tmp_path, keep=2, every=4)
    [resumed], logged = train(world, pairs, options=options, state=state)
    state.close()
    [straight], _ = train(world, pairs, options=options)
    assert list(logged[0]) == [5, 6, 7, 8]
    jax.tree.map(np.testing.assert_array_equal, resumed.params, straight.params)


def allowing(step):
    """`step`, which may read what is on the host."""

    def allowed(*arguments):
        with jax.transfer_guard("allow"):
            return step(*arguments)

    return allowed


def test_only_steps_in_a_row_count(capsys):
    plan = np.array([[[[0, -1], [2, 1]]], [[[1, 0], [2, -1]]]])
    watch = skipping.Watch(["full/chile"], [()], plan, most=2)
    for _ in range(3):
        watch.see(1, 0, math.nan, 1.0)
        watch.see(2, 0, 1.0, 1.0)
    watch.see(1, 0, 1.0, math.inf)
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[0] == "train full/chile: step 1 is skipped, its loss is nan and its gradient norm 1.0; its pairs: 0, 2, 1"
    )
    assert len(lines) == 4 and "its gradient norm inf" in lines[3]
    with pytest.raises(InputError, match="2 steps in a row up to step 2"):
        watch.see(2, 0, -math.inf, 1.0)


def test_the_command_says_so_in_a_line_and_keeps_its_states(copy, monkeypatch, capsys):
    """`max_skipped` is of no stage's fingerprint: the workdir is taken with another value."""
    shutil.rmtree(copy.workdir / "checkpoints" / "scpo")
    record = copy.record()
    del record["stages"]["train"]["finished"]
    (copy.workdir / "run.json").write_text(json.dumps(record))
    batch_at = batches.batch_at

    def poisoned(pairs, plan, step, group, share):
        batch = batch_at(pairs, plan, step, group, share)
        return batch._replace(weights=batch.weights * np.float32(np.nan if step >= 3 and group == 1 else 1))

    monkeypatch.setattr(batches, "batch_at", poisoned)
    capsys.readouterr()
    assert copy.run("--config.train.max_skipped=2") == 2
    lines = capsys.readouterr().err.splitlines()
    skipped = [line for line in lines if " is skipped" in line]
    assert [re.search(r"step (\d) is", line).group(1) for line in skipped] == ["4", "5"]
    assert len({group for line in skipped for group in re.findall(r"pair (\d) \d", line)}) == 1
    assert lines[-1].startswith("scpo: error: train scpo/") and "2 steps in a row up to step 5" in lines[-1]
    assert len([line for line in lines if line.startswith("scpo: error")]) == 1
    states = (copy.workdir / "checkpoints" / "training").glob("scpo-*/*")
    assert sorted(path.name for path in states) == ["2", "4"]


def test_at_least_one_step_may_be_skipped(copy, capsys):
    assert "config.train.max_skipped=0: it has to be at least 1" in refusal(
        capsys, "run", f"--config={copy.config}", f"--workdir={copy.workdir}", "--config.train.max_skipped=0"
    )
