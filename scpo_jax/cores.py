"""The processor cores that this process may use."""

import os
import sys

import jax


def available() -> int:
    """How many there are."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def of_one_device() -> int:
    """How many the only device has, where that is a CPU; else 1."""
    return available() if jax.default_backend() == "cpu" and jax.device_count() == 1 else 1
