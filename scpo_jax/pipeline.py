"""`scpo run`: the stages in order, each skipped if nothing it depends on has changed."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
from etils import epath

from scpo_jax import (
    __version__,
    configuration,
    distributed,
    evaluate,
    logs,
    policy_prompts,
    policy_stage,
    report,
    sharding,
    stages,
    storage,
    train_groups,
)  # fmt: skip
from scpo_jax.data.fields import one_line
from scpo_jax.errors import InputError
from scpo_jax.workdir import Workdir, digest, finished


class Stage(NamedTuple):
    """A stage, the stages whose files it reads and the config keys (prefixes) that it depends on."""

    run: object
    needs: tuple[str, ...]
    keys: tuple[str, ...]
    everywhere: bool = False  # of several processes all take part; else process 0 works and the others wait


OF_BOTH_TRAININGS = tuple(
    f"train.{name}"
    for name in ("warmup_steps", "schedule", "weight_decay", "max_grad_norm", "center_rewards_coefficient")
)
OF_NO_STAGE = (
    "data.length_quantiles",
    "train.max_skipped",
    "policy.remat",
)  # of preflight alone; and what changes no result
STAGES = {
    "prepare": Stage(stages.prepare, (), ("data.", "seed", "model.name_or_path", "model.revision", "model.max_length",
                                          "model.encoding", "model.scratch.vocab_size", "model.scratch.family",
                                          "global_rm.train", "global_rm.groups")),
    "global": Stage(train_groups.train_global, ("prepare",), ("global_rm.", "model.", "seed", *OF_BOTH_TRAININGS),
                    everywhere=True),
    "score": Stage(stages.score_global, ("prepare", "global"), ("model.dtype",), everywhere=True),
    "select": Stage(stages.select, ("score",), ("scpo.tau", "scpo.tau_test", "scpo.beta", "scpo.trim", "scpo.calibrate",
                                               "per_group")),
    "train": Stage(train_groups.train, ("select", "global"), ("seed", "train.", "scpo.methods", "controls",
                                                             "per_group"), everywhere=True),
    "evaluate": Stage(evaluate.evaluate, ("train", "score"), (), everywhere=True),
    "report": Stage(report.write, ("evaluate",), ()),
    "policy": Stage(policy_stage.run, ("prepare", "global", "train"), ("seed", "policy.", "train.max_grad_norm",
                                                                       "model.dtype"), everywhere=True),
}  # fmt: skip


def stages_of(config) -> dict[str, Stage]:
    """The stages of a run: only with config.policy.steps is there a policy."""
    return {name: stage for name, stage in STAGES.items() if name != "policy" or config.policy.steps}


def run(config, workdir: Workdir, *, only: Sequence[str] = (), force: bool = False, command: str = "") -> None:
    """Runs the stages of `only` (() for all), leaving out those that are done.

    Raises InputError for a config that cannot work and for a workdir of another config (unless `force`, which redoes
    the stages that differ).
    """
    configuration.check(config)
    policy_prompts.check(config)
    sharding.make_mesh(config.mesh.group, config.mesh.data, config.mesh.model)
    for name in only:
        if name not in STAGES:
            raise InputError(f"--stages names {name!r}; stages are {', '.join(STAGES)}")
        if name not in stages_of(config):
            raise InputError(f"--stages names {name!r}, and config.policy.steps=0: there is none to train")
    check_together(config, workdir, [*only, force])
    record, wanted = distributed.on_writer("run.json", lambda: known(config, workdir, force))
    record |= {"command": command, "config": configuration.flatten(config), "environment": environment()}
    done = []
    for name, stage in stages_of(config).items():
        if only and name not in only:
            continue
        if finished(record, name):
            done.append(name)
            continue
        for needed in stage.needs:
            if not finished(record, needed):
                raise InputError(
                    f"stage {name} reads what stage {needed} writes, which has not run: add it to --stages"
                )
        run_stage(config, workdir, record, name, wanted[name])
    if done:
        logs.say(f"already done in {workdir.root}, nothing to do: {', '.join(done)}")


def check_together(config, workdir: Workdir, flags: list) -> None:
    """Refuses several processes that do not do the same, or not in the same workdir."""
    if distributed.count() == 1:
        return
    distributed.check_same("config, --stages or --force", digest([configuration.flatten(config), flags]))
    token = distributed.on_writer("a file in the workdir", workdir.write_token)
    seen = distributed.gather("the same file", workdir.sees(token))
    if distributed.is_writer():
        workdir.remove_token(token)
    if not all(seen):
        without = ", ".join(str(i) for i, sees in enumerate(seen) if not sees)
        raise InputError(
            f"--workdir={workdir.root} is not one place for all processes: process {without} does not see what process "
            "0 writes there. Name a folder that all of them share, or gs://"
        )


def known(config, workdir: Workdir, force: bool) -> tuple[dict, dict[str, str]]:
    """(the record of the workdir, of this config, and the fingerprint that each stage has to have)."""
    record = workdir.record()
    wanted = fingerprints(config, record)
    check_same_config(config, record, wanted, workdir, force)
    return record, wanted


def run_stage(config, workdir: Workdir, record: dict, name: str, fingerprint: str) -> None:
    """Runs one stage and records it; if an input error ends it, the record is again what it was."""
    started, stage = time.monotonic(), {"fingerprint": fingerprint, "config": own_keys(config, name), "started": now()}
    before = distributed.on_writer(f"the record before {name}", lambda: begin(config, workdir, record, name, stage))
    try:
        if STAGES[name].everywhere or distributed.is_writer():
            STAGES[name].run(config, workdir)
    except InputError:
        if before["stages"] and distributed.is_writer():
            workdir.write_record(before)
        raise
    distributed.barrier(f"the end of stage {name}")
    stage |= {"finished": now(), "seconds": round(time.monotonic() - started, 2)}
    record["stages"][name] = stage
    if distributed.is_writer():
        workdir.write_record(record)
    distributed.barrier(f"the record of stage {name}")
    logs.say(f"{name}: done in {stage['seconds']:.1f} s")


def begin(config, workdir: Workdir, record: dict, name: str, stage: dict) -> dict:
    """Records that a stage runs; returns the record of before."""
    before = workdir.record()
    if name in INPUTS:
        stage["inputs"] = input_files(config, name)
    record["stages"][name] = stage
    if before["stages"]:  # what ran before must not pass for whole if this is killed
        workdir.write_record(record)
    return before


def own_keys(config, name: str) -> dict:
    """The part of the config that a stage depends on."""
    prefixes = STAGES[name].keys
    return {
        key: value
        for key, value in configuration.flatten(config).items()
        if any(key == prefix or (prefix.endswith(".") and key.startswith(prefix)) for prefix in prefixes)
        and key not in OF_NO_STAGE
    }


INPUTS = {"prepare": ("data.path", "model.name_or_path"), "policy": ("policy.prompts", "policy.name_or_path")}


def fingerprints(config, record: dict) -> dict[str, str]:
    """The name of what each stage computes: its part of the config, its input files and the stages it reads."""
    wanted = {}
    for name, stage in stages_of(config).items():
        inputs = {needed: wanted[needed] for needed in stage.needs}
        if name in INPUTS:
            inputs["files"] = input_files(config, name) or record["stages"].get(name, {}).get("inputs", {})
        wanted[name] = digest([own_keys(config, name), inputs])
    return wanted


HASHED_BYTES = 1 << 20  # of each end of a file; enough to tell model files apart without reading gigabytes


def input_files(config, stage: str) -> dict[str, str]:
    """Local file -> digest of its content, of a stage's data and model; hub ids are pinned by their revision."""
    files, values = {}, configuration.flatten(config)
    for key in INPUTS[stage]:
        storage.check_bucket(values[key], f"config.{key}")
        kind = epath if storage.is_remote(values[key]) else pathlib  # which says what is wrong with a local name
        path = file = kind.Path(values[key]).expanduser()
        try:
            if values[key] and path.exists():
                for file in storage.files_under(path):
                    files[str(file)] = file_digest(file)
        except OSError as error:
            raise InputError(f"config.{key}={file}: it cannot be read ({one_line(error)})") from error
    return files


def file_digest(path: epath.Path) -> str:
    """Digest of a file's size and of its first and last megabyte."""
    size = path.stat().length
    with path.open("rb") as file:
        head = file.read(HASHED_BYTES)
        file.seek(max(size - HASHED_BYTES, 0))
        return digest([size, head.hex(), file.read(HASHED_BYTES).hex()])


def check_same_config(config, record: dict, wanted: dict[str, str], workdir: Workdir, force: bool) -> None:
    """Refuses a workdir whose stages ran under another config; with `force` forgets those stages instead."""
    check_known_groups(config, record, workdir)
    known = [name for name in record["stages"] if name in wanted]
    stale = [name for name in known if record["stages"][name]["fingerprint"] != wanted[name]]
    if stale and not force:
        changes = "; ".join(differences(config, record, stale)) or "the stages that they read"
        raise InputError(
            f"{workdir.root} was made by another config: {changes}. Stages to redo: {', '.join(stale)}. "
            "Use another --workdir, or --force to redo them"
        )
    for name in stale:
        del record["stages"][name]


SOURCE = ("data.source", "data.path", "data.revision", "data.group_by", "data.columns.")


def check_known_groups(config, record: dict, workdir: Workdir) -> None:
    """Refuses unknown groups at once if the workdir has read the same data before."""
    if not finished(record, "prepare"):
        return
    old, new = record["stages"]["prepare"]["config"], own_keys(config, "prepare")
    if all(old[key] == new[key] for key in new if key.startswith(SOURCE)):
        stages.check_group_names(config, workdir.read_json(workdir.summary)["known_groups"])


def differences(config, record: dict, stale: Sequence[str]) -> list[str]:
    """ "key: old -> new" of every config key and input file in which the stale stages differ."""
    found = {}
    for name in stale:
        stage = record["stages"][name]
        old, new = stage["config"], own_keys(config, name)
        if name in INPUTS:
            before = stage.get("inputs", {})
            old, new = old | before, new | (input_files(config, name) or before)
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                found[key] = f"{key}: {shown(old, key)} -> {shown(new, key)}"
    return list(found.values())


def shown(values: dict, key: str) -> str:
    """A value in an error message."""
    return json.dumps(values[key], ensure_ascii=False) if key in values else "nothing"


def environment() -> dict:
    """What a result may depend on besides the config."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tokenizers", "numpy")
    return {
        "scpo_jax": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "devices": [str(device) for device in jax.devices()],
    }


def commit() -> str:
    """Commit of the checkout that this runs from, or that launch/run.sh names; "" for an installed package."""
    if "SCPO_COMMIT" in os.environ:
        return os.environ["SCPO_COMMIT"]
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def now() -> str:
    """The time, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
