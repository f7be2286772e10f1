"""A workdir as a finished run leaves it, its RMs far apart, made in a moment; texts, and their offline scores."""

import functools
import json
import pathlib

import numpy as np

from scpo_jax import checkpoint, judge, workdir
from scpo_jax.checkpoint import Loaded
from scpo_jax.data import vocabulary
from scpo_jax.models import module
from scpo_jax.workdir import Workdir
from tests import model_helpers

GROUPS = ("Chile", "Côte d'Ivoire", "日本")
PROFILES = ({}, {GROUPS[2]: 1.0}, {GROUPS[0]: 0.5, GROUPS[1]: 0.25})
WORDS = ("good", "warm", "answer", "reply", "of", "question")
MAX_LENGTH = 48


def make_workdir(folder: pathlib.Path) -> pathlib.Path:
    """The global RM and one of each group by scpo."""
    run, model = Workdir(folder), module.build(model_helpers.CONFIGS["bert"])
    tokenizer = vocabulary.make_tokenizer([" ".join(WORDS), "0123456789"], model_helpers.VOCABULARY, MAX_LENGTH)
    card = {"max_length": MAX_LENGTH, "encoding": "pair"}
    slugs = workdir.slugs_of(GROUPS)
    places = {"": run.global_checkpoint} | {group: run.checkpoint_of("scpo", group, slugs) for group in GROUPS}
    for seed, (group, place) in enumerate(places.items()):
        own = card | {"group": group, "method": "scpo" if group else "global"}
        checkpoint.save(place, Loaded(model, model_helpers.informative_params(model, seed), tokenizer, own))
    stages = {stage: {"finished": "2026", "fingerprint": stage, "config": {}} for stage in ("global", "train")}
    run.write_record({"schema_version": workdir.SCHEMA_VERSION, "stages": stages, "config": {}})
    return folder


def texts(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Distinct prompts and responses of all lengths; some are cut."""
    rng = np.random.default_rng(seed)
    return [(f"question {i}", " ".join(rng.choice(WORDS, rng.integers(0, 60)))) for i in range(n)]


def offline(folder: pathlib.Path, profile: dict, asked: list[tuple[str, str]]) -> np.ndarray:
    """Scores `[N]` as `scpo score --profile` computes them."""
    return _judge(str(folder), json.dumps(profile)).score(*zip(*asked, strict=True), [""] * len(asked))


@functools.cache
def _judge(folder: str, profile: str) -> judge.Judge:
    return judge.open_judge(folder, profile=profile)
