"""Several seeds of one run side by side: what is chance in training, what in the test users.

    python -m tests.bench.seeds --workdirs=runs/goqa_0,runs/goqa_1,runs/goqa_2

The runs have to be finished and to share their test pairs (`config.data.split_seed`). Printed is, for each method, its
accuracy for every seed that has it, mean over groups, and the difference to the global RM and to SCPO of the same
seeds: the mean over seeds with its 95 % interval by a bootstrap over users, in which a user's pairs are drawn for all
seeds together. Then excess bias and verdicts of each seed.
"""

import argparse
import collections
import json

import numpy as np
import pyarrow.parquet

from scpo_jax import metrics
from scpo_jax.controls import points_of
from scpo_jax.workdir import Workdir

Margins = dict[str, dict[str, np.ndarray]]  # method -> group -> R+ - R- of its pairs


def read(folder: str) -> tuple[dict[str, tuple], Margins]:
    """(group -> (pair ids, users), margins) of a finished run's test pairs."""
    rows = pyarrow.parquet.read_table(Workdir(folder).reports / "test_scores.parquet").to_pylist()
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in sorted(rows, key=lambda row: row["pair_id"]):
        found[row["method"]][row["group"]].append(row)
    pairs = {
        g: tuple(zip(*((r["pair_id"], r["user_id"]) for r in own), strict=True)) for g, own in found["global"].items()
    }
    margins = {m: {g: np.array([r["margin"] for r in own]) for g, own in groups.items()} for m, groups in found.items()}
    return pairs, margins


def differences(runs: list[Margins], method: str, against: str, groups: list[str]) -> list[np.ndarray] | None:
    """Correct by `method` minus correct by `against` of each pair, mean over the seeds that have both; by group."""
    having = [run for run in runs if method in run and against in run]
    if not having or method == against:
        return None
    return [np.mean([(r[method][g] > 0) * 1.0 - (r[against][g] > 0) for r in having], axis=0) for g in groups]


def shown(difference: list[np.ndarray] | None, counts: list[np.ndarray]) -> str:
    return "" if difference is None else points_of(metrics.mean_difference(difference, counts))


def table(pairs: dict[str, tuple], runs: list[Margins]) -> list[str]:
    """Lines of Markdown: one for each method."""
    groups, rng = list(pairs), np.random.default_rng(0)
    counts = [metrics.bootstrap_counts(np.array(users), rng) for _, users in pairs.values()]
    lines = ["| RM | accuracy by seed | against the global RM | against scpo |", "|---|---|---|---|"]
    for method in dict.fromkeys(name for run in runs for name in run):
        accuracies = [
            f"{100 * np.mean([np.mean(run[method][g] > 0) for g in groups]):.1f}" if method in run else "-"
            for run in runs
        ]
        compared = (shown(differences(runs, method, other, groups), counts) for other in ("global", "scpo"))
        lines.append(f"| {method} | {', '.join(accuracies)} | {' | '.join(compared)} |")
    return lines


def verdicts(folder: str) -> str:
    """What a run says of bias and culture."""
    report = json.loads((Workdir(folder).reports / "evaluation.json").read_text())
    told = collections.Counter(report["verdict"].values())
    return f"{folder}: verdicts {dict(told)}; excess bias of scpo {points_of(report['excess_bias']['scpo']['mean'])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdirs", required=True, help="finished runs, separated by commas")
    folders = parser.parse_args().workdirs.split(",")
    found = [read(folder) for folder in folders]
    if any(pairs != found[0][0] for pairs, _ in found):
        parser.error("the runs have different test pairs: give all one config.data.split_seed")
    print("\n".join(table(found[0][0], [margins for _, margins in found])))
    print("\n".join(map(verdicts, folders)))


if __name__ == "__main__":
    main()
