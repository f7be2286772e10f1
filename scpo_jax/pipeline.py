"""`scpo run`: the stages in order, each skipped if nothing it depends on has changed."""

import datetime
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax

from scpo_jax import __version__, evaluate, logs, optimizer, report, scpo, stages, train_groups
from scpo_jax.data import encoding, preferences
from scpo_jax.errors import InputError
from scpo_jax.workdir import Workdir, digest


class Stage(NamedTuple):
    """A stage, the stages whose files it reads and the config keys (prefixes) that it depends on."""

    run: object
    needs: tuple[str, ...]
    keys: tuple[str, ...]


STAGES = {
    "prepare": Stage(stages.prepare, (), ("data.", "seed", "model.name_or_path", "model.revision", "model.max_length",
                                          "model.encoding", "model.scratch.vocab_size", "global_rm.train",
                                          "global_rm.groups")),
    "global": Stage(train_groups.train_global, ("prepare",), ("global_rm.", "model.", "seed")),
    "score": Stage(stages.score_global, ("prepare", "global"), ("model.dtype",)),
    "select": Stage(stages.select, ("score",), ("scpo.tau", "scpo.tau_test", "scpo.beta", "per_group")),
    "train": Stage(train_groups.train, ("select", "global"), ("seed", "train.", "scpo.methods", "per_group")),
    "evaluate": Stage(evaluate.evaluate, ("train", "score"), ()),
    "report": Stage(report.write, ("evaluate",), ()),
}  # fmt: skip


def run(config, workdir: Workdir, *, only: Sequence[str] = (), force: bool = False, command: str = "") -> None:
    """Runs the stages of `only` (() for all), leaving out those that are done.

    Raises InputError for a config that cannot work and for a workdir of another config (unless `force`, which redoes
    the stages that differ).
    """
    check_config(config)
    for name in only:
        if name not in STAGES:
            raise InputError(f"--stages names {name!r}; stages are {', '.join(STAGES)}")
    record = workdir.record()
    wanted = fingerprints(config, record)
    check_same_config(config, record, wanted, workdir, force)
    record |= {"command": command, "config": flatten(config), "environment": environment()}
    done = []
    for name in [stage for stage in STAGES if not only or stage in only]:
        if record["stages"].get(name, {}).get("fingerprint") == wanted[name] and "finished" in record["stages"][name]:
            done.append(name)
            continue
        for needed in STAGES[name].needs:
            if "finished" not in record["stages"].get(needed, {}):
                raise InputError(
                    f"stage {name} reads what stage {needed} writes, which has not run: add it to --stages"
                )
        record = run_stage(config, workdir, record, name, wanted[name])
    if done:
        logs.say(f"already done in {workdir.root}, nothing to do: {', '.join(done)}")


def run_stage(config, workdir: Workdir, record: dict, name: str, fingerprint: str) -> dict:
    """Runs one stage and records it."""
    stage = {"fingerprint": fingerprint, "config": own_keys(config, name), "started": now()}
    if name == "prepare":
        stage["inputs"] = input_files(config)
    record["stages"][name] = stage
    workdir.write_record(record)
    logs.say(f"stage {name}")
    started = time.monotonic()
    STAGES[name].run(config, workdir)
    stage |= {"finished": now(), "seconds": round(time.monotonic() - started, 2)}
    workdir.write_record(record)
    return record


def check_config(config) -> None:
    """Refuses values that cannot work, before anything is done."""
    choices = {
        "data.source": ("prism", "jsonl", "global_opinions", "simulated"),
        "model.dtype": ("float32", "bfloat16"),
        "model.encoding": encoding.ENCODINGS,
        "train.schedule": optimizer.SCHEDULES,
        "train.batch_order": ("shuffled", "reference"),
    }
    values = flatten(config)
    for key, allowed in choices.items():
        if values[key] not in allowed:
            raise InputError(f"config.{key}={values[key]!r}: it is one of {', '.join(allowed)}")
    for method in preferences.group_names(config.scpo.methods):
        if method not in scpo.METHODS:
            raise InputError(f"config.scpo.methods names {method!r}; methods are {', '.join(scpo.METHODS)}")
    positive = (
        "train.batch_size",
        "train.max_steps",
        "global_rm.batch_size",
        "global_rm.max_steps",
        "scpo.beta",
        "model.max_length",
    )
    for key in positive:
        if not values[key] > 0:
            raise InputError(f"config.{key}={values[key]!r}: it has to be above 0")
    check_not_yet(config)
    check_per_group(config)
    if not config.model.name_or_path and not config.global_rm.train:
        raise InputError(
            "config.model.name_or_path is empty and config.global_rm.train is False: name a reward model or train one"
        )


def check_not_yet(config) -> None:
    """Refuses what the config has a key for but this version does not do, rather than ignore it."""
    later = {
        "scpo.calibrate": config.scpo.calibrate,
        "controls": bool(config.controls),
        "policy.steps": config.policy.steps > 0,
        "train.groups_per_program": config.train.groups_per_program != 1,
        "mesh.model": config.mesh.model != 1,
        "mesh.group": config.mesh.group != 1,
    }
    for key, asked in later.items():
        if asked:
            raise InputError(f"config.{key} is not available in version {__version__}: leave it at its default")


PER_GROUP = ("tau", "beta", "learning_rate", "max_steps")


def check_per_group(config) -> None:
    """Refuses overrides that are not (group, key, number)."""
    for entry in config.per_group:
        if not (isinstance(entry, tuple) and len(entry) == 3 and entry[1] in PER_GROUP):
            raise InputError(
                f"config.per_group holds {entry!r}: an entry is (group, key, value), key one of {', '.join(PER_GROUP)}"
            )
        if not isinstance(entry[2], int | float) or isinstance(entry[2], bool) or not entry[2] > 0:
            raise InputError(f"config.per_group holds {entry!r}: the value has to be a number above 0")


def flatten(config, prefix: str = "") -> dict:
    """Dotted key -> value, as JSON has it."""
    values = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            values |= flatten(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = json.loads(json.dumps(value))
    return values


def own_keys(config, name: str) -> dict:
    """The part of the config that a stage depends on."""
    prefixes = STAGES[name].keys
    return {
        key: value
        for key, value in flatten(config).items()
        if any(key == prefix or (prefix.endswith(".") and key.startswith(prefix)) for prefix in prefixes)
    }


def fingerprints(config, record: dict) -> dict[str, str]:
    """The name of what each stage computes: its part of the config, its input files and the stages it reads."""
    wanted = {}
    for name, stage in STAGES.items():
        inputs = {needed: wanted[needed] for needed in stage.needs}
        if name == "prepare":
            inputs["files"] = input_files(config) or record["stages"].get("prepare", {}).get("inputs")
        wanted[name] = digest([own_keys(config, name), inputs])
    return wanted


HASHED_BYTES = 1 << 20  # of each end of a file; enough to tell model files apart without reading gigabytes


def input_files(config) -> dict[str, str]:
    """Local file -> digest of its content, for the data and the model; hub ids are pinned by their revision."""
    files = {}
    for name in (config.data.path, config.model.name_or_path):
        path = pathlib.Path(name)
        if name and path.exists():
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    files[str(file)] = file_digest(file)
    return files


def file_digest(path: pathlib.Path) -> str:
    """Digest of a file's size and of its first and last megabyte."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HASHED_BYTES)
        file.seek(max(size - HASHED_BYTES, 0))
        return digest([size, head.hex(), file.read(HASHED_BYTES).hex()])


def check_same_config(config, record: dict, wanted: dict[str, str], workdir: Workdir, force: bool) -> None:
    """Refuses a workdir whose stages ran under another config; with `force` forgets those stages instead."""
    stale = [name for name, stage in record["stages"].items() if stage["fingerprint"] != wanted[name]]
    if not stale:
        return
    if workdir.summary.exists():
        stages.check_group_names(config, json.loads(workdir.summary.read_text())["known_groups"])
    if not force:
        changes = "; ".join(differences(config, record, stale)) or "the stages that they read"
        raise InputError(
            f"{workdir.root} was made by another config: {changes}. Stages to redo: {', '.join(stale)}. "
            "Use another --workdir, or --force to redo them"
        )
    for name in stale:
        del record["stages"][name]


def differences(config, record: dict, stale: Sequence[str]) -> list[str]:
    """ "key: old -> new" of every config key and input file in which the stale stages differ."""
    found = {}
    for name in stale:
        stage = record["stages"][name]
        old, new = stage["config"], own_keys(config, name)
        if name == "prepare":
            old, new = old | stage["inputs"], new | (input_files(config) or stage["inputs"])
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
    """Commit of the checkout that this runs from; "" for an installed package."""
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def now() -> str:
    """The time, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
