"""A full disk is one line and exit code 2; what was saved before is whole, and the same command goes on with room."""

import errno
import os
import subprocess

import pytest

from scpo_jax import errors
from scpo_jax.training_state import TrainingState
from tests.run_helpers import World
from tests.test_resume import assert_same_result


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


def test_what_a_full_disk_looks_like():
    plain = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/b")
    assert errors.is_disk_full(plain) and errors.is_disk_full(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    try:
        try:
            raise plain
        except OSError as error:
            raise ValueError("saving failed") from error
    except ValueError as error:
        assert errors.is_disk_full(error)
    assert errors.is_disk_full(ValueError("RESOURCE_EXHAUSTED: Error writing: [OS error 28: No space left on device]"))
    assert not errors.is_disk_full(ValueError("space")) and not errors.is_disk_full(OSError(errno.EIO, "bad"))
