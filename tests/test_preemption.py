"""SIGTERM or a notice: a training saves its state at a step all processes agree on, else all ends at once, with 75."""

import os
import signal

import pytest

from scpo_jax import distributed, notices, preemption


class Ended(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def here(monkeypatch):
    """No signal has come to this process, and its end is an exception."""

    def end(line, code):
        raise Ended(line, code)

    monkeypatch.setattr(preemption, "_here", preemption._Here())
    monkeypatch.setattr(distributed, "end", end)
    return preemption._here


def signalled(*numbers) -> None:
    """What the thread does when these signals come."""
    heard, pipe = os.pipe()
    os.write(pipe, bytes(numbers))
    preemption._wait(heard)


def test_outside_a_training_it_ends_at_once(here):
    with pytest.raises(Ended) as ended:
        signalled(signal.SIGINT, signal.SIGTERM)
    assert ended.value.args == ("interrupted; the same command goes on from here", 75)


def test_a_training_without_a_state_says_so(here):
    with pytest.raises(Ended, match="saves no state .config.checkpoint.every_steps=0. and begins anew; the same"):
        with preemption.training(saves=False):
            signalled(signal.SIGTERM)


def test_a_training_stops_after_the_step_in_progress(here):
    with pytest.raises(preemption.Interrupted, match="saved"), preemption.training(saves=True):
        assert not preemption.due()
        signalled(signal.SIGTERM)
        assert preemption.due()
        raise preemption.Interrupted("saved")
    assert not here.alarm.is_alive() or here.alarm.finished.is_set()


def test_a_training_that_had_just_ended_has_no_next_step(here):
    with pytest.raises(preemption.Interrupted, match="just ended"), preemption.training(saves=True):
        signalled(signal.SIGTERM)
    here.alarm.cancel()


def test_a_notice_is_as_good_as_sigterm(here, monkeypatch):
    heard, here.pipe = os.pipe()
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")
    monkeypatch.setattr(notices, "watch", lambda act: act())
    preemption.heed_notices()
    with pytest.raises(Ended):
        preemption._wait(heard)


def test_all_processes_stop_after_the_same_step(here, monkeypatch):
    """The one that is furthest has ended 5 steps: the sixth is the first that all can end with."""
    monkeypatch.setattr(distributed, "exchange", lambda key, value: [value, 5, 4])
    assert [preemption.due() for _ in range(4)] == [False] * 4
    preemption._stop()
    assert [preemption.due() for _ in range(2)] == [False, True]


def test_a_step_that_takes_too_long_is_not_waited_for(here, monkeypatch):
    said = []
    monkeypatch.setattr(preemption, "SECONDS_TO_A_STEP", 0.01)
    monkeypatch.setattr(distributed, "end", lambda *arguments: said.append(arguments))
    preemption._stop()
    here.alarm.join()
    [(line, code)] = said
    assert code == 75 and line.startswith("interrupted: no step ended within 0.01 s, what was saved before it stands; ")
