"""What a user sees of long work: progress, and training metrics on disk."""

import json
import pathlib
import sys
import tempfile
import time

import tqdm
from etils import epath

from scpo_jax import distributed, storage

SECONDS_BETWEEN_LINES = 10.0
METRICS = "metrics.jsonl"  # in a workdir


def say(line: str) -> None:
    """Prints a line of news to standard error, whole even under a progress bar; of several processes the first does."""
    if distributed.is_writer():
        tqdm.tqdm.write(line, file=sys.stderr)


class Progress:
    """Counts work done: a bar on a terminal, else a plain line every ten seconds. `total` may be unknown.

    The speed in a line is that since the first count: what came before it (most of compiling, steps of an earlier run)
    is not in it.
    """

    def __init__(self, total: int | None, what: str, unit: str):
        self._total, self._what, self._unit, self._done = total, what, unit, 0
        self._told, self._first = time.monotonic(), None
        shown = sys.stderr.isatty() and distributed.is_writer()
        self._bar = tqdm.tqdm(total=total, desc=what, unit=unit, leave=False) if shown else None

    def add(self, n: int) -> None:
        """Counts `n` more."""
        self._done += n
        now = time.monotonic()
        self._first = self._first or (now, self._done)
        if self._bar is not None:
            self._bar.update(n)
        elif now - self._told > SECONDS_BETWEEN_LINES:
            self._told = now
            of = "" if self._total is None else f" of {self._total}"
            say(f"{self._what}: {self._done}{of} {self._unit}s{self._speed(now)}")

    def _speed(self, now: float) -> str:
        seconds, done = now - self._first[0], self._done - self._first[1]
        if not done or not seconds:
            return ""
        return f", {done / seconds:.1f} {self._unit}s/s" if done > seconds else f", {seconds / done:.1f} s/{self._unit}"

    def reach(self, done: int) -> None:
        """Counts up to `done` in all."""
        self.add(done - self._done)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


class MetricsLog:
    """Training metrics: `metrics.jsonl`, a JSON object a line, and TensorBoard events."""

    def __init__(self, workdir: epath.Path):
        self._path = workdir / METRICS
        self._events = workdir / "tensorboard"

    def open(self, name: str, flush_every: int = 0, every: int = 10) -> "TrainingLog":
        """The log of training `name`, a context manager."""
        return TrainingLog(self._path, self._events / name, name, flush_every, every)


class TrainingLog:
    """Logs one training: its first step, every tenth (of `every`) and each validation.

    On disk once a minute and, if `flush_every`, at each multiple of it, so that what a saved training state has behind
    it is there. Rows of an earlier attempt from the first logged step on are dropped: this one writes them again.
    """

    def __init__(self, path: epath.Path, events: epath.Path, name: str, flush_every: int, every: int = 10):
        self._path, self._events, self._name = path, events, name
        self._flush_every, self._every = flush_every, every
        self._lines, self._flushed, self._board = [], time.monotonic(), None
        self._own_events = tempfile.TemporaryDirectory() if storage.is_remote(events) else None  # sent with each flush

    def __call__(self, step: int, metrics: dict) -> None:
        if self._board is None:
            import tensorboardX  # slow to import: it looks for torch

            self._forget(step)
            folder = str(self._events) if self._own_events is None else self._own_events.name
            self._board = tensorboardX.SummaryWriter(folder, purge_step=step)
        if step % self._every == 0 or step == 1 or "validation_accuracy" in metrics:
            self._lines.append(json.dumps({"training": self._name, "step": step, **metrics}) + "\n")
            for key, value in metrics.items():
                self._board.add_scalar(key, value, step)
        if time.monotonic() - self._flushed > 60 or (self._flush_every and step % self._flush_every == 0):
            self._flush()

    def _forget(self, step: int) -> None:
        if not self._path.exists():
            return
        rows = [(line, _parsed(line)) for line in _text(self._path).splitlines(keepends=True)]
        kept = [line for line, row in rows if row and not (row["training"] == self._name and row["step"] >= step)]
        storage.write(self._path, "".join(kept))

    def _flush(self) -> None:
        before = _text(self._path) if self._path.exists() else ""  # gs:// knows no appending
        storage.write(self._path, before + "".join(self._lines))
        self._lines, self._flushed = [], time.monotonic()
        if self._board is not None and self._own_events is not None:
            self._board.flush()
            for file in pathlib.Path(self._own_events.name).iterdir():
                storage.write(self._events / file.name, file.read_bytes())

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, *_) -> None:
        self._flush()
        if self._board is not None:
            self._board.close()
        if self._own_events is not None:
            self._own_events.cleanup()


def read_metrics(workdir: epath.Path) -> list[dict]:
    """The rows of a workdir's `metrics.jsonl`; says how many lines are damaged and left out."""
    path = workdir / METRICS
    rows = list(map(_parsed, _text(path).splitlines())) if path.exists() else []
    whole = [row for row in rows if row]
    if len(whole) < len(rows):
        say(f"{path}: {len(rows) - len(whole)} of {len(rows)} lines are damaged, left out")
    return whole


def _text(path: epath.Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


def _parsed(line: str) -> dict | None:
    """The row of a line; None if it is none: it was cut off when the process was killed, or the disk lost a part."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and isinstance(row.get("training"), str) and type(row.get("step")) is int
    return row if is_row else None
