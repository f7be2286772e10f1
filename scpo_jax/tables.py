"""What a run found as tables for people, made of `reports/evaluation.json`; the summary and the page show the same.

Also tables in Markdown.
"""

from collections.abc import Sequence
from typing import NamedTuple

from scpo_jax import metrics


class Table(NamedTuple):
    """A table with a title (may be empty), a note above it (may be empty) and cells as text."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence]


def percent(value: float | None, sign: bool = False) -> str:
    """A fraction in percent; "-" for none."""
    return "-" if value is None else f"{100 * value:{'+' if sign else ''}.1f}"


def spread(record: dict | None, sign: bool = False) -> str:
    """An estimate with its 95 % interval."""
    if record is None:
        return "-"
    estimate = record["accuracy"] if "accuracy" in record else record["difference"]
    if estimate is None:
        return "-"
    return f"{percent(estimate, sign)} [{percent(record['low'], sign)}, {percent(record['high'], sign)}]"


def few_users_line(report: dict) -> str:
    """Warns of groups whose intervals are too narrow."""
    users = ", ".join(f"{group} ({report['test_users'][group]})" for group in report["too_few_users"])
    return users and f"Fewer than {metrics.FEW_USERS} test users, so the interval is too narrow: {users}."


def headline_table(report: dict, selection: Sequence[dict]) -> Table:
    """Per group: training pairs, share kept, accuracy before and after the main method, difference; macro average."""
    method = report["paired"]["method"]
    gains = report["paired"]["against"].get("global", {"groups": {}, "mean": None})
    train = [row for row in selection if row["split"] == "train"]
    after = report["methods"].get(method, {})
    rows = []
    for group in report["groups"]:
        kept = [row["keep"] for row in train if row["group"] == group]
        records = [report["methods"]["global"][group]["all"], after[group]["all"] if group in after else None]
        gain = gains["groups"].get(group)
        rows.append([group, len(kept), share_of(kept), *map(spread, records), spread(gain, sign=True)])
    if report["macro"]["global"]["all"]:
        kept = [row["keep"] for row in train]
        means = [report["macro"][name]["all"] if name else None for name in ("global", method)]
        rows.append(["mean", len(kept), share_of(kept), *map(spread, means), spread(gains["mean"], sign=True)])
    return Table("", "", ["group", "train pairs", "kept %", "start", method or "after", "difference"], rows)


def share_of(flags: Sequence[bool]) -> str:
    """Share of the flags that are set, in percent."""
    return percent(sum(flags) / len(flags)) if flags else "-"


def verdict_note(report: dict) -> str:
    """What the verdicts rest on; "" without verdicts."""
    if not report["verdict"]:
        return ""
    return (
        f"The RMs of {report['controls']['method']} against those trained on as many pairs of all groups, and of "
        "another group. p-values are one-sided and corrected by Holm over the groups; claims at 5 %."
    )


def paired_table(report: dict) -> Table | None:
    """The main method against every other one, on the same resamples."""
    method, rivals = report["paired"]["method"], report["paired"]["against"]
    rows = [
        [name, spread(own["mean"], sign=True), f"{own['mean']['p']:.3f}"] for name, own in rivals.items() if own["mean"]
    ]
    note = "Points of accuracy on all test pairs, mean over groups."
    return Table(f"{method} against the others", note, ["against", "difference", "p"], rows) if rows else None


def fairness_table(report: dict) -> Table | None:
    """Per method: what its RMs cost other groups, the group it serves worst; mean flips and calibration over groups."""
    rows = []
    for method in report["methods"]:
        bias, worst = report["excess_bias"].get(method), report["worst_group"][method]
        if worst is None:
            continue
        flips = [own["mean"] for own in report["flips"].get(method, {}).values()]
        calibration = [own["ece"] for own in report["calibration"][method].values()]
        rows.append([
            method, spread(bias["mean"] if bias else None, sign=True), f"{worst['group']} {spread(worst)}",
            *(percent(sum(own) / len(own)) if own else "-" for own in (flips, calibration)),
        ])  # fmt: skip
    if not rows:
        return None
    note = (
        "Excess bias: accuracy that a group's RM loses on the pairs of the other groups, against the global RM, in "
        "points. Flips: pairs on which just one of RM and global RM is right. ECE: expected calibration error of "
        "sigmoid((R+ - R-) / T), T fitted on training users."
    )
    header = ["method", "excess bias", "worst group", "flips %", "ECE %"]
    return Table("Whom it hurts, and how sure it is", note, header, rows)


TITLES = {
    "all": "Accuracy on all test pairs, percent",
    "agreed": "Accuracy on the agreed pairs (the global RM was right), percent",
    "edited": "Accuracy on the edited pairs (the global RM was wrong), percent",
}
NOISE = (
    "Last row: the accuracy that noise alone would give the global RM, Gaussian on every text's score and as large as "
    "the standard deviation of the method's change of scores."
)


def accuracy_table(report: dict, which: str) -> Table:
    """Groups by methods, with the truth of the simulated world as the last column."""
    methods = list(report["methods"])
    bayes = report.get("bayes") if which in ("all", "agreed") else None
    rows = []
    for group in report["groups"]:
        cells = [percent(report["methods"][method].get(group, {}).get(which, {}).get("accuracy")) for method in methods]
        rows.append([group, *cells, *([percent(bayes[group].get(which))] if bayes else [])])
    macro = [spread(report["macro"][method][which]) for method in methods]
    rows.append(["mean", *macro, *([spread(report["macro_bayes"][which])] if bayes else [])])
    if which == "edited":
        rows.append(["global RM + noise", *(spread(report["macro_noise"].get(method)) for method in methods)])
    note = NOISE if which == "edited" else ""
    return Table(TITLES[which], note, ["group", *methods, *(["truth (Bayes)"] if bayes else [])], rows)


def gain_table(report: dict) -> Table | None:
    """Mean gain of each method over the global RM with its interval."""
    rows = []
    for method, gains in report["gain"].items():
        gap = report.get("agreed_gap_to_truth", {}).get(method)
        rows.append(
            [
                method,
                *(spread(gains[which], sign=True) for which in ("all", "edited", "agreed")),
                spread(gap, sign=True),
            ]
        )
    if not rows:
        return None
    header = ["method", "all pairs", "edited", "agreed", "truth - method on agreed"]
    if "agreed_gap_to_truth" not in report:
        header, rows = header[:-1], [row[:-1] for row in rows]
    note = "Points of accuracy, mean over groups, 95 % interval of a bootstrap over users."
    return Table("Gain over the global RM", note, header, rows)


def majority_table(report: dict) -> Table | None:
    """How close the global RM comes to the truth where it was trained."""
    if not report.get("majority"):
        return None
    rows = []
    for group, record in report["majority"].items():
        accuracy, bayes = record["global"]["accuracy"], record["bayes"]
        rows.append([group, spread(record["global"]), percent(bayes), percent(accuracy / bayes)])
    title, header = "The global RM on test users of its own countries", ["accuracy", "truth (Bayes)", "share of truth"]
    return Table(title, "", ["group", *header], rows)


def baseline_table(report: dict) -> Table | None:
    """GlobalOpinionQA: what the option text alone gives, and accuracy where the countries' orders differ."""
    if "baselines" not in report:
        return None
    methods = list(report["methods"])
    text, contested = report["baselines"]["option_text"], report["baselines"]["contested"]
    rows = [
        [
            group,
            percent(text[group]["accuracy"]),
            contested[group]["global"]["n"],
            *(percent(contested[group].get(method, {}).get("accuracy")) for method in [*methods, "option_text"]),
        ]
        for group in report["groups"]
    ]
    header = [
        "group",
        "option text, all pairs",
        "contested pairs",
        *(f"{m}, contested" for m in [*methods, "option text"]),
    ]
    note = (
        "Contested: pairs whose order differs between countries. Option text: the win rate of that string in training."
    )
    return Table("Baselines of GlobalOpinionQA", note, header, rows)


def data_table(summary: dict) -> Table:
    """What was dropped or is worth knowing of the data."""
    counted = {**summary["dropped"], **summary["counted"], "texts cut to max_length": summary["cut_texts"]}
    return Table("Data", "", ["what", "count"], [[key.replace("_", " "), value] for key, value in counted.items()])


def section(content: Table | None, level: int = 2) -> str:
    """A table with its title, a heading of `level`, and its note in Markdown; "" for None."""
    if content is None:
        return ""
    title = f"{'#' * level} {content.title}" if content.title else ""
    parts = [title, content.note, table(content.header, content.rows)]
    return "\n\n".join(part for part in parts if part)


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A Markdown table, padded so that it also reads well on a terminal."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
