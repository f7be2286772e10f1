"""The TPU compiler without a TPU: programs compiled for devices that are described and not there (needs `jax[tpu]`)."""

import importlib.util
import os

import pytest

# no accelerator to ask about itself, and no claim to one: other processes may compile at the same time
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def devices(topology: str) -> list:
    """The devices of a topology such as "v5e:2x4"."""
    from jax.experimental import topologies

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)


def devices_or_skip(topology: str) -> list:
    """The same; skips the test where there is no TPU compiler."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("no TPU compiler (pip install 'scpo_jax[tpu]')")
    return devices(topology)
