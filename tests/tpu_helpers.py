"""The TPU compiler in tests: devices that are described and not there (needs `jax[tpu]`)."""

import importlib.util

import pytest

from scpo_jax.tpu import devices


def devices_or_skip(topology: str) -> list:
    """The devices of a topology such as "v5e:2x4"; skips the test where there is no TPU compiler."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("no TPU compiler (pip install 'scpo_jax[tpu]')")
    return devices(topology)
