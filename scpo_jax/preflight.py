"""`scpo preflight`: compiles a run's programs for a TPU slice that is not there; what they hold, move and compute.

Everything is per device. A collective counts with the bytes of its whole array (what is gathered, or to be reduced).
"""

import concurrent.futures
import math
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scpo_jax import (
    adapters,
    configuration,
    hlo,
    logs,
    policy_preflight,
    score,
    sharding,
    tpu,
    train_step,
    trainer,
    workload,
)  # fmt: skip
from scpo_jax.models import module
from scpo_jax.models.module import TextBatch
from scpo_jax.plan import about
from scpo_jax.tables import table
from scpo_jax.tpu import Machine
from scpo_jax.workdir import Workdir, check_place

KERNEL_SHARE = 0.28  # of a device's peak that the attention kernel reaches, see tests/bench/attention_cost.py
PRODUCT_SHARE = 0.4  # assumed of all products where the compiler estimates no cycles
UNKNOWN = 2**62  # cycles of an instruction that the compiler has no estimate for: the largest number it can write
MOST_AT_ONCE = 8  # programs compiled at once, each takes a core and some GiB of this machine's memory
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


def show(config, topology: str, output: str) -> bool:
    """Prints what the programs of a run take on a slice, writes it to `output`; whether all fit. Raises InputError."""
    configuration.check(config)
    if output:
        check_place(pathlib.Path(output).parent, "--output")
    jax.config.update("jax_platforms", "cpu")  # the slice is only described: whatever is here is left alone
    devices = tpu.devices(topology)
    mesh = sharding.make_mesh(config.mesh.group, config.mesh.data, config.mesh.model, devices)
    material = workload.collect(config)
    facts = {"topology": topology, **tpu.describe(devices), "mesh": dict(mesh.shape), "lengths": material.source}
    layers = module.read_settings(material.model.config, "config").num_hidden_layers
    machine = tpu.MACHINES.get(facts["device_kind"])
    loop = {"": layers - 1}  # the last layer stands after it
    device = Device(tpu.capacity(devices[0]), machine, loop, config.model.dtype)
    works = workload.trainings_of(config, material, mesh), workload.scorings_of(material)
    programs = programs_of(config, material, mesh, *works)
    if config.policy.steps:
        programs |= {
            name: Program(name, own.lower, bytes_of(own.arguments), bytes_of(own.kept), own.trips)
            for name, own in policy_preflight.programs_of(config, mesh).items()
        }
    logs.say(f"preflight: {len(programs)} programs to compile for {topology}; each takes a minute or more")
    costs = compile_all(programs, device)
    facts |= {"fill": {work.name: round(work.fill, 4) for group in works for work in group}}
    facts |= estimates(costs, *works)
    print(report(facts, costs, device.capacity))
    unfit = {name: cost for name, cost in costs.items() if not cost.fits}
    if unfit:
        print(
            f"\nIt does not fit: {', '.join(unfit)}.\n"
            + "\n".join(advice(config, unfit, works[0], mesh, device.capacity))
        )
    if output:
        Workdir.write_json(pathlib.Path(output), {"fits": not unfit, **facts, "programs": entries(costs, device)})
    return not unfit


def compile_all(programs: dict[str, Program], device: Device) -> dict[str, Cost]:
    """The cost of every program; says of each when it is known. As many are compiled at once as there are cores."""
    costs = {}
    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_AT_ONCE)) as pool:
        compiled = {}
        for program in programs.values():
            if program.key not in compiled:
                compiled[program.key] = pool.submit(cost_of, program, device)
        for name, program in programs.items():
            costs[name] = with_kept(compiled[program.key].result(), program.kept, device.capacity)
            logs.say(f"preflight: {len(costs)} of {len(programs)}, {name}: {verdict(costs[name])}")
    return costs


def programs_of(config, material, mesh: Mesh, trainings, scorings) -> dict[str, Program]:
    """The programs of a run by name: of each training its optimizer's state and its steps, and of the scoring."""
    programs, held, adapted = {}, 0, adapters.adapted(config, material.model)
    models = {workload.GLOBAL: material.model, workload.HEADS: workload.with_heads(adapted, material)}
    for work in trainings:
        model = models.get(work.name, adapted)
        # a model with adapters starts from the host, see `adapters.load_to_train`
        start = 0 if model.lora else bytes_of(module.abstract_params(model))
        compiled = trainer.make_program(config, model, mesh, work.options)
        steps = {
            f"{work.name} {rows}x{tokens}": train_step.step_arguments(
                compiled, model, work.groups, work.pairs, (rows, tokens)
            )
            for rows, tokens in work.shapes
        }
        params, state, *_ = next(iter(steps.values()))
        kept = start + bytes_of(params) * work.validates
        held = max(held, bytes_of((params, state, compiled.frozen)) + kept)
        name = f"optimizer of {work.name}"
        programs[name] = Program(
            name, lowering(compiled.init, params), bytes_of(params), kept + bytes_of(compiled.frozen)
        )
        for name, arguments in steps.items():
            programs[name] = Program(name, lowering(compiled.step, *arguments), bytes_of(arguments), kept)
    devices = list(mesh.devices.flat)
    for work in scorings:
        model = adapted if work.name == "validate" else material.model
        for shape, slots in work.batches:
            arguments, lower = score_program(model, trainings[0].options.dtype, devices, shape, slots)
            name = f"{work.name} {shape[0]}x{shape[1]}, {slots} scores"
            kept = held if work.name == "validate" else 0
            programs[name] = Program((model.structure, shape, slots), lower, bytes_of(arguments), kept)
    return programs


def lowering(function, *arguments) -> Callable:
    return lambda: function.lower(*arguments)


def score_program(model, dtype: str, devices: list, shape, slots: int) -> tuple[tuple, Callable]:
    """The arguments of the scoring of a batch, as shapes on as many devices as a process has, and what lowers it.

    One device stands for all where each holds the whole model. The devices are the first ones of the slice, and not
    those of one process: given part of a slice the compiler aborts over any others.
    """
    shared = score.is_shared(score.shapes_of(model, dtype))
    of_process = sum(device.process_index == devices[0].process_index for device in devices)
    own = sorted(devices, key=lambda device: device.id)[: of_process if shared else 1]
    function = score.score_function(model, dtype, own)
    alone = sharding.make_mesh(1, 1, 1, own[:1])
    place = NamedSharding(function.mesh, P("data")) if function.mesh else NamedSharding(alone, P())
    many = (len(own),) if function.mesh else ()

    def array(*shape):
        return jax.ShapeDtypeStruct((*many, *shape), jnp.int32, sharding=place)

    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or place), function.params
    )
    arguments = params, TextBatch(*[array(*shape)] * 4, *[array(slots)] * 2)

    def lower():
        with jax.set_mesh(function.mesh or alone):  # the model asks it which kernels there are
            return function.compiled.lower(*arguments)

    return arguments, lower


def bytes_of(tree) -> int:
    """Bytes of a tree of array shapes on one device."""

    def own(leaf) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(own(leaf) for leaf in jax.tree.leaves(tree))


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


def estimates(costs: dict[str, Cost], trainings, scorings) -> dict:
    """Estimated seconds: of each training's mean step, and of all the trainings and the scoring of a run."""
    steps, total = {}, 0.0
    for work in trainings:
        own = [(count, costs[f"{work.name} {r}x{t}"].seconds) for (r, t), count in work.shapes.items()]
        if any(time is None for _, time in own):
            return {"estimated_step_seconds": None, "estimated_run_seconds": None, "estimate": "none"}
        seconds = sum(count * time for count, time in own)
        steps[work.name] = seconds / sum(work.shapes.values())
        total += seconds * work.times
    for (shape, slots), count in scorings[0].batches.items():
        total += count * (costs[f"score {shape[0]}x{shape[1]}, {slots} scores"].seconds or math.nan)
    total = None if math.isnan(total) else total
    return {"estimated_step_seconds": steps, "estimated_run_seconds": total, "estimate": BASIS}


def report(facts: dict, costs: dict[str, Cost], capacity: int) -> str:
    """The table of programs, with what holds for all of them before and after it."""
    kinds = [kind for kind in hlo.COLLECTIVES if any(kind in cost.collectives for cost in costs.values())]
    header = ["program", "arguments", "kept", "temporary", "total GiB", "fits", "TFLOP", *kinds, "ms (estimate)"]
    rows = []
    for name, cost in costs.items():
        sizes = (cost.arguments, cost.kept, cost.temporary, cost.hbm_bytes)
        moved = [f"{cost.collectives.get(kind, 0) / 2**20:.1f}" for kind in kinds]
        time = "-" if cost.seconds is None else f"{1000 * cost.seconds:.1f}"
        done = [f"{cost.flops / 1e12:.3f}", *moved, time]
        rows.append([name, *(f"{size / 2**30:.2f}" for size in sizes), "yes" if cost.fits else "NO", *done])
    mesh = ", ".join(f"{axis} {size}" for axis, size in facts["mesh"].items())
    cores = f" of {facts['cores_per_device']} cores" if facts["cores_per_device"] > 1 else ""
    fill = ", ".join(f"{name} {100 * share:.1f} %" for name, share in facts["fill"].items())
    lines = [
        f"{facts['topology']}: {facts['devices']} devices ({facts['device_kind']}), {facts['devices_per_chip']} a "
        f"chip{cores}; mesh {mesh}. A device has {capacity / 2**30:.2f} GiB.",
        "Memory in GiB and collectives in MiB, of one device and one step or batch; kept: what is in memory beside.\n",
        table(header, rows),
        f"\nReal tokens of all computed: {fill}; lengths from {facts['lengths']}.",
    ]
    if facts["estimated_step_seconds"]:
        steps = ", ".join(f"{name} {1000 * s:.1f} ms" for name, s in facts["estimated_step_seconds"].items())
        whole = facts["estimated_run_seconds"]
        lines.append(f"A step (an estimate): {steps}." + (f" The run: about {about(whole)}." if whole else ""))
        lines.append(f"The estimate: {facts['estimate']}.")
    return "\n".join(lines)


def entries(costs: dict[str, Cost], device: Device) -> dict[str, dict]:
    """What is written of each program."""
    return {
        name: {
            "fits": cost.fits,
            "hbm_bytes": cost.hbm_bytes,
            "capacity_bytes": device.capacity,
            "flops": cost.flops,
            "collectives": cost.collectives,
        }
        for name, cost in costs.items()
    }


def advice(config, unfit: dict[str, Cost], trainings, mesh: Mesh, capacity: int) -> list[str]:
    """What to change, a line for each kind of program that does not fit."""
    lines = []
    for work in trainings:
        own = [cost.hbm_bytes for name, cost in unfit.items() if work.name in name]
        if own:
            lines.append(f"{work.name}: {training_advice(config, work, max(own), mesh, capacity)}")
    if any(name.startswith("policy") for name in unfit):
        lines.append("policy: more --config.policy.num_mini_batches, --config.policy.remat=True, or a lower new_tokens")
    if any(name.startswith(("score", "validate")) for name in unfit):
        lines.append("scoring: a lower --config.model.max_length, or --config.model.dtype=bfloat16")
    return lines


def training_advice(config, work, needed: int, mesh: Mesh, capacity: int) -> str:
    """How many groups at once would fit, if memory is shared out evenly; what else saves memory."""
    ways, axis = [], mesh.shape["group"]
    at_once = capacity * (work.groups // axis) // needed * axis
    if 0 < at_once < work.groups and not work.name.endswith("global"):
        ways.append(f"--config.train.groups_per_program={at_once} (about what fits)")
    if mesh.shape["data"] < mesh.size:
        ways.append("more of the devices for --config.mesh.data, which shares out parameters and pairs")
    if mesh.shape["data"] > 1 and not config.mesh.shard_parameters:
        ways.append("--config.mesh.shard_parameters=True")
    if not config.train.remat:
        ways.append("--config.train.remat=True, if temporary memory is much of it")
    if work.pairs > 1:
        ways.append("a lower batch_size")
    if work.options.dtype == "float32":
        ways.append("--config.model.dtype=bfloat16")
    return "; ".join([*ways, "a larger slice or a lower --config.model.max_length"])
