"""The files of a run: which stages ran under which configuration, and the reward models they left."""

import hashlib
import json
import time
import uuid

from etils import epath

from scpo_jax import checkpoint, storage, untrusted
from scpo_jax.data import preferences
from scpo_jax.errors import InputError

SCHEMA_VERSION = 2
BACKBONE = "_backbone"  # no slug of a group
SECONDS_TO_APPEAR = 5.0  # until a file that one host wrote is seen by another


def digest(value) -> str:
    """32 hex digits that name a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def finished(record: dict, stage: str) -> bool:
    """Whether a stage has run to its end."""
    return "finished" in record["stages"].get(stage, {})


def is_record(value: dict) -> bool:
    """Whether an object is a `run.json`: of every stage its fingerprint and its part of the config."""
    stages = value.get("stages")
    return (
        value.get("schema_version") == SCHEMA_VERSION
        and isinstance(stages, dict)
        and isinstance(value.get("config", {}), dict)
        and all(isinstance(own, dict) for own in stages.values())
        and all(isinstance(own.get("fingerprint"), str) for own in stages.values())
        and all(isinstance(own.get("config"), dict) for own in stages.values())
        and all(isinstance(own.get("inputs", {}), dict) for own in stages.values())
    )


def check_place(folder: epath.Path, flag: str) -> None:
    """Refuses a folder that cannot be made because it, or what it should lie in, is a file."""
    storage.check_bucket(folder, flag)
    try:
        existing = next((path for path in storage.up_to_root(folder) if path.exists()), None)
    except OSError as error:  # no permission, a name too long
        raise InputError(f"{flag}={folder}: {untrusted.first_line(error)}") from error
    if existing is not None and not existing.is_dir():
        raise InputError(f"{flag}={folder}: {existing} is a file: name a folder")


def is_workdir(folder: epath.PathLike) -> bool:
    """Whether `scpo run` worked in a folder."""
    return (epath.Path(folder) / "run.json").exists()


class Workdir:
    """Paths under a working directory, and its record `run.json`."""

    def __init__(self, folder: epath.PathLike):
        self.root = epath.Path(folder)
        self.data = self.root / "data"
        self.pairs = self.data / "pairs.parquet"
        self.split = self.data / "split.json"
        self.summary = self.data / "summary.json"
        self.traits = self.data / "traits.parquet"
        self.tokenizer = self.data / "tokenizer"
        self.simulated = self.data / "simulated"
        self.scores = self.root / "scores" / "global.parquet"
        self.selection = self.root / "selection.parquet"
        self.checkpoints = self.root / "checkpoints"
        self.global_checkpoint = self.checkpoints / "global"
        self.sft = self.checkpoints / "sft"
        self.policies = self.checkpoints / "policy"
        self.training = self.checkpoints / "training"
        self.reports = self.root / "reports"
        self.guards = self.reports / "guards.json"
        self.calibration = self.reports / "calibration.json"
        self.test_scores = self.reports / "test_scores.parquet"

    def seed_of_benchmark(self, seed: int) -> "Workdir":
        """Where a seed of `scpo benchmark` is run."""
        return Workdir(self.root / "benchmark" / f"seed-{seed}")

    def record(self) -> dict:
        """`run.json`, or the record of a folder in which nothing ran yet. Raises InputError."""
        check_place(self.root, "--workdir")
        path = self.root / "run.json"
        if not path.exists():
            return {"schema_version": SCHEMA_VERSION, "stages": {}}
        record = untrusted.json_object(path)
        if record.get("schema_version") != SCHEMA_VERSION and "schema_version" in record:
            schema = record["schema_version"]
            raise InputError(f"{path} has schema {schema}, this version reads {SCHEMA_VERSION}: use another --workdir")
        if not is_record(record):
            raise InputError(f"{path} is not the record of a run: use another --workdir, or remove the file")
        return record

    def write_token(self) -> str:
        """Leaves a file by which other processes tell that this is their workdir as well; its name."""
        check_place(self.root, "--workdir")
        name = f".token-{uuid.uuid4().hex}"
        storage.write(self.root / name, name)
        return name

    def sees(self, token: str) -> bool:
        """Whether the file that another process wrote is here, or appears soon."""
        limit = time.monotonic() + SECONDS_TO_APPEAR
        while not (self.root / token).exists():
            if time.monotonic() > limit:
                return False
            time.sleep(0.1)
        return True

    def remove_token(self, token: str) -> None:
        """Removes what `write_token` left."""
        (self.root / token).unlink()

    def fingerprint(self, stage: str) -> str:
        """Name of what a stage computes, of its latest run."""
        return self.record()["stages"][stage]["fingerprint"]

    def write_record(self, record: dict) -> None:
        """Replaces `run.json`."""
        self.write_json(self.root / "run.json", record)

    @staticmethod
    def write_json(path: epath.Path, value) -> None:
        """Writes a JSON file whole or not at all."""
        storage.write(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    @staticmethod
    def read_json(path: epath.Path, default: dict | None = None) -> dict:
        """What a stage left in a JSON file; where there is none the default, if there is one. Raises InputError."""
        if default is not None and not path.exists():
            return default
        try:
            return untrusted.json_object(path)
        except InputError as error:
            raise InputError(f"{error}; bring the file back, or use another --workdir") from error

    def checkpoint_of(self, method: str, group: str, slugs: dict[str, str]) -> epath.Path:
        """Folder of a group's reward model."""
        return self.checkpoints / method / slugs[group]

    def backbone_of(self, method: str) -> epath.Path:
        """Folder of what the reward models of a method's groups share, if they share all but their heads."""
        return self.checkpoints / method / BACKBONE

    def methods(self) -> list[str]:
        """Methods that have checkpoints, without the global model."""
        if not self.checkpoints.exists():
            return []
        others = ("global", "sft", "policy", "training")
        return sorted(path.name for path in self.checkpoints.iterdir() if path.name not in others)

    def groups(self, method: str) -> dict[str, epath.Path]:
        """group -> checkpoint of a method."""
        folder = self.checkpoints / method
        if not folder.exists():
            existing = ", ".join(["global", *self.methods()])
            raise InputError(f"{self.root} has no method {method!r}: it has {existing}")
        found = {}
        for path in sorted(folder.iterdir()):
            if path.name != BACKBONE and checkpoint.is_checkpoint(path):
                found[checkpoint.load_card(path)["group"]] = path
        return found


def slugs_of(groups) -> dict[str, str]:
    """group -> folder name."""
    return preferences.slugs(list(groups))
