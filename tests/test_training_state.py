"""The state of a training: the newest whole one is taken, onto any devices; what is broken is told and nothing lost."""

import json
import os
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from scpo_jax import checksums, preemption, training_state
from scpo_jax.errors import InputError
from scpo_jax.training_state import TrainingState
from tests.run_helpers import snapshot


def state_of(value: float) -> dict:
    values = np.random.default_rng(int(value)).normal(size=(90, 70)).astype(np.float32)
    return {"params": {"w": jax.numpy.asarray(values)}, "best_step": np.full(3, value, np.int32)}


def open_state(folder, **own) -> TrainingState:
    return TrainingState(folder, **{"keep": 3, "every": 2} | own)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the states after 2 and 4 steps."""
    folder = tmp_path_factory.mktemp("saved") / "states"
    states = open_state(folder)
    assert states.restore(state_of(0))[0] == 0
    for step in (2, 4):
        states.save(step, state_of(step))
    states.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "states")
    return tmp_path / "states"


def restored(folder) -> tuple[int, dict]:
    states = open_state(folder)
    try:
        return states.restore(state_of(0))
    finally:
        states.close()


def largest(state):
    return max((path for path in state.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(state):
    for path in state.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(state):
    largest(state).unlink()


def zero(state):
    largest(state).write_bytes(bytes(largest(state).stat().st_size))


def exchange(state):
    """Orbax reads it without complaint."""
    shutil.rmtree(state / "state")
    shutil.copytree(state.parent / "2" / "state", state / "state")


DAMAGES = [truncate, remove, zero, exchange]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda own: own.__name__)
def test_a_damaged_state_is_told_and_the_one_before_taken(damage, folder, capsys):
    damage(folder / "4")
    step, state = restored(folder)
    assert step == 2 and not (folder / "4").exists()
    jax.tree.map(np.testing.assert_array_equal, state, state_of(2))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "the state after 4 steps is damaged, removed (" in said[0]
    assert said[1].endswith("states: goes on after 2 steps")
    assert ("2 arrays are not what was saved, first ['best_step']" in said[0]) == (damage is exchange)


def test_where_all_are_broken_nothing_is_overwritten(folder):
    for step in ("2", "4"):
        zero(folder / step)
    before = snapshot(folder)
    with pytest.raises(
        InputError, match="has no training state that is whole: that after 4 steps is damaged .* others"
    ):
        restored(folder)
    assert snapshot(folder) == before


@pytest.mark.parametrize("version", ["none", 99])
def test_another_version_is_refused(version, folder):
    if version == "none":  # before there were schemas
        for step in ("2", "4"):
            shutil.rmtree(folder / step / "about")
            (folder / step / "state").rename(folder / step / "default")
    else:
        about = folder / "4" / "about" / "metadata"
        about.write_text(json.dumps(json.loads(about.read_text()) | {"schema_version": 99}))
    before = snapshot(folder)
    with pytest.raises(
        InputError, match="has schema (0|99), this version reads 1: remove the folder to begin anew, or"
    ):
        restored(folder)
    assert snapshot(folder) == before


def test_going_on_elsewhere_is_said(folder, monkeypatch, capsys):
    now = training_state.place()
    monkeypatch.setattr(training_state, "place", lambda: now | {"devices": 8, "cpus": 3})
    assert restored(folder)[0] == 4
    said = capsys.readouterr().err
    assert f"goes on after 4 steps, elsewhere (devices {now['devices']} -> 8, cpus {now['cpus']} -> 3): " in said


def test_a_gpu_without_deterministic_operations(monkeypatch):
    """What is saved there says so; going on the same way is not called bitwise, nor is half of it with the flag."""
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(platform="gpu", device_kind="H200")])
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    without = training_state.place()
    assert without["deterministic_ops"] is False and "cpus" not in without
    assert "bitwise only with XLA_FLAGS=--xla_gpu_deterministic_ops=true" in training_state.change_of_place(without)
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_gpu_deterministic_ops=true")
    assert training_state.change_of_place(training_state.place()) == ""
    assert "elsewhere (deterministic_ops False -> True)" in training_state.change_of_place(without)


def test_the_last_state_is_written_before_all_ends(folder, monkeypatch):
    states = open_state(folder)
    assert [states.is_due(step) for step in (5, 6, 7)] == [False, True, False]
    monkeypatch.setattr(preemption, "due", lambda: True)
    assert states.is_due(7)
    with pytest.raises(preemption.Interrupted, match="the state after 7 steps is saved in"):
        states.save(7, state_of(7))
    assert restored(folder)[0] == 7  # a manager of its own: it stands, though the first is not closed
    states.close()


def test_checksums():
    """By a loop over Python's integers; of any bits, and in any parts."""
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    words = values.view(np.uint32).reshape(-1)
    expected = sum(int(word) * (2 * i + 1) for i, word in enumerate(words)) % 2**32
    assert int(checksums.checksum(values)) == expected
    assert checksums.of_tree({"a": {"b": np.int32(7)}}) == {"['a']['b']": 7}
    for leaf in (np.ones(2, np.int8), jax.numpy.ones(2, jax.numpy.bfloat16), np.zeros((0, 2), np.float32)):
        bits = np.asarray(leaf).view(f"u{leaf.dtype.itemsize}").astype(int)
        assert int(checksums.checksum(leaf)) == bits.sum() * 2
    changed = values.copy()
    changed[1, 2] = np.nextafter(changed[1, 2], 9)
    assert int(checksums.checksum(changed)) != expected != int(checksums.checksum(values.reshape(5, 3)[::-1]))


def test_other_meshes(tmp_path):
    """Three groups: on meshes of 2 and of 8 groups there are inert ones beside them. See the script for a training."""
    command = [sys.executable, "-m", "tests.faults.meshes", "--restore-only", str(tmp_path / "states")]
    done = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["restored 0 3", "restored 1 4", "restored 2 8", "restored 3 3"]
