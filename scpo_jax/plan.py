"""`scpo run --plan`: what a run would do, how much of it, and about how long it takes."""

import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from scpo_jax import checkpoint, configuration, pipeline, stages
from scpo_jax.data import encoding, preferences
from scpo_jax.models import hf, module, weights
from scpo_jax.report import table
from scpo_jax.workdir import Workdir, finished

UTILISATION = 0.3  # share of the speed of a large matrix product that small training steps reach


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
        tokens, work = estimate(config, rows, steered, pathlib.Path(scratch.tokenizer))
    done = {name for name in pipeline.STAGES if finished(record, name)}
    counts = [
        [group, *(sum(row["group"] == group and row["split"] == split for row in rows) for split in ("train", "test"))]
        for group in dict.fromkeys([*steered, *stages.majority_groups(config)])
    ]
    print(table(["group", "train pairs", "test pairs"], counts))
    speed = flops_per_second()
    seconds = {name: flops / speed for name, flops in work.items()}
    lines = [[name, "done" if name in done else "to do", about(seconds.get(name, 0))] for name in pipeline.STAGES]
    print(f"\n{table(['stage', 'state', 'time (estimate)'], lines)}")
    runs = len(config.scpo.methods) * len(steered)
    total = sum(seconds[name] for name in seconds if name not in done)
    print(
        f"\n{runs} reward models ({', '.join(config.scpo.methods)} for {len(steered)} groups) of at most "
        f"{config.train.max_steps} steps of {config.train.batch_size} pairs; texts of {tokens:.0f} tokens on average.\n"
        f"About {about(total)} on {jax.devices()[0].device_kind} plus start-up and compilation; an estimate.\n"
        "Nothing was done."
    )


def prepared(config, workdir: Workdir, record: dict, scratch: Workdir):
    """The table of pairs: of the workdir if its stage prepare is done, else made in a scratch folder."""
    if not finished(record, "prepare"):
        stages.prepare(config, scratch)
        return preferences.read_table(scratch.pairs)
    hf.save_tokenizer(hf.load_tokenizer(workdir.tokenizer), scratch.tokenizer)
    return preferences.read_table(workdir.pairs)


def estimate(config, rows: list[dict], steered: list[str], tokenizer: pathlib.Path) -> tuple[float, dict[str, float]]:
    """Mean tokens of a text, and the floating-point operations of each stage that computes much."""
    loaded = hf.load_tokenizer(tokenizer)
    sample = rows[:: max(len(rows) // 500, 1)]
    texts = encoding.encode_for_scoring(
        loaded, [row["prompt"] for row in sample], [row["chosen"] for row in sample], config.model.max_length, "pair"
    )
    padded = float(np.mean([encoding.ladder_length(len(text.input_ids)) for text in texts]))
    per_text = 2 * matrix_parameters(config, loaded) * padded
    own = [row for row in rows if row["group"] in steered]
    test = len(stages.texts_of([row for row in own if row["split"] == "test"]))
    work = {
        "score": len(stages.texts_of(own)) * per_text,
        "evaluate": test * len(config.scpo.methods) * per_text,
        "train": 6
        * per_text
        * config.train.batch_size
        * config.train.max_steps
        * len(steered)
        * len(config.scpo.methods),
    }
    if config.global_rm.train:
        work["global"] = 6 * per_text * config.global_rm.batch_size * config.global_rm.max_steps
    return float(np.mean([len(text.input_ids) for text in texts])), work


def matrix_parameters(config, tokenizer) -> int:
    """Parameters that every token meets: all but the embeddings."""
    name = config.model.name_or_path
    if name and checkpoint.is_checkpoint(name):
        model = checkpoint.load(name).model
    elif name:
        model = module.build(weights.read_json(hf.resolve(name, config.model.revision) / "config.json"), name)
    else:
        model = module.build(stages.scratch_config(config, tokenizer))
    params = module.abstract_params(model)
    return sum(
        int(np.prod(leaf.shape)) for name in params if name != "embeddings" for leaf in jax.tree.leaves(params[name])
    )


def flops_per_second() -> float:
    """What this device reaches on a matrix product, times `UTILISATION`."""
    square = jnp.ones((1024, 1024))
    product = jax.jit(jnp.matmul)
    product(square, square).block_until_ready()
    started = time.monotonic()
    for _ in range(5):
        product(square, square).block_until_ready()
    return UTILISATION * 5 * 2 * 1024**3 / (time.monotonic() - started)


def about(seconds: float) -> str:
    """A duration, coarsely."""
    if seconds < 1:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
