"""The report files that the authors' code writes: percentages by group and method, and shares of pairs kept."""

import functools
import operator
from collections.abc import Sequence

from scpo_jax.scored_pairs import GroupPairs


def percent_report(groups: dict[str, GroupPairs], methods: Sequence[str], which: str) -> dict:
    """The reference's report: percent right by group and method, "start" for the global RM, "avg" their plain mean."""
    names = {"start": "global"} | {method: method for method in methods}
    report = {}
    for group, pairs in groups.items():
        mask = pairs.subset(which)
        scored_by = {name: method for name, method in names.items() if method in pairs.margins}
        report[group] = {
            name: int(pairs.correct(method)[mask].sum()) / int(mask.sum()) * 100 if mask.any() else None
            for name, method in scored_by.items()
        }
    means = {name: [row[name] for row in report.values() if row.get(name) is not None] for name in names}
    # added in turn, as the reference's Python did: sum() compensates for rounding since 3.12
    sums = {name: functools.reduce(operator.add, values) for name, values in means.items() if values}
    return {**report, "avg": {name: sums[name] / len(means[name]) for name in sums}}


def edited_ratios(selection: Sequence[dict], groups: Sequence[str]) -> dict:
    """Share of pairs that the filters keep: {"train": {group: share, "avg": share of all pairs}, "test": ...}."""
    ratios = {}
    for split in ("train", "test"):
        rows = [row for row in selection if row["split"] == split]
        kept = {group: [row["keep"] for row in rows if row["group"] == group] for group in groups}
        ratios[split] = {group: sum(keep) / len(keep) for group, keep in kept.items() if keep}
        if rows:
            ratios[split]["avg"] = sum(row["keep"] for row in rows) / len(rows)
    return ratios
