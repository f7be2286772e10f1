"""How good each reward model is on test users: records of accuracy, and the reference's report files."""

import functools
import json
import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from scpo_jax import checkpoint, distributed, guards, logs, metrics, score, scpo, stages, tokens
from scpo_jax.data import preferences
from scpo_jax.workdir import Workdir, slugs_of


class GroupPairs(NamedTuple):
    """Test pairs of one group, and what bootstraps over its users."""

    rows: list[dict]  # of the preference table
    counts: np.ndarray  # [resamples, B], of metrics.bootstrap_counts
    margins: dict[str, np.ndarray]  # method -> R+ - R- of each pair, `[B]`
    tau_test: float  # the edited pairs are those with a global probability below it

    def subset(self, which: str) -> np.ndarray:
        """Mask `[B]` of all, edited (at tau_test 0.5: the global RM is wrong) or agreed (it is right) pairs."""
        margins = self.margins["global"]
        if which == "edited":
            return margins < scpo.logit(self.tau_test)
        return margins > 0 if which == "agreed" else np.ones(len(margins), bool)

    def correct(self, method: str) -> np.ndarray:
        """1.0 where a method is strictly right, `[B]`."""
        return (self.margins[method] > 0).astype(float)


SUBSETS = ("all", "edited", "agreed")


def test_pairs(rows: Sequence[dict], tau_test: float = 0.5) -> GroupPairs:
    """The test pairs of one group, scored by nobody yet."""
    users = np.array([row["user_id"] for row in rows])
    return GroupPairs(list(rows), metrics.bootstrap_counts(users, np.random.default_rng(0)), {}, tau_test)


def margins_of(rows: Sequence[dict], scores: dict[str, np.float32]) -> np.ndarray:
    """R+ - R- of each pair, `[B]`, from text key -> score."""
    chosen, rejected = (
        np.array([scores[score.text_key(row["prompt"], row[side])] for row in rows], np.float32)
        for side in ("chosen", "rejected")
    )
    return chosen - rejected


def evaluate(config, workdir: Workdir) -> None:
    """Scores the test pairs of every group with its RMs and writes the reports."""
    table = preferences.read_table(workdir.pairs)
    steered = stages.steered_groups(config, table)
    rows = [row for row in table.to_pylist() if row["split"] == "test"]
    global_scores = stages.read_scores([workdir.scores])
    groups = {}
    for group in steered:
        own = [row for row in rows if row["group"] == group]
        if not own:
            logs.say(f"evaluate: {group} has no test pair, skipped")
            continue
        groups[group] = test_pairs(own, config.scpo.tau_test)
        groups[group].margins["global"] = margins_of(own, global_scores)
    steps = score_groups(config, workdir, groups, slugs_of(steered))
    if not distributed.is_writer():
        return
    selection = preferences.read_table(workdir.selection).to_pylist()
    report = {
        "groups": list(groups),
        "methods": {method: records(groups, method) for method in ["global", *config.scpo.methods]},
        "macro": macro(groups, ["global", *config.scpo.methods]),
        "gain": {method: gain(groups, method) for method in config.scpo.methods},
        "steps": steps,
        **truth(config, workdir, groups, rows, global_scores),
        **baselines(config, table, groups),
    }
    if config.data.source == "prism":
        guards.add(workdir, guards.prism_accuracy(report["methods"]))
    workdir.write_json(workdir.reports / "evaluation.json", report)
    for name, which in (("full_report", "all"), ("partial_report", "edited")):
        workdir.write_json(workdir.reports / f"{name}.json", percent_report(groups, config.scpo.methods, which))
    workdir.write_json(workdir.reports / "edited_ratios.json", edited_ratios(selection, steered))
    write_test_scores(workdir, groups)


def score_groups(config, workdir: Workdir, groups: dict[str, GroupPairs], slugs: dict[str, str]) -> dict:
    """Fills in the margins of every method; returns {method: {group: steps its RM was trained}}."""
    steps = {method: {} for method in config.scpo.methods}
    functions, progress = {}, logs.Progress(len(groups) * len(config.scpo.methods), "evaluate", "model")
    keys = [key for pairs in groups.values() for key in tokens.texts_of(pairs.rows)]
    texts = tokens.read(config, workdir, keys, training=False)
    for group, pairs in groups.items():
        encoded = {key: texts[key] for key in tokens.texts_of(pairs.rows)}
        for method in config.scpo.methods:
            folder = workdir.checkpoint_of(method, group, slugs)
            progress.add(1)
            if not checkpoint.is_checkpoint(folder):
                continue
            loaded = checkpoint.load(folder)
            key = json.dumps(loaded.model.config, sort_keys=True)
            function = functions.setdefault(key, score.score_function(loaded.model, config.model.dtype))
            values = score.score_texts(function, loaded.params, list(encoded.values()))
            pairs.margins[method] = margins_of(pairs.rows, dict(zip(encoded, values, strict=True)))
            steps[method][group] = loaded.card["steps"]
    progress.close()
    return steps


def scored(groups: dict[str, GroupPairs], method: str) -> dict[str, GroupPairs]:
    """Groups that have an RM of a method."""
    return {group: pairs for group, pairs in groups.items() if method in pairs.margins}


def records(groups: dict[str, GroupPairs], method: str) -> dict:
    """{group: {"all": A, "edited": A, "agreed": A}} of a method."""
    return {
        group: {
            which: metrics.accuracy_record(pairs.margins[method], pairs.counts, pairs.subset(which))
            for which in SUBSETS
        }
        for group, pairs in scored(groups, method).items()
    }


def correct_by(method: str):
    """The function pairs -> 1.0 where `method` is right, `[B]`."""
    return lambda pairs: pairs.correct(method)


def advantage(method: str, other: str):
    """The function pairs -> correct by `method` minus correct by `other`, `[B]`."""
    return lambda pairs: pairs.correct(method) - pairs.correct(other)


def macro(groups: dict[str, GroupPairs], methods: Sequence[str]) -> dict:
    """{method: {"all", "edited", "agreed": mean over groups with an interval}}."""
    return {
        method: {which: mean_over_groups(scored(groups, method), correct_by(method), which) for which in SUBSETS}
        for method in methods
    }


def gain(groups: dict[str, GroupPairs], method: str) -> dict:
    """Accuracy of a method minus that of the global RM, mean over groups, paired, per subset of the pairs."""
    groups = scored(groups, method)
    return {which: mean_over_groups(groups, advantage(method, "global"), which) for which in SUBSETS}


def mean_over_groups(groups: dict[str, GroupPairs], values, which: str) -> dict | None:
    """Mean over groups of the mean of `values(pairs)` over a subset; None without any such pair."""
    parts = [
        (values(pairs)[mask], pairs.counts[:, mask]) for pairs in groups.values() if (mask := pairs.subset(which)).any()
    ]
    return metrics.mean_difference(*zip(*parts, strict=True)) if parts else None


def truth(config, workdir: Workdir, groups: dict[str, GroupPairs], rows: Sequence[dict], global_scores: dict) -> dict:
    """What only the simulated world knows: accuracy of the true utility, on the same pairs.

    "majority" holds the global RM on test users of the countries that trained it.
    """
    if config.data.source != "simulated":
        return {}
    utilities = json.loads((workdir.simulated / "truth.json").read_text())["utilities"]
    majority = {}
    for group in stages.majority_groups(config):
        pairs = test_pairs([row for row in rows if row["group"] == group])
        if not pairs.rows:
            continue
        margins = margins_of(pairs.rows, global_scores)
        bayes = float(np.mean(true_margins(pairs.rows, utilities) > 0))
        majority[group] = {"global": metrics.accuracy_record(margins, pairs.counts), "bayes": bayes}
    for pairs in groups.values():
        pairs.margins["truth"] = true_margins(pairs.rows, utilities)
    bayes = {
        group: {
            which: float(pairs.correct("truth")[pairs.subset(which)].mean())
            for which in ("all", "agreed")
            if pairs.subset(which).any()
        }
        for group, pairs in groups.items()
    }
    gap = {
        method: mean_over_groups(scored(groups, method), advantage("truth", method), "agreed")
        for method in config.scpo.methods
    }
    return {
        "bayes": bayes,
        "macro_bayes": macro(groups, ["truth"])["truth"],
        "agreed_gap_to_truth": gap,
        "majority": majority,
    }


def true_margins(rows: Sequence[dict], utilities: dict[str, float]) -> np.ndarray:
    """True utility of the chosen minus that of the rejected response, `[B]`."""
    return np.array([utilities[row["chosen_id"]] - utilities[row["rejected_id"]] for row in rows])


def baselines(config, table: pa.Table, groups: dict[str, GroupPairs]) -> dict:
    """For GlobalOpinionQA: what the option's text alone predicts, and accuracy where countries disagree."""
    if config.data.source != "global_opinions":
        return {}
    train = [row for row in table.to_pylist() if row["split"] == "train"]
    rate = win_rates(train)
    option_text, contested = {}, {}
    orders = {}
    for row in table.to_pylist():
        orders.setdefault((row["interaction_id"], frozenset((row["chosen"], row["rejected"]))), set()).add(
            row["chosen"]
        )
    for group, pairs in groups.items():
        pairs.margins["option_text"] = np.array([rate(row["chosen"]) - rate(row["rejected"]) for row in pairs.rows])
        option_text[group] = metrics.accuracy_record(pairs.margins["option_text"], pairs.counts)
        keys = [(row["interaction_id"], frozenset((row["chosen"], row["rejected"]))) for row in pairs.rows]
        mask = np.array([len(orders[key]) > 1 for key in keys])
        contested[group] = {
            method: metrics.accuracy_record(margins, pairs.counts, mask) for method, margins in pairs.margins.items()
        }
    return {"baselines": {"option_text": option_text, "contested": contested}}


def win_rates(rows: Sequence[dict]):
    """A function option text -> share of training pairs with it that it wins, 0.5 for one never seen."""
    wins, seen = {}, {}
    for row in rows:
        wins[row["chosen"]] = wins.get(row["chosen"], 0) + 1
        for side in ("chosen", "rejected"):
            seen[row[side]] = seen.get(row[side], 0) + 1
    return lambda text: wins.get(text, 0) / seen[text] if text in seen else 0.5


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


def write_test_scores(workdir: Workdir, groups: dict[str, GroupPairs]) -> None:
    """Writes the margin R+ - R- of every test pair by every method, the raw material of all reports."""
    rows = [
        {
            "pair_id": row["pair_id"],
            "group": group,
            "user_id": row["user_id"],
            "method": method,
            "margin": float(margin),
        }
        for group, pairs in groups.items()
        for method, margins in pairs.margins.items()
        for row, margin in zip(pairs.rows, margins, strict=True)
    ]
    columns = ("pair_id", "group", "user_id", "method", "margin")
    preferences.write_table(pa.table({key: [row[key] for row in rows] for key in columns}), workdir.test_scores)
