"""A run that was killed goes on where it stood, and ends as if it had never been interrupted."""

import contextlib
import errno
import functools
import json
import os
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from scpo_jax import checkpoint, evaluate, preemption, score, stages
from scpo_jax.data import batches, preferences
from scpo_jax.training_state import TrainingState
from tests.metadata_helpers import LINE, TERMINATE, Metadata
from tests.run_helpers import STAGES, World, read_rows, snapshot, unrounded_report


class Killed(BaseException):
    """Ends a run as abruptly as a test can in its own process."""


def checkpoints(world) -> dict[str, dict]:
    """METHOD/SLUG -> flat parameters of every checkpoint."""
    folders = [path.parent for path in world.workdir.glob("checkpoints/**/params")]
    return {
        str(path.relative_to(world.workdir / "checkpoints")): jax.tree.leaves(checkpoint.load(path).params)
        for path in folders
    }


def assert_same_result(world, finished, same_batches=True):
    """Two runs ended bitwise equal, and their metrics have each step once.

    Where the global RM scored in other batches, what rounding changes in the report is left out.
    """
    ours, theirs = checkpoints(world), checkpoints(finished)
    assert sorted(ours) == sorted(theirs) and len(ours) == 7
    for name in ours:
        jax.tree.map(np.testing.assert_array_equal, ours[name], theirs[name])
    for name in ("full_report", "edited_ratios", *(["evaluation"] if same_batches else [])):
        reports = [(run.workdir / "reports" / f"{name}.json").read_bytes() for run in (world, finished)]
        assert reports[0] == reports[1]
    assert unrounded_report(world.workdir) == unrounded_report(finished.workdir)
    steps = [(row["training"], row["step"]) for row in read_rows(world.workdir / "metrics.jsonl")]
    assert len(steps) == len(set(steps)) and {name for name, _ in steps} == set(ours)
    assert sorted(steps) == sorted((r["training"], r["step"]) for r in read_rows(finished.workdir / "metrics.jsonl"))
    assert not (world.workdir / "checkpoints" / "training").exists()
    assert [path.name for path in (world.workdir / "scores").iterdir()] == ["global.parquet"]
    assert list(world.record()["stages"]) == STAGES


def killing(function, call: int):
    """`function`, but its call of this number never returns."""
    calls = []

    def killed(*arguments, **named):
        calls.append(1)
        if len(calls) == call:
            if isinstance(arguments[0], TrainingState):
                arguments[0].close()  # a thread still writes the state before, which no kill would leave running
            raise Killed
        return function(*arguments, **named)

    return killed


KILLS = {
    "prepare": (preferences, "write_table", 1),
    "global": (TrainingState, "save", 3),
    "score": (stages, "write_scores", 3),
    "select": (preferences, "write_table", 5),
    "train": (checkpoint, "save", 4),
    "train, in a training": (TrainingState, "save", 8),
    "evaluate": (evaluate, "write_test_scores", 1),
}


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_goes_on(kill, finished, tmp_path, monkeypatch):
    world = World(tmp_path)
    world.config, world.data = finished.config, finished.data
    if kill == "score":
        monkeypatch.setattr(stages, "SECONDS_PER_PART", 0.0)
        monkeypatch.setattr(score, "score_batches", functools.partial(score.score_batches, tokens_per_batch=256))
    with monkeypatch.context() as patch:
        owner, name, call = KILLS[kill]
        patch.setattr(owner, name, killing(getattr(owner, name), call))
        with pytest.raises(Killed):
            world.run()
    names = list(world.record()["stages"]) if (world.workdir / "run.json").exists() else ["prepare"]
    assert names[-1] == kill.split(",")[0]
    made = {path: path.stat().st_mtime_ns for path in world.workdir.glob("checkpoints/*/*/params/_METADATA")}
    scored, steps = [], []
    with monkeypatch.context() as patch:
        patch.setattr(score, "score_batches", counted(score.score_batches, scored))
        patch.setattr(batches, "batch_at", counted_steps(batches.batch_at, steps))
        assert world.run() == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made
    if kill == "score":
        parts = 2 * 16  # two parts of 256 / 16 texts were on disk
        assert scored[0] == len(preferences.read_table(world.workdir / "scores" / "global.parquet")) - parts
    if kill == "global":
        assert steps[:2] == [4, 5]
    if kill == "train, in a training":
        assert len(made) == 3 and steps[:2] == [2, 3]  # the groups of scpo are trained, those of full go on
    assert_same_result(world, finished, same_batches=kill != "score")


def counted(function, sizes):
    def counting(score_function, params, texts, *arguments):
        sizes.append(len(texts))
        return function(score_function, params, texts, *arguments)

    return counting


def counted_steps(function, steps):
    def counting(pairs, plan, step, *share):
        if step not in steps[-1:]:  # called for every group
            steps.append(step)
        return function(pairs, plan, step, *share)

    return counting


def test_sigkill_and_sigterm():
    """One of each, in processes; the script kills as often as it is told."""
    own = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    command = [sys.executable, "-m", "tests.faults.kills", "--kills=1"]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 runs are bitwise the undisturbed one; 0 ended as none should" in done.stdout


def kill_in_training(world, monkeypatch, call, *flags):
    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", killing(TrainingState.save, call))
        with pytest.raises(Killed):
            world.run(*flags)


def test_a_training_state_of_another_config_is_not_taken(copy, finished, monkeypatch):
    shutil.rmtree(copy.workdir / "checkpoints" / "scpo")  # else the old checkpoint would be found and nothing trained
    kill_in_training(copy, monkeypatch, 3, "--config.train.learning_rate=0.5", "--force")
    assert copy.run("--force") == 0
    assert_same_result(copy, finished)


@pytest.mark.parametrize("damaged", [1, 2])
def test_damaged_training_states(damaged, copy, finished, monkeypatch, capsys):
    shutil.rmtree(copy.workdir / "checkpoints" / "scpo")
    redo = copy.record()
    del redo["stages"]["train"]["finished"]
    (copy.workdir / "run.json").write_text(json.dumps(redo))
    kill_in_training(copy, monkeypatch, 3)
    states = sorted((copy.workdir / "checkpoints" / "training").glob("scpo-*/[24]"))
    assert [path.name for path in states] == ["2", "4"]
    for state in states[-damaged:]:
        for file in state.rglob("*"):
            if file.is_file():
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    capsys.readouterr()
    if damaged == 2:
        before = snapshot(states[0].parent)
        assert copy.run() == 2
        assert "remove the folder to begin this training anew" in capsys.readouterr().err.splitlines()[-1]
        assert snapshot(states[0].parent) == before
        shutil.rmtree(states[0].parent)
    assert copy.run() == 0
    assert capsys.readouterr().err.count("steps is damaged, removed") == (damaged == 1)
    assert_same_result(copy, finished)


def test_the_command_ends_with_75_and_goes_on(copy, finished, monkeypatch, capsys):
    shutil.rmtree(copy.workdir / "checkpoints" / "scpo")
    record = copy.record()
    del record["stages"]["train"]["finished"]
    (copy.workdir / "run.json").write_text(json.dumps(record))
    asked = []
    monkeypatch.setattr(preemption, "due", lambda: asked.append(1) or len(asked) == 3)
    capsys.readouterr()
    assert copy.run() == 75
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("scpo: interrupted: the state after 3 steps is saved in ")
    assert last.endswith("; the same command goes on from here")
    monkeypatch.undo()
    assert copy.run() == 0
    assert "goes on after 3 steps\n" in capsys.readouterr().err
    assert_same_result(copy, finished)


def test_a_notice_ends_a_run_that_goes_on_while_the_machine_is_there(copy):
    """In processes; the notice stays, and the second one takes no heed of it."""
    command = [sys.executable, "-m", "scpo_jax.main", "run", f"--config={copy.config}", f"--workdir={copy.workdir}"]
    command += ["--force", "--stages=train", "--config.scpo.methods=scpo", "--config.train.max_steps=40"]
    command += ["--config.checkpoint.every_steps=10"]
    with contextlib.closing(Metadata()) as metadata:
        own = {
            "GCE_METADATA_HOST": metadata.host,
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        start = functools.partial(subprocess.Popen, command, env=os.environ | own, text=True, stderr=subprocess.PIPE)
        with start() as first:
            while first.poll() is None and not any(copy.workdir.glob("checkpoints/training/*/10")):
                time.sleep(0.001)
            metadata.set("maintenance-event", TERMINATE)
            told = first.communicate(timeout=300)[1].splitlines()
        with start() as second:
            told_again = second.communicate(timeout=300)[1].splitlines()
    assert first.returncode == 75 and told.count(LINE) == 1
    steps = told[-1].removeprefix("scpo: interrupted: the state after ").split()[0]
    assert second.returncode == 0 and any(line.endswith(f"goes on after {steps} steps") for line in told_again)
    assert sum(line.startswith(f"{LINE}, as it was before this command began") for line in told_again) == 1


@pytest.fixture
def small(tmp_path):
    """A file system of 32 MB."""
    if os.geteuid():
        pytest.skip("mounting a tmpfs needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_run_goes_on_once_there_is_room(small, finished, monkeypatch, capsys):
    world = World(small)
    world.config, world.data = finished.config, finished.data
    filler, calls, save = small / "filler", [], TrainingState.save

    def filling(self, step, state):
        calls.append(step)
        if len(calls) == 6:  # a state of the groups' training stands
            with open(filler, "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError as error:
                    assert error.errno == errno.ENOSPC
        save(self, step, state)

    monkeypatch.setattr(TrainingState, "save", filling)
    assert world.run() == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scpo: ")]
    assert len(lines) == 1 and lines[0].startswith("scpo: error: the disk is full: ")
    assert lines[0].endswith(": make room, the same command goes on from here")
    states = world.workdir / "checkpoints" / "training"
    assert calls[3:] == [2, 4, 6][: len(calls) - 3]
    whole = max(int(path.name) for path in states.glob("scpo-*/[246]"))
    filler.unlink()
    assert world.run() == 0
    assert f"goes on after {whole} steps" in capsys.readouterr().err
    assert_same_result(world, finished)
