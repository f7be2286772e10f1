"""SIGTERM, or a notice, before a machine is taken away: the training under way saves its state, and all ends.

Outside a training the process ends at once: what a stage has finished stands, and files are written whole. The exit
code says that the same command goes on.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from scpo_jax import distributed, notices

CODE = 75  # EX_TEMPFAIL; launch/job.sh starts the run again
SECONDS_TO_A_STEP = 25  # until the step in progress has ended, and its state is being saved; a machine leaves 30
STOP = "scpo/stop"  # key under which a process says that a signal has come
LINE = "interrupted{}; the same command goes on from here"


class Interrupted(Exception):
    """The training under way has ended because the process has to: what became of it."""


class _Here:
    """The trainings of this process."""

    def __init__(self):
        self.lock, self.pipe, self.hearing = threading.Lock(), None, False
        self.training = self.saves = False  # under way, with a state
        self.steps = 0  # that this process has ended, of all its trainings
        self.last = None  # of these the one after which all processes stop
        self.alarm = None


_here = _Here()


def listen() -> None:
    """From now on SIGTERM ends the process as described above. To be called once, by the main thread."""
    heard, _here.pipe = os.pipe()
    os.set_blocking(_here.pipe, False)
    signal.set_wakeup_fd(_here.pipe, warn_on_full_buffer=False)
    _catch()
    threading.Thread(target=_wait, args=[heard], daemon=True).start()


def heed_notices() -> None:
    """From now on a notice that this machine is taken away is as good as SIGTERM, if that is listened to."""
    import jax  # noqa: F401 (sets TPU_ML_PLATFORM on a machine with TPUs)

    if _here.pipe is not None and notices.are_given():
        notices.watch(lambda: os.write(_here.pipe, bytes([signal.SIGTERM])))


def _catch() -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)  # the thread acts, also while this one is in a long call


def _wait(heard: int) -> None:
    """Acts on the first SIGTERM."""
    while signal.SIGTERM not in os.read(heard, 1):
        pass
    with _here.lock:
        training, saves = _here.training, _here.saves
    if not saves:
        lost = ": this training saves no state (config.checkpoint.every_steps=0) and begins anew" if training else ""
        distributed.end(LINE.format(lost), CODE)
    if distributed.count() == 1:
        _stop()
    else:
        distributed.tell(STOP, "")


def _hear() -> None:
    """Stops when a process says that a signal has come to it."""
    if distributed.hear(STOP) is not None:
        _stop()


def _stop() -> None:
    """Settles after which step all processes stop: the first that none of them has ended."""
    line = LINE.format(f": no step ended within {SECONDS_TO_A_STEP} s, what was saved before it stands")
    _here.alarm = threading.Timer(SECONDS_TO_A_STEP, distributed.end, [line, CODE])
    _here.alarm.daemon = True
    _here.alarm.start()
    with _here.lock:  # until that is settled no step ends
        _here.last = max(distributed.exchange(f"{STOP} after", _here.steps)) + 1


@contextlib.contextmanager
def training(saves: bool) -> Iterator[None]:
    """While a training runs that saves its state, or does not. Raises Interrupted if it ends when all have to."""
    if _here.pipe is not None:
        _catch()  # a TPU's runtime has its own handler, and is here by now
    if distributed.count() > 1 and not _here.hearing:
        _here.hearing = True
        threading.Thread(target=_hear, daemon=True).start()
    with _here.lock:
        _here.training, _here.saves = True, saves
    try:
        yield
    finally:
        with _here.lock:
            _here.training = _here.saves = False
            stopping = _here.last is not None
    if stopping:
        raise Interrupted("a training had just ended")


def due() -> bool:
    """Whether the training has to save its state and end now; all processes ask once after every step."""
    with _here.lock:
        _here.steps += 1
        now = _here.last is not None and _here.steps >= _here.last
        if now:
            _here.alarm.cancel()
    return now
