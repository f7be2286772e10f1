"""How many programs XLA has compiled, by the thread that asked for them."""

import collections
import functools
import threading

import jax.monitoring

EVENT = "/jax/core/compile/backend_compile_duration"  # also of programs that a cache on disk had

_counts = collections.Counter()  # thread -> programs


def count(thread: int) -> int:
    """Programs that a thread (`threading.get_ident()`) has compiled since anybody first asked."""
    _listen()
    return _counts[thread]


@functools.cache
def _listen() -> None:
    """Once: jax forgets no listener."""
    jax.monitoring.register_event_duration_secs_listener(_note)


def _note(event: str, seconds: float, **details) -> None:
    if event == EVENT:
        _counts[threading.get_ident()] += 1
