"""What a user sees of long work."""

import json

import pytest
from etils import epath

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


DAMAGED = b'{"training": "a", "st\n' + b"\0" * 40 + b'\n[1]\n{"training": "a", "step": "2"}\n\xff\n'


def test_damaged_lines_of_the_metrics_are_counted_and_left_out(tmp_path, capsys):
    rows = [{"training": "a", "step": step, "loss": 0.5} for step in (1, 10)]
    first, last = (json.dumps(row).encode() + b"\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_bytes(first + DAMAGED + last)
    assert logs.read_metrics(tmp_path) == rows
    assert capsys.readouterr().err == f"{tmp_path / 'metrics.jsonl'}: 5 of 7 lines are damaged, left out\n"
    assert logs.read_metrics(tmp_path / "elsewhere") == []


def test_a_training_goes_on_where_lines_of_its_log_are_damaged(tmp_path, capsys):
    path = epath.Path(tmp_path)
    with logs.MetricsLog(path).open("a", every=1) as log:
        log(1, {"loss": 0.5})
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(DAMAGED)
    with logs.MetricsLog(path).open("a", every=1) as log:
        log(2, {"loss": 0.25})
    assert logs.read_metrics(path) == [{"training": "a", "step": k, "loss": 0.5 / k} for k in (1, 2)]
    assert not capsys.readouterr().err
