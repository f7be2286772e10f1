"""What a user sees of long work."""

import pytest

from scpo_jax import logs


@pytest.fixture
def clock(monkeypatch):
    """Sets the time that `logs` sees."""

    def to(now: float) -> None:
        monkeypatch.setattr(logs.time, "monotonic", lambda: now)

    to(0.0)
    return to


def test_a_line_tells_the_speed_since_the_first_count(clock, capsys):
    progress = logs.Progress(200, "train", "step")
    for now, done in [(30, 79), (40, 80), (50, 81), (51, 111)]:  # 79 steps of an earlier run, then compiling
        clock(float(now))
        progress.reach(done)
    clock(60.5)
    progress.reach(140)
    assert capsys.readouterr().err.splitlines() == [
        "train: 79 of 200 steps",
        "train: 81 of 200 steps, 10.0 s/step",
        "train: 140 of 200 steps, 2.0 steps/s",
    ]


def test_work_of_unknown_length_is_counted(clock, capsys):
    progress = logs.Progress(None, "read", "row")
    progress.add(500)
    clock(11.0)
    progress.add(600)
    assert capsys.readouterr().err == "read: 1100 rows, 54.5 rows/s\n"
