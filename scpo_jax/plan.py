"""`scpo run --plan`: what a run would do, how much of it, and about how long it takes."""

import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from scpo_jax import bias, checkpoint, configuration, pipeline, score, scpo, stages, tokens
from scpo_jax.data import encoding, preferences
from scpo_jax.models import hf, module, weights
from scpo_jax.models.module import RewardModel
from scpo_jax.tables import table
from scpo_jax.workdir import Workdir, finished

SAMPLE = 500  # texts whose lengths and scoring time stand for all
TRAINING = 3  # a training step costs about three times the forward pass of its texts


def show(config, workdir: Workdir, force: bool) -> None:
    """Prints pairs, steps, stages and an estimate of the time; leaves nothing in the workdir."""
    configuration.check(config)
    record = workdir.record()
    wanted = pipeline.fingerprints(config, record)
    pipeline.check_same_config(config, record, wanted, workdir, force)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Workdir(folder)
        pairs = prepared(config, workdir, record, scratch)
        rows = pairs.to_pylist()
        steered = stages.steered_groups(config, pairs)
        length, seconds = estimate(config, rows, steered, pathlib.Path(scratch.tokenizer))
    done = {name for name in pipeline.stages_of(config) if finished(record, name)}
    counts = [
        [group, *(sum(row["group"] == group and row["split"] == split for row in rows) for split in ("train", "test"))]
        for group in dict.fromkeys([*steered, *stages.majority_groups(config)])
    ]
    print(table(["group", "train pairs", "test pairs"], counts))
    lines = [
        [name, "done" if name in done else "to do", about(seconds.get(name, 0))] for name in pipeline.stages_of(config)
    ]
    print(f"\n{table(['stage', 'state', 'time (estimate)'], lines)}")
    names = [*config.scpo.methods, *config.controls]
    runs = len(names) * len(steered)
    joint = f" ({scpo.HEADS}: one model, of {len(steered)} times as many)" if scpo.HEADS in names else ""
    total = sum(seconds[name] for name in seconds if name not in done)
    print(
        f"\n{runs} reward models ({', '.join(names)} for {len(steered)} groups) of at most "
        f"{config.train.max_steps} steps of {config.train.batch_size} pairs{joint}; "
        f"texts of {length:.0f} tokens on average.\n"
        f"About {about(total)} on {jax.devices()[0].device_kind} plus start-up and compilation: an estimate, from the "
        "time that scoring a sample took.\nNothing was done."
    )


def prepared(config, workdir: Workdir, record: dict, scratch: Workdir):
    """The table of pairs: of the workdir if its stage prepare is done, else made in a scratch folder."""
    if not finished(record, "prepare"):
        stages.prepare(config, scratch)
        return preferences.read_table(scratch.pairs)
    hf.save_tokenizer(hf.load_tokenizer(workdir.tokenizer), scratch.tokenizer)
    return preferences.read_table(workdir.pairs)


def estimate(config, rows: list[dict], steered: list[str], tokenizer: pathlib.Path) -> tuple[float, dict[str, float]]:
    """Mean tokens of a text, and the seconds of each stage that computes much."""
    loaded = hf.load_tokenizer(tokenizer)
    sample = rows[:: max(len(rows) // SAMPLE, 1)]
    texts = [(preferences.prompt_of(row), row["chosen"]) for row in sample]
    model = structure(config, loaded)
    form = encoding.form(model.reads, "pair")
    texts = encoding.encode_for_scoring(loaded, *zip(*texts, strict=True), config.model.max_length, form)
    per_text = seconds_per_text(model, texts, config.model.dtype)
    own = [row for row in rows if row["group"] in steered]
    test = len(tokens.texts_of([row for row in own if row["split"] == "test"]))
    methods, names = len(config.scpo.methods), len(config.scpo.methods) + len(config.controls)
    trainings, abroad = len(steered) * names, 2 * bias.VISITED_PAIRS * len(steered) ** 2 if len(steered) > 1 else 0
    pairs = {"train": trainings * config.train.max_steps * config.train.batch_size}
    if config.global_rm.train:
        pairs["global"] = config.global_rm.max_steps * config.global_rm.batch_size
    seconds = {stage: count * 2 * TRAINING * per_text for stage, count in pairs.items()}
    seconds |= {"score": len(tokens.texts_of(own)) * per_text, "evaluate": (test * names + abroad * methods) * per_text}
    return float(np.mean([len(text.input_ids) for text in texts])), seconds


def structure(config, tokenizer) -> RewardModel:
    """The model of the config, without its parameters."""
    name = config.model.name_or_path
    if not name:
        return module.build(stages.scratch_config(config, tokenizer))
    if checkpoint.is_checkpoint(name):
        return checkpoint.load_merged(name).model
    folder = hf.resolve(name, config.model.revision, weights_too=False)
    return module.build(weights.read_json(folder / "config.json"), name)


def seconds_per_text(model: RewardModel, texts: list[encoding.Text], dtype: str) -> float:
    """Time to score a text on this device, without compilation; what the parameters are does not matter."""
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), module.abstract_params(model))
    function = score.score_function(model, dtype)
    score.score_texts(function, params, texts)
    started = time.monotonic()
    score.score_texts(function, params, texts)
    return (time.monotonic() - started) / len(texts)


def about(seconds: float) -> str:
    """A duration, coarsely."""
    if seconds < 1:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
