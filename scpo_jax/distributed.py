"""Several processes as one: they find each other, wait for each other, agree, and end together.

All of them run the same program in the same order; process 0 alone decides and writes. With one process, which is
what there is unless `initialize` finds more, nothing here waits or talks to anybody.
"""

import ctypes
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

from scpo_jax.errors import InputError

SECONDS_TO_MEET = 300  # until all processes have been started
SECONDS_AT_BARRIER = 3600  # longer than process 0 works alone while the others wait
SECONDS_TO_HEAR = 10  # until all processes know that one has failed
MILLISECONDS_FOR_EVER = 10**9
SECONDS_TO_LEAVE = 3  # until a process that knows it has left: jax aborts one that outlives process 0
END = "scpo/end"  # key under which a process says that, and why, all have to end
DOOR = "scpo/door"  # key of a port of process 0, see _join


class PeerError(Exception):
    """Another process did not do its part: which, and what was waited for, in one line."""


class _Here:
    """This process among all."""

    def __init__(self):
        self.index, self.count, self.client, self.watcher = 0, 1, None, None
        self.door = self.line = None  # of process 0: a socket; of the others: the thread at their connection to it
        self.calls, self.ending = itertools.count(), threading.Lock()
        self.heard = self.finished = False  # why all have to end; that all have done their part


_here = _Here()


def initialize(coordinator: str | None, processes: int | None, process: int | None, heartbeat_seconds: int) -> None:
    """Joins the other processes: those that the flags name, else those of the TPU pod, else none.

    To be called once, before anything is computed. `heartbeat_seconds`: a process silent for so long is lost, and all
    end. Raises InputError.
    """
    _check_flags(coordinator, processes, process)
    import jax  # sets TPU_ML_PLATFORM on a machine with TPUs

    if processes == 1 or (coordinator is None and "TPU_ML_PLATFORM" not in os.environ):
        return
    who = "the processes" if processes is None else f"process {process} of {processes}"
    lost = f"{who} did not meet at {coordinator or 'the coordinator of the pod'} within {SECONDS_TO_MEET} s: were all "
    alarm = threading.Timer(SECONDS_TO_MEET, _leave, [f"{lost}started, with the same --coordinator?", 1])
    alarm.daemon = True  # jax itself aborts with a stack trace
    alarm.start()
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself, see preemption.py
    limits = {"initialization_timeout": SECONDS_TO_MEET + 60, "heartbeat_timeout_seconds": heartbeat_seconds}
    named = {} if coordinator is None else {"cluster_detection_method": "deactivate"}
    try:
        jax.distributed.initialize(coordinator, processes, process, **named, **limits)
    except ValueError:  # no pod: a TPU host for itself
        if coordinator is not None:
            raise
        return
    except RuntimeError as error:
        raise InputError(f"--coordinator={coordinator}: {str(error).splitlines()[0]}") from error
    finally:
        alarm.cancel()
    _join()


def _check_flags(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Refuses flags that do not go together."""
    if (coordinator, processes, process) == (None, None, None):
        return
    if None in (coordinator, processes, process):
        raise InputError("--coordinator=HOST:PORT, --processes=N and --process=I go together: give all three or none")
    if not re.fullmatch(r".+:\d{1,5}", coordinator) or not 0 < int(coordinator.rpartition(":")[2]) < 1 << 16:
        raise InputError(f"--coordinator={coordinator}: it is HOST:PORT of process 0, such as 10.0.0.1:8476")
    if processes < 1 or not 0 <= process < processes:
        raise InputError(f"--process={process} --processes={processes}: processes are numbered from 0 to N - 1")


def _join() -> None:
    """Takes part, and listens for the end.

    Each process holds a connection to a door of process 0, where nobody is let in: it breaks at once when process 0 is
    gone, and through it process 0 says who else is. By then jax's own client may be busy aborting its process.
    """
    import jax
    from jax._src import distributed  # the key-value store and barriers with a time limit have no public name

    _here.index, _here.count, _here.client = jax.process_index(), jax.process_count(), distributed.global_state.client
    if _here.count == 1:
        return
    _delay_abort()
    if is_writer():
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        _here.door = socket.create_server(("", 0), family=family, backlog=_here.count, dualstack_ipv6=dual)
        tell(DOOR, str(_here.door.getsockname()[1]))
        threading.Thread(target=_watch_others, daemon=True).start()
    else:
        host = distributed.global_state.coordinator_address.rpartition(":")[0].strip("[]")
        _here.line = threading.Thread(target=_watch_writer, args=[host], daemon=True)
        _here.line.start()
    _here.watcher = threading.Thread(target=_watch, daemon=True)
    _here.watcher.start()


def _delay_abort() -> None:
    """Gives this process 6 s to say why jax aborts it: a thread of jax's does so that waits for no other.

    The handler of SIGABRT is the system's sleep, called with the signal's number; the abort goes on when it returns.
    """
    system = ctypes.CDLL(None)
    system.signal.argtypes = ctypes.c_int, ctypes.c_void_p
    system.signal.restype = ctypes.c_void_p
    system.signal(signal.SIGABRT, ctypes.cast(system.sleep, ctypes.c_void_p))


def count() -> int:
    """Number of processes."""
    return _here.count


def index() -> int:
    """Which of them this is."""
    return _here.index


def is_writer() -> bool:
    """Whether this is process 0, the only one that writes and speaks."""
    return _here.index == 0


def barrier(name: str, seconds: float | None = None) -> None:
    """Waits until every process has come here. Raises PeerError after `seconds`, which says who is missing."""
    if _here.count > 1:
        _wait(f"scpo/{next(_here.calls)}/{name}", name, SECONDS_AT_BARRIER if seconds is None else seconds)


def _wait(key: str, name: str, seconds: float) -> None:
    try:
        _here.client.wait_at_barrier(key, int(1000 * seconds))
    except RuntimeError as error:
        missing = re.findall(r"^(?:.*task:)?(\d+)$", str(error).partition("timed out task names:")[2], re.MULTILINE)
        who = f"process {', '.join(missing)} did not come" if missing else str(error).splitlines()[0]
        if lost := _lost_in(error):
            raise PeerError(f"process {lost} is lost, at {name!r}: it sent no heartbeat") from error
        raise PeerError(f"waited {seconds:g} s for all {_here.count} processes at {name!r}: {who}") from error


def gather(name: str, value) -> list:
    """The JSON `value` of every process, on every process."""
    if _here.count == 1:
        return [value]
    key = f"scpo/{next(_here.calls)}/{name}"
    _wait(key, name, SECONDS_AT_BARRIER)
    return exchange(key, value)


def exchange(key: str, value) -> list:
    """The JSON `value` of every process under a key that is used once; of any thread, if all are about to call it."""
    if _here.count == 1:
        return [value]
    _here.client.key_value_set(f"{key}/{_here.index}", json.dumps(value))
    return [json.loads(_here.client.blocking_key_value_get(f"{key}/{i}", 60_000)) for i in range(_here.count)]


def tell(key: str, value: str) -> None:
    """Lets all processes `hear` a value; that of the first one to tell counts."""
    try:
        _here.client.key_value_set(key, value)
    except RuntimeError:  # another process was first
        pass


def hear(key: str) -> str | None:
    """What a process tells under a key, waited for; None where process 0 is gone."""
    while True:
        try:
            return _here.client.blocking_key_value_get(key, 3_600_000)
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                return None


def on_writer(name: str, function: Callable[[], object]):
    """The JSON value that `function` returns on process 0, which alone calls it, on every process."""
    if _here.count == 1:
        return function()
    return gather(name, function() if is_writer() else None)[0]


def check_same(what: str, value) -> None:
    """Refuses processes that are not of one mind: `value`, JSON, differs."""
    values = gather(what, value)
    others = [str(i) for i, other in enumerate(values) if other != values[0]]
    if others:
        raise InputError(f"{what} of process {', '.join(others)} differs from that of process 0: start all alike")


def summed(array: np.ndarray) -> np.ndarray:
    """The sum over processes of arrays of one shape, the same bits on every process."""
    if _here.count == 1:
        return array
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array)).sum(0, dtype=array.dtype)


def fail(line: str, code: int) -> int:
    """Says why the command ends, and ends every process with the exit code; one alone goes on and gets it back.

    Each process says it once, also where two of them fail at the same time: the others add who said it.
    """
    if _here.count > 1 and not _here.ending.acquire(blocking=False):
        threading.Event().wait()  # another thread is ending this process
    print(f"scpo: {line}", file=sys.stderr, flush=True)
    if _here.count == 1:
        return code
    named = re.sub("^(error: )?", rf"\1process {_here.index}: ", line)
    tell(END, json.dumps({"line": named, "code": code}))
    _here.watcher.join(SECONDS_TO_HEAR)  # it hears that; or process 0 is lost, which is why this one fails, and is said
    _leave_together(code)
    return code


def end(line: str, code: int) -> None:
    """Says why and ends every process at once, from any thread."""
    _leave("", fail(line, code))


def finish() -> None:
    """Waits for all processes at the end of a command, then ends this one; one alone goes on."""
    if _here.count == 1:
        return
    import jax

    barrier("the end")
    _here.finished = True
    if is_writer():
        tell(END, json.dumps({"line": "", "code": 0}))
    _here.watcher.join(SECONDS_TO_HEAR)
    jax.distributed.shutdown()
    _leave("", 0)


def _watch() -> None:
    """Ends this process, whatever it is waiting for, when another one has failed."""
    heard = hear(END)
    if heard is None:
        if _here.line:
            _here.line.join(SECONDS_TO_LEAVE)  # it may know better
        if not _here.finished:
            _leave("process 0 is lost", 1)
        return
    _here.heard = True
    told = json.loads(heard)
    if told["code"] and _here.ending.acquire(blocking=False):
        print(f"scpo: {told['line']}", file=sys.stderr, flush=True)
        _leave_together(told["code"])


def _watch_others() -> None:
    """Ends process 0, and so all, when another one is silent: it waits where nobody else comes."""
    try:
        _here.client.wait_at_barrier("scpo/nobody", MILLISECONDS_FOR_EVER)
    except RuntimeError as error:
        if (lost := _lost_in(error)) and not _here.finished:
            line = f"process {lost} is lost: it sent no heartbeat"
            _tell_at_door(f"process 0: {line}")
            _leave(line, 1)


def _tell_at_door(line: str) -> None:
    """Says a last line to all others, in their connections; they end with process 0."""
    _here.door.setblocking(False)
    while True:
        try:
            _here.door.accept()[0].sendall(line.encode())
        except OSError:  # nobody else is there
            return


def _watch_writer(host: str) -> None:
    """Ends this process when process 0 ends before its time; says what process 0 had to say of that."""
    port, said = hear(DOOR), b""
    try:
        line = socket.create_connection((host, int(port or 0)), SECONDS_TO_HEAR)
    except OSError:  # only the coordinator's port can be reached
        return
    line.settimeout(None)
    try:
        while more := line.recv(4096):
            said += more
    except OSError:
        pass
    if not _here.heard and not _here.finished:
        _leave(said.decode() or "process 0 is lost", 1)


def _lost_in(error: RuntimeError) -> str:
    """Which process an error of the transport says is lost; "" where it says nothing of the kind."""
    found = re.search(r"Task (\d+) heartbeat timeout", str(error))
    return found.group(1) if found else ""


def _leave_together(code: int) -> None:
    """Ends this process; process 0, through which the others hear of it, after they have ended."""
    heard = f"{END} heard/"
    tell(f"{heard}{_here.index}", "")
    silent = [i for i in range(1, _here.count) if not _has_told(f"{heard}{i}")] if is_writer() else []
    if silent:
        _leave(f"process {', '.join(map(str, silent))} is lost: it does not answer", code)
    if is_writer():
        time.sleep(SECONDS_TO_LEAVE)
    _leave("", code)


def _has_told(key: str) -> bool:
    """Whether something is told under a key soon."""
    try:
        _here.client.blocking_key_value_get(key, 1000 * SECONDS_TO_HEAR)
    except RuntimeError:
        return False
    return True


def _leave(line: str, code: int) -> None:
    """Ends this process at once: the usual way waits for the other processes, and for what other threads do."""
    if line:
        print(f"scpo: error: {line}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
