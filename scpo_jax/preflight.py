"""`scpo preflight`: compiles a run's programs for a TPU slice that is not there, and says what they cost.

Everything is per device. A collective counts with the bytes of its whole array (what is gathered, or to be reduced).
"""

import concurrent.futures
import math
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scpo_jax import (
    adapters,
    configuration,
    logs,
    policy_preflight,
    preflight_report,
    program_cost,
    score,
    sharding,
    storage,
    tpu,
    train_step,
    trainer,
    workload,
)  # fmt: skip
from scpo_jax.models import module
from scpo_jax.models.module import TextBatch
from scpo_jax.program_cost import Cost, Device, Program, bytes_of, lowering
from scpo_jax.workdir import Workdir, check_place

MOST_AT_ONCE = 8  # programs compiled at once, each takes a core and some GiB of this machine's memory


def show(config, topology: str, output: str) -> bool:
    """Prints what the programs of a run take on a slice, writes it to `output`; whether all fit. Raises InputError."""
    configuration.check(config)
    if output:
        storage.check_local(output, "--output")
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
    denser = workload.denser_divisions(config, material, mesh, works[0])
    facts |= {"denser_divisions": [division._asdict() for division in denser]}
    facts |= estimates(costs, *works)
    print(preflight_report.report(facts, costs, device.capacity))
    unfit = {name: cost for name, cost in costs.items() if not cost.fits}
    if unfit:
        print(
            f"\nIt does not fit: {', '.join(unfit)}.\n"
            + "\n".join(preflight_report.advice(config, unfit, works[0], mesh, device.capacity))
        )
    if output:
        Workdir.write_json(
            pathlib.Path(output), {"fits": not unfit, **facts, "programs": preflight_report.entries(costs, device)}
        )
    return not unfit


def compile_all(programs: dict[str, Program], device: Device) -> dict[str, Cost]:
    """The cost of every program; says of each when it is known. As many are compiled at once as there are cores."""
    costs = {}
    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_AT_ONCE)) as pool:
        compiled = {}
        for program in programs.values():
            if program.key not in compiled:
                compiled[program.key] = pool.submit(program_cost.cost_of, program, device)
        for name, program in programs.items():
            costs[name] = program_cost.with_kept(compiled[program.key].result(), program.kept, device.capacity)
            logs.say(f"preflight: {len(costs)} of {len(programs)}, {name}: {program_cost.verdict(costs[name])}")
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
            name,
            lowering(compiled.init, params),
            bytes_of(params),
            kept + bytes_of(compiled.frozen),
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
            programs[name] = Program((model, shape, slots), lower, bytes_of(arguments), kept)
    return programs


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

    arguments = function.params, TextBatch(*[array(*shape)] * 4, *[array(slots)] * 2)

    def lower():
        with jax.set_mesh(function.mesh or alone):  # the model asks it which kernels there are
            return function.compiled.lower(*arguments)

    return arguments, lower


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
    return {"estimated_step_seconds": steps, "estimated_run_seconds": total, "estimate": program_cost.BASIS}
