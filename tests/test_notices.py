"""A notice of Google Cloud is acted on when it comes; what else its metadata server does changes nothing."""

import os
import queue
import threading
import time

import pytest

from scpo_jax import notices, preemption
from tests.metadata_helpers import LINE, TERMINATE, Metadata


@pytest.fixture
def metadata(monkeypatch):
    """A machine of Google Cloud, which is asked often."""
    server = Metadata()
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("GCE_METADATA_HOST", server.host)
    monkeypatch.setattr(notices, "SECONDS_BETWEEN", 0.005)
    yield server
    server.close()


class Watch:
    """Someone who acts on notices of one kind."""

    def __init__(self, metadata, kind="maintenance-event"):
        self._acts, self._metadata, self._kind = queue.Queue(), metadata, kind
        arguments = [metadata.host, kind, lambda: self._acts.put("acted")]
        self._thread = threading.Thread(target=notices._watch, args=arguments, daemon=True)
        self._thread.start()

    def acts_on_the_next(self, value=TERMINATE) -> None:
        """Nothing was done so far; a notice is then acted on, once."""
        assert self._acts.empty()
        self._metadata.set(self._kind, value)
        self._thread.join(20)
        assert self._acts.qsize() == 1


@pytest.mark.parametrize(("kind", "value"), [("maintenance-event", TERMINATE), ("preempted", "TRUE")])
def test_a_notice_is_acted_on(kind, value, metadata, capsys):
    watch = Watch(metadata, kind)
    metadata.wait_until_asked(2)
    watch.acts_on_the_next(value)
    assert metadata.asked == [f"/computeMetadata/v1/instance/{kind}"] * 2  # the second was left to wait
    assert capsys.readouterr().err == f"Google Cloud is about to take this machine away ({kind} {value})\n"


def test_a_machine_that_is_moved_stays(metadata, capsys):
    watch = Watch(metadata)
    metadata.wait_until_asked(2)
    for n, value in enumerate(("MIGRATE_ON_HOST_MAINTENANCE", "NONE")):
        metadata.set("maintenance-event", value)
        metadata.wait_until_asked(3 + n)
    assert capsys.readouterr().err == ""
    watch.acts_on_the_next()


def test_a_notice_that_was_there_before_is_said_once(metadata, monkeypatch, capsys):
    """Also where the first answer was of no use, and where the server says that nothing has changed."""
    monkeypatch.setattr(notices, "SECONDS_TO_ANSWER", 0.1)
    metadata.values["maintenance-event"] = TERMINATE
    metadata.odd.append(lambda handler: handler.answer(200, "SOON"))
    watch = Watch(metadata)
    metadata.wait_until_asked(4)
    assert capsys.readouterr().err.startswith(f"{LINE}, as it was before this command began: the run goes on")
    metadata.set("maintenance-event", "NONE")
    metadata.wait_until_asked(len(metadata.asked) + 2)
    assert capsys.readouterr().err == ""
    watch.acts_on_the_next()


def cut_off(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "4000")
    handler.end_headers()
    handler.wfile.write(b"NO")


def elsewhere(handler):
    handler.send_response(302)
    handler.send_header("Location", "/computeMetadata/v1/instance/preempted")
    handler.end_headers()


ODD = {
    "unavailable": lambda handler: handler.send_error(503),
    "unknown": lambda handler: handler.send_error(404),
    "another value": lambda handler: handler.answer(200, "SOON"),
    "elsewhere": elsewhere,
    "no text": lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe"),
    "no HTTP": lambda handler: handler.wfile.write(b"\0" * 50 + b"\r\n\r\n"),
    "nothing": lambda handler: None,
    "cut off": cut_off,
    "silent": lambda handler: time.sleep(60),
    "a notice, with an error": lambda handler: handler.answer(500, TERMINATE),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_what_the_server_may_do_changes_nothing(odd, metadata, monkeypatch, capsys):
    monkeypatch.setattr(notices, "SECONDS_TO_ANSWER", 0.1)
    monkeypatch.setattr(notices, "SECONDS_MORE", 0.2)
    metadata.odd += [ODD[odd]] * 2
    watch = Watch(metadata)
    metadata.wait_until_asked(5)  # the third is the first that is answered, the fourth is told of no change
    assert capsys.readouterr().err == ""
    assert set(metadata.asked) == {"/computeMetadata/v1/instance/maintenance-event"}
    watch.acts_on_the_next()


def test_a_server_that_fails_is_asked_less_and_less_often(metadata, monkeypatch):
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 8:
            raise InterruptedError

    monkeypatch.setattr(notices, "SECONDS_BETWEEN", 1.0)
    monkeypatch.setattr(notices, "SECONDS_TO_ANSWER", 0)
    monkeypatch.setattr(notices.time, "sleep", sleep)
    metadata.odd += [ODD["unavailable"]] * 6
    with pytest.raises(InterruptedError):
        list(notices._answers(metadata.host, "preempted"))
    assert pauses == [2, 4, 8, 16, 30, 30, 1, 1]


def test_no_machine_elsewhere_is_asked(monkeypatch):
    monkeypatch.setattr(preemption, "_here", preemption._Here())
    monkeypatch.setattr(notices, "watch", lambda act: pytest.fail("asked"))
    for name in ("GCE_METADATA_HOST", "TPU_ML_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    preemption._here.pipe = 1
    preemption.heed_notices()
    preemption._here.pipe = None  # nobody has asked to listen, as in the tests of commands
    monkeypatch.setenv("TPU_ML_PLATFORM", "JAX")
    preemption.heed_notices()
