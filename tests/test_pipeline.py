"""Whole runs: what they leave, what a second one does, how one goes on after it was killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from scpo_jax import checkpoint, evaluate, pipeline, score, stages, train_groups
from scpo_jax.checkpoint import TrainingState
from scpo_jax.data import preferences
from tests.run_helpers import GROUPS, MAJORITY, World, pairs, read_rows, refusal, snapshot

STAGES = ["prepare", "global", "score", "select", "train", "evaluate", "report"]
SLUGS = {"../../x": "x", "Côte d'Ivoire": "cote-d-ivoire", "日本": preferences.slug("日本")}


class Killed(BaseException):
    """Ends a run as abruptly as a test can in its own process."""


@pytest.fixture
def copy(finished, tmp_path):
    """The finished run with a copy of its workdir."""
    world = World(tmp_path)
    world.config, world.data = finished.config, finished.data
    shutil.copytree(finished.workdir, world.workdir)
    return world


def record(world) -> dict:
    return json.loads((world.workdir / "run.json").read_text())


def checkpoints(world) -> dict[str, dict]:
    """METHOD/SLUG -> flat parameters of every checkpoint."""
    folders = [path.parent for path in world.workdir.glob("checkpoints/**/params")]
    return {
        str(path.relative_to(world.workdir / "checkpoints")): jax.tree.leaves(checkpoint.load(path).params)
        for path in folders
    }


def assert_same_result(world, finished):
    """Two runs ended bitwise equal, and their metrics have each step once."""
    ours, theirs = checkpoints(world), checkpoints(finished)
    assert sorted(ours) == sorted(theirs) and len(ours) == 7
    for name in ours:
        jax.tree.map(np.testing.assert_array_equal, ours[name], theirs[name])
    for name in ("reports/full_report.json", "reports/evaluation.json", "reports/edited_ratios.json"):
        assert (world.workdir / name).read_bytes() == (finished.workdir / name).read_bytes()
    steps = [(row["training"], row["step"]) for row in read_rows(world.workdir / "metrics.jsonl")]
    assert len(steps) == len(set(steps)) and {name for name, _ in steps} == set(ours)
    assert sorted(steps) == sorted((r["training"], r["step"]) for r in read_rows(finished.workdir / "metrics.jsonl"))
    assert not (world.workdir / "checkpoints" / "training").exists()
    assert [path.name for path in (world.workdir / "scores").iterdir()] == ["global.parquet"]
    assert list(record(world)["stages"]) == STAGES


def test_what_a_run_leaves(finished):
    work = finished.workdir
    assert sorted(path.name for path in (work / "checkpoints").iterdir()) == ["full", "global", "scpo"]
    for method in ("scpo", "full"):
        assert sorted(path.name for path in (work / "checkpoints" / method).iterdir()) == sorted(SLUGS.values())
    for name in ("full_report", "partial_report", "edited_ratios", "evaluation"):
        assert json.loads((work / "reports" / f"{name}.json").read_text())
    assert all(group in (work / "reports" / "summary.md").read_text() for group in GROUPS)
    assert not [path for path in work.rglob("*") if path.name.endswith((".partial", ".tmp"))]
    assert sorted(path.name for path in finished.folder.iterdir()) == ["config.py", "pairs.jsonl", "work"]
    card = checkpoint.load_card(work / "checkpoints" / "scpo" / SLUGS["日本"])
    assert card["group"] == "日本" and card["method"] == "scpo" and card["steps"] == 6 and card["max_length"] == 64
    assert card["score_std"] > 0 and {"tau", "beta", "encoding", "score_mean", "fingerprint"} <= card.keys()


def test_the_record(finished):
    found = record(finished)
    assert found["config"]["scpo.tau"] == 0.7 and found["command"].startswith("scpo run --config=")
    assert {"jax", "flax", "transformers", "scpo_jax", "commit", "devices", "python"} <= found["environment"].keys()
    assert list(found["stages"]) == STAGES and all(s["seconds"] >= 0 for s in found["stages"].values())
    assert list(found["stages"]["prepare"]["inputs"]) == [str(finished.data)]


def test_the_selection(finished):
    rows = preferences.read_table(finished.workdir / "selection.parquet").to_pylist()
    assert {row["group"] for row in rows} == set(GROUPS) and len(rows) == 48
    for row in rows:
        difference = row["ref_chosen"] - row["ref_rejected"]
        limit = 0.7 if row["split"] == "train" else 0.5
        assert row["keep"] == (1 / (1 + np.exp(-difference)) < limit)
        assert row["weight"] == pytest.approx(min(np.exp(difference / 1.1), 1), rel=1e-5)


def test_a_second_run_does_nothing(copy, finished, capsys):
    before = snapshot(copy.workdir)
    assert copy.run() == 0
    assert capsys.readouterr().err.count("\n") == 1 and snapshot(copy.workdir) == before
    assert copy.run("--stages=select,train") == 0 and copy.run("--force") == 0
    assert "nothing to do: select, train\n" in capsys.readouterr().err and snapshot(copy.workdir) == before


def test_another_config_is_refused_and_forced(copy, capsys):
    arguments = ("run", f"--config={copy.config}", f"--workdir={copy.workdir}")
    flags = ("--config.scpo.tau=0.4", "--config.train.learning_rate=0.02")
    before = snapshot(copy.workdir)
    refused = refusal(capsys, *arguments, *flags)
    assert "scpo.tau: 0.7 -> 0.4" in refused and "train.learning_rate: 0.01 -> 0.02" in refused
    assert "Stages to redo: select, train, evaluate, report." in refused
    assert snapshot(copy.workdir) == before
    old = record(copy)["stages"]
    assert copy.run(*flags, "--force") == 0
    new = record(copy)["stages"]
    assert [name for name in STAGES if new[name] == old[name]] == ["prepare", "global", "score"]
    selection = preferences.read_table(copy.workdir / "selection.parquet").to_pylist()
    assert {row["keep"] for row in selection if row["split"] == "train" and row["ref_chosen"] > row["ref_rejected"]} == {False}
    assert "the stages that they read" not in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    ("flag", "first"),
    [
        ("--config.seed=5", "prepare"),
        ("--config.data.test_size=0.4", "prepare"),
        ("--config.global_rm.max_steps=7", "global"),
        ("--config.train.weight_decay=0.1", "global"),
        ("--config.train.eval_every=2", "train"),
        ("--config.scpo.methods=scpo", "train"),
        ("--config.scpo.beta=2", "select"),
        ("--config.per_group=(('日本','tau',.5),)", "select"),
        ("--config.checkpoint.every_steps=0", None),
    ],
)
def test_stages_that_a_key_touches(flag, first, finished, capsys):
    if first is None:
        assert finished.run(flag) == 0
    else:
        refused = refusal(capsys, "run", f"--config={finished.config}", f"--workdir={finished.workdir}", flag)
        # a key that global and train share redoes everything from global on
        assert f"Stages to redo: {', '.join(STAGES[STAGES.index(first) :])}." in refused
        assert flag.split("=")[0].removeprefix("--config.") + ": " in refused


def test_changed_data_are_noticed(tmp_path, capsys):
    world = World(tmp_path)
    assert world.run("--stages=prepare") == 0
    world.data.write_text(world.data.read_text().replace("warm", "cold"))
    refused = refusal(capsys, "run", f"--config={world.config}", f"--workdir={world.workdir}")
    assert f"{world.data}: " in refused and "Stages to redo: prepare." in refused


def test_forcing_bad_data_keeps_what_there_is(copy, tmp_path, capsys):
    before = snapshot(copy.workdir)
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{oops\n")
    flags = (f"--config.data.path={bad}", "--force")
    assert "bad.jsonl:1" in refusal(capsys, "run", f"--config={copy.config}", f"--workdir={copy.workdir}", *flags)
    after = snapshot(copy.workdir)
    assert {path: after[path] and after[path][1] for path in after} == {p: v and v[1] for p, v in before.items()}


def killing(function, call: int):
    """`function`, but its call of this number never returns."""
    calls = []

    def killed(*arguments, **named):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return function(*arguments, **named)

    return killed


KILLS = {
    "prepare": (preferences, "write_table", 1),
    "global": (TrainingState, "save", 3),
    "score": (stages, "write_scores", 3),
    "select": (preferences, "write_table", 3),
    "train": (checkpoint, "save", 4),
    "train, in a training": (TrainingState, "save", 8),
    "evaluate": (evaluate, "write_test_scores", 1),
    "report": (json, "loads", None),
}


@pytest.mark.parametrize("kill", [kill for kill in KILLS if kill != "report"])
def test_a_killed_run_goes_on(kill, finished, tmp_path, monkeypatch):
    world = World(tmp_path)
    world.config, world.data = finished.config, finished.data
    monkeypatch.setattr(stages, "SECONDS_PER_PART", 0.0)
    monkeypatch.setattr(score, "TOKENS_PER_BATCH", 256)
    with monkeypatch.context() as patch:
        owner, name, call = KILLS[kill]
        patch.setattr(owner, name, killing(getattr(owner, name), call))
        with pytest.raises(Killed):
            world.run()
    names = list(record(world)["stages"]) if (world.workdir / "run.json").exists() else ["prepare"]
    assert names[-1] == kill.split(",")[0]
    made = {path: path.stat().st_mtime_ns for path in world.workdir.glob("checkpoints/*/*/params/_METADATA")}
    scored, steps = [], []
    with monkeypatch.context() as patch:
        patch.setattr(score, "score_batches", counted(score.score_batches, scored))
        patch.setattr(train_groups.train_reward, "batch_at", counted_steps(train_groups.train_reward.batch_at, steps))
        assert world.run() == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made
    if kill == "score":
        parts = 2 * 16  # two parts of 256 / 16 texts were on disk
        assert scored[0] == len(preferences.read_table(world.workdir / "scores" / "global.parquet")) - parts
    if kill == "global":
        assert steps[:2] == [4, 5]
    if kill == "train, in a training":
        assert len(made) == 1 and steps[:2] == [2, 3]
    assert_same_result(world, finished)


def counted(function, sizes):
    def counting(score_function, params, texts, *arguments):
        sizes.append(len(texts))
        return function(score_function, params, texts, *arguments)

    return counting


def counted_steps(function, steps):
    def counting(pairs, options, step):
        steps.append(step)
        return function(pairs, options, step)

    return counting
