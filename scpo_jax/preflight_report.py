"""What `scpo preflight` prints and writes: a table of programs, and what to change where they do not fit."""

from jax.sharding import Mesh

from scpo_jax import hlo
from scpo_jax.plan import about
from scpo_jax.program_cost import Cost, Device
from scpo_jax.tables import table


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
    if facts["denser_divisions"]:
        lines.append("Trainings compute fewer tokens on the same devices divided otherwise, so ask for these as well:")
        for own in facts["denser_divisions"]:
            flags = f"--config.mesh.group={own['group']} --config.mesh.data={own['data']}"
            lines.append(f"  {flags}: {own['computed']:.2f} times as many")
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
