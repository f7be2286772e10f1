"""What a compiled program costs, read off the text of its HLO module: cycles, products and bytes between devices.

XLA's own sums count the body of a loop once, however often it runs. Here a loop counts as often as it runs: as its text
says (CPU) or as the caller says by `trips`, which maps a regular expression to a count; the first one found in the
loop's `op_name` holds, and a loop that none is found in is an error. Our models have one loop over the layers forward
and one backward, so `{"": layers}` will do for them.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
CALLED = re.compile(r"\b(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)")
BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str  # as written: "f32[8,128]{1,0}", or a tuple of such in parentheses
    opcode: str
    operands: tuple[str, ...]  # names
    attributes: str  # what follows the operands


class Module(NamedTuple):
    """The computations by name; each holds its instructions by name."""

    entry: str
    computations: dict[str, dict[str, Instruction]]


def parse(text: str) -> Module:
    """The module of `compiled.as_text()`."""
    entry, computations, current = "", {}, None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) (?:\(.*\) -> .*)?\{$", line)
        if head:
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := parse_instruction(line)):
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation: not the text of an HLO module")
    return Module(entry, computations)


def parse_instruction(line: str) -> Instruction | None:
    """`  %name = shape opcode(operands), attributes`; None for any other line."""
    match = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\(", line)
    if not match:
        return None
    end = closing(line, match.end())
    operands = re.findall(r"%?([\w.-]+)\s*(?:,|$)", line[match.end() : end])
    return Instruction(match[1], match[2], match[3], tuple(operands), line[end + 1 :])


def closing(line: str, start: int) -> int:
    """Where the parenthesis opened before `start` closes."""
    depth = 1
    for place in range(start, len(line)):
        depth += {"(": 1, ")": -1}.get(line[place], 0)
        if depth == 0:
            return place
    return len(line)


def trip_count(loop: Instruction, trips: Mapping[str, int]) -> int:
    """How often a loop's body runs; raises ValueError where neither the text nor `trips` says."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if known:
        return int(known[1])
    place = re.search(r'op_name="([^"]*)"', loop.attributes)
    found = [count for pattern, count in trips.items() if re.search(pattern, place[1] if place else "")]
    if not found:
        raise ValueError(f"no trip count for the loop {loop.name} ({place[1] if place else 'without op_name'})")
    return found[0]


def executed(module: Module, trips: Mapping[str, int]) -> Iterator[tuple[Instruction, str, int]]:
    """Every instruction with its computation's name and how often it runs, once for each place it is called from.

    Of a conditional all branches count. What a fusion holds is left out: see `inside`.
    """

    def walk(name, times):
        for instruction in module.computations[name].values():
            yield instruction, name, times
            if instruction.opcode not in ("fusion", "async-update", "async-done"):  # the latter repeat their start's
                count = trip_count(instruction, trips) if instruction.opcode == "while" else 1
                for callee in called(instruction):
                    yield from walk(callee, times * count)

    return walk(module.entry, 1)


def called(instruction: Instruction) -> list[str]:
    """The computations that an instruction calls."""
    branches = BRANCHES.search(instruction.attributes)
    more = re.findall(r"[\w.-]+", branches[1]) if branches else []
    return CALLED.findall(instruction.attributes) + more


def inside(module: Module, instruction: Instruction, name: str) -> Iterator[tuple[Instruction, str]]:
    """An instruction of the computation `name`, or those that it fuses, each with its computation's name."""
    if instruction.opcode != "fusion":
        yield instruction, name
        return
    for callee in called(instruction):
        for fused in module.computations[callee].values():
            yield from inside(module, fused, callee)


def cycles(module: Module, trips: Mapping[str, int], kernels: Mapping[str, int] | None = None) -> int:
    """The compiler's `estimated_cycles` of a TPU program.

    It estimates no Pallas kernel: `kernels` maps a regular expression, to be found in a kernel call's line, to the
    cycles of one call. Raises ValueError for a kernel without any: it must not pass for free.
    """
    total = 0
    for instruction, _, times in executed(module, trips):
        estimate = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        if 'custom_call_target="tpu_custom_call"' in instruction.attributes:
            line = f"{instruction.name} {instruction.attributes}"
            found = [count for pattern, count in (kernels or {}).items() if re.search(pattern, line)]
            if not found:
                raise ValueError(f"no cycles for the kernel call {instruction.name}")
            total += times * found[0]
        elif estimate:
            total += times * int(estimate[1])
    return total


def kernels(module: Module, trips: Mapping[str, int]) -> Iterator[tuple[int, int, int]]:
    """(float operations, bytes moved, how often) of each kernel call, Pallas or the compiler's own.

    Raises ValueError for a kernel of which this is not known: it must not pass for free.
    """
    for instruction, name, times in executed(module, trips):
        if 'custom_call_target="tpu_custom_call"' in instruction.attributes:
            computation = module.computations[name]
            operations = flops(computation, instruction)
            if not operations:
                raise ValueError(f"the kernel call {instruction.name} does not state what it costs")
            moved = re.search(r'"bytes_accessed":"?(\d+)', instruction.attributes)
            shapes = [computation[operand].shape for operand in instruction.operands] + [instruction.shape]
            yield operations, int(moved[1]) if moved else sum(map(sum, map(array_bytes, shapes))), times


def collective_bytes(module: Module, trips: Mapping[str, int]) -> dict[str, int]:
    """Bytes that each kind of collective moves on one device, of its input or output the larger; only kinds that occur.

    An asynchronous one counts at its start. One that TPUs run beside other work stands in the fusion that starts it,
    in those it runs beside and in the one that waits for it; it counts once, known by its channel.
    """
    total, seen = Counter(), set()
    for outer, computation, times in executed(module, trips):
        for instruction, name in inside(module, outer, computation):
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            if outer.opcode == "fusion" and channel:
                if (computation, channel[1]) in seen:
                    continue
                seen.add((computation, channel[1]))
            total[kind] += times * payload(module.computations[name], instruction)
    return dict(total)


def payload(computation: Mapping[str, Instruction], collective: Instruction) -> int:
    """The bytes of a collective's input or output, whichever are more."""
    given = sum(sum(array_bytes(computation[name].shape)) for name in collective.operands if name in computation)
    arrays = array_bytes(collective.shape)
    if collective.opcode in ("all-gather-start", "collective-permute-start"):  # (inputs, outputs, two numbers or none)
        return max(given, sum(arrays[: 2 * len(collective.operands)]) - given)
    return max(given, sum(arrays))


def arrays_of(shape: str) -> list[tuple[str, list[int]]]:
    """The arrays of a shape or tuple of shapes: type and dimensions."""
    return [
        (kind, [int(n) for n in dims.split(",") if n]) for kind, dims in re.findall(r"([a-z]\w*)\[([\d,]*)\]", shape)
    ]


def array_bytes(shape: str) -> list[int]:
    """Bytes of each array; a width is the first number in the name of a type, but for pred."""
    widths = ((re.search(r"\d+", kind), dims) for kind, dims in arrays_of(shape))
    return [-(-math.prod(dims) * (int(width[0]) if width else 8) // 8) for width, dims in widths]


def product_flops(module: Module, trips: Mapping[str, int]) -> int:
    """Floating point operations of matrix products, with loops counted as often as they run.

    Those of `dot` and `convolution`, which TPUs turn products into, and what a Pallas kernel states of itself. A
    program's elementwise work is not in it.
    """
    return sum(
        times * flops(module.computations[name], instruction)
        for outer, computation, times in executed(module, trips)
        for instruction, name in inside(module, outer, computation)
    )


def flops(computation: Mapping[str, Instruction], instruction: Instruction) -> int:
    """Floating point operations of one `dot`, `convolution` or kernel; 0 for any other instruction."""
    stated = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', instruction.attributes)
    if stated:
        return int(stated[1])
    # a kernel of the compiler's own: scores [..., T, T] -> weights @ value [..., T, K]
    if instruction.name.startswith("online-softmax"):
        scores, mixed = computation[instruction.operands[0]].shape, instruction.shape
        return 2 * math.prod(arrays_of(scores)[0][1]) * arrays_of(mixed)[0][1][-1]
    if instruction.opcode not in ("dot", "convolution"):
        return 0
    left, right = (arrays_of(computation[name].shape)[0][1] for name in instruction.operands)
    result = arrays_of(instruction.shape)[0][1]
    if instruction.opcode == "convolution":
        return convolution_flops(left, right, result, instruction.attributes)
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    return 2 * math.prod(result) * math.prod(left[int(axis)] for axis in contracted[1].split(",") if axis)


def convolution_flops(left: list[int], right: list[int], result: list[int], attributes: str) -> int:
    """Counts only where the window is on the input: TPUs write batched products as convolutions that are mostly off."""
    label = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    window = dict(re.findall(r"(\w+)=([\w-]+)", (re.search(r"window=\{([^}]*)\}", attributes) or [0, ""])[1]))
    groups = re.search(r"batch_group_count=(\d+)", attributes)
    count = right[label[2].index("i")] * right[label[2].index("o")] * left[label[1].index("b")]
    count //= int(groups[1]) if groups else 1
    for axis in range(len(label[1]) - 2):
        size, kernel, steps = (
            dims[labels.index(str(axis))] for dims, labels in zip((left, right, result), label.groups(), strict=True)
        )
        numbers = {key: value.split("x")[axis] for key, value in window.items()}
        stride, spread, dilate = (int(numbers.get(key, 1)) for key in ("stride", "lhs_dilate", "rhs_dilate"))
        first = int(numbers.get("pad", "0_0").split("_")[0])
        place = np.arange(steps)[:, None] * stride + np.arange(kernel)[None] * dilate - first
        count *= int(np.sum((place >= 0) & (place <= (size - 1) * spread) & (place % spread == 0)))
    return 2 * count
