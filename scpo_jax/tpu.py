"""The TPU compiler without a TPU: devices that are described and not there, what they hold and how fast they are.

It comes with the package `libtpu` (extra `tpu`) and needs neither a TPU nor a network.
"""

import importlib.util
import math
import os
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scpo_jax.errors import InputError

# no accelerator to ask about itself, and no claim to one: other processes may compile at the same time
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}  # of the compiler's messages
SIZE = r"([\d.]+)([BKMGT])"
# what the compiler says of a program that is too large: needed and available bytes
TOO_LARGE = (
    re.compile(rf"Used {SIZE} of {SIZE} hbm"),
    re.compile(rf"\({SIZE}\) exceeds available HBM \({SIZE}\)"),
)


class Machine(NamedTuple):
    """About what a device can do, for estimates only; a second, in float operations, bytes, cycles and bytes."""

    flops: float  # of matrix products in bfloat16
    memory: float
    clock: float
    interconnect: float  # to all neighbours together


# by `device_kind`; of v4 and 7x a device is a core, half a chip
MACHINES = {
    "TPU v4": Machine(137.5e12, 614e9, 1.05e9, 150e9),
    "TPU v5 lite": Machine(197e12, 819e9, 1.5e9, 200e9),
    "TPU v5": Machine(459e12, 2765e9, 1.75e9, 600e9),
    "TPU v6 lite": Machine(918e12, 1640e9, 1.75e9, 448e9),
    "TPU7x": Machine(1153e12, 3690e9, 2.2e9, 600e9),
}


def devices(topology: str) -> list:
    """The devices of a slice such as "v5e:2x4", for which programs can be compiled. Raises InputError."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("there is no TPU compiler here: pip install -e '.[tpu]'")
    from jax.experimental import topologies

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    chips = [int(number) for number in re.findall(r"\d+", topology.partition(":")[2])]
    # a host has four chips unless this says otherwise
    bounds = {"chips_per_host_bounds": [*chips, 1, 1][:3]} if 0 < math.prod(chips) < 4 and chips else {}
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **bounds)
    except Exception as error:  # the plugin's own errors, by what is wrong with the name
        raise InputError(
            f"--topology={topology}: {str(error).splitlines()[0]}; a topology is a kind of TPU and the chips along "
            "each axis, like v5e:2x4, v6e:4x4, v5p:2x2x2, v4:2x2x1 or tpu7x:2x2x1"
        ) from error
    return list(described.devices)


def describe(slice_devices: list) -> dict:
    """Kind of the devices, how many there are, how many of them a chip has and how many cores each of them."""
    chips = {tuple(device.coords) for device in slice_devices}
    return {
        "device_kind": slice_devices[0].device_kind,
        "devices": len(slice_devices),
        "devices_per_chip": len(slice_devices) // len(chips),
        "cores_per_device": getattr(slice_devices[0], "num_cores", 1) or 1,
    }


def capacity(device) -> int:
    """Bytes of a device's memory that programs can have: what the compiler says to one that is far too large."""
    place = jax.sharding.SingleDeviceSharding(device)
    try:
        jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((2**40,), jnp.float32, sharding=place)).compile()
    except jax.errors.JaxRuntimeError as error:
        if found := too_large(str(error)):
            return found[1]
        raise
    raise ValueError(f"the compiler knows no limit of the memory of {device.device_kind}")


def too_large(message: str) -> tuple[int, int] | None:
    """(needed, available) bytes of a compiler's RESOURCE_EXHAUSTED message; None of any other message."""
    for pattern in TOO_LARGE:
        if found := pattern.search(message):
            needed, unit, available, other = found.groups()
            return int(float(needed) * UNITS[unit]), int(float(available) * UNITS[other])
    return None
