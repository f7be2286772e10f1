"""What a program compiled for a TPU holds, moves and computes, read from the compiler's own text.

Everything is per device. A collective counts with the bytes of its whole array (what is gathered, or to be reduced).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from scpo_jax import hlo, tpu
from scpo_jax.tpu import Machine

KERNEL_SHARE = 0.28  # of a device's peak that the attention kernel reaches, see tests/bench/attention_cost.py
PRODUCT_SHARE = 0.4  # assumed of all products where the compiler estimates no cycles
UNKNOWN = 2**62  # cycles of an instruction that the compiler has no estimate for: the largest number it can write
FLOAT32_PASSES = 6  # products in bfloat16 that one of float32 takes in a kernel
SENT = {"all-reduce": 2}  # how often the bytes of a collective pass the interconnect, else once
BASIS = (
    "the compiler's cycles for all but the attention kernel, that one at "
    f"{KERNEL_SHARE:.0%} of the device's peak (where the compiler has no cycles, as for parts of TPU7x programs, "
    f"products at {PRODUCT_SHARE:.0%}), collectives at the interconnect's peak, nothing beside anything else"
)


class Cost(NamedTuple):
    """A program on one device."""

    fits: bool
    hbm_bytes: int  # all that is in memory while it runs
    arguments: int
    kept: int  # in memory besides: the best parameters so far, the model that all started from, a training
    temporary: int  # and results that do not take the place of arguments, and the program itself
    flops: int  # of matrix products; of a program that the compiler refuses it is not known, nor what follows
    collectives: dict[str, int]
    seconds: float | None = None  # an estimate; None for a device that no peak is known of


class Device(NamedTuple):
    """What programs are compiled for."""

    capacity: int
    machine: Machine | None
    trips: dict[str, int]  # of the model's loops, see `hlo`
    dtype: str


class Program(NamedTuple):
    """A program to compile."""

    key: object  # what tells programs apart
    lower: Callable  # () -> the program, lowered
    arguments: int  # bytes
    kept: int  # bytes that are in memory besides
    trips: dict[str, int] | None = None  # of its loops, where they are not those of the reward model


def cost_of(program: Program, device: Device) -> Cost:
    """Compiles a program and reads what it costs; one that is too large for the compiler does not fit."""
    try:
        compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        needed = tpu.too_large(str(error))
        if not needed:
            raise
        return Cost(False, needed[0], program.arguments, 0, max(needed[0] - program.arguments, 0), 0, {})
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporary = memory.temp_size_in_bytes + results + memory.generated_code_size_in_bytes
    text, device = hlo.parse(compiled.as_text()), device._replace(trips=program.trips or device.trips)
    collectives = hlo.collective_bytes(text, device.trips)
    # with the padding of the device's layout, and with arguments that the program does not read
    arguments = max(memory.argument_size_in_bytes, program.arguments)
    return Cost(
        True, arguments + temporary, arguments, 0, temporary,
        hlo.product_flops(text, device.trips), collectives, seconds(text, collectives, device),
    )  # fmt: skip


def seconds(program: hlo.Module, collectives: dict[str, int], device: Device) -> float | None:
    """The time that a program takes, estimated by `BASIS`."""
    machine = device.machine
    if machine is None:
        return None
    passes = FLOAT32_PASSES if device.dtype == "float32" else 1
    kernels, inside = 0.0, 0
    for flops, moved, times in hlo.kernels(program, device.trips):
        kernels += times * max(passes * flops / (machine.flops * KERNEL_SHARE), moved / machine.memory)
        inside += times * flops
    sent = sum(SENT.get(kind, 1) * moved for kind, moved in collectives.items())
    rest = hlo.cycles(program, device.trips, {"": 0}) / machine.clock
    if rest > UNKNOWN / machine.clock:
        rest = passes * (hlo.product_flops(program, device.trips) - inside) / (machine.flops * PRODUCT_SHARE)
    return rest + kernels + sent / machine.interconnect


def with_kept(cost: Cost, kept: int, capacity: int) -> Cost:
    """The cost where so many bytes more are in memory."""
    total = cost.hbm_bytes + kept
    return cost._replace(kept=kept, hbm_bytes=total, fits=cost.fits and total <= capacity)


def verdict(cost: Cost) -> str:
    return f"{cost.hbm_bytes / 2**30:.2f} GiB" + ("" if cost.fits else ", does not fit")


def bytes_of(tree) -> int:
    """Bytes of a tree of array shapes on one device."""

    def own(leaf) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(own(leaf) for leaf in jax.tree.leaves(tree))


def lowering(function, *arguments) -> Callable:
    return lambda: function.lower(*arguments)
