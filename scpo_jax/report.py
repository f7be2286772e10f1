"""What a run found, for people: tables on the terminal and in `reports/summary.md`."""

import json
from collections.abc import Sequence

from scpo_jax.data import preferences
from scpo_jax.workdir import Workdir


def write(config, workdir: Workdir) -> None:
    """Writes `reports/summary.md` and prints it."""
    report = json.loads((workdir.reports / "evaluation.json").read_text())
    summary = json.loads(workdir.summary.read_text())
    selection = preferences.read_table(workdir.selection).to_pylist()
    parts = [f"# {config.data.source}: one reward model per group"]
    parts += [headline_table(config, report, selection), gain_lines(report)]
    parts += [accuracy_table(report, "all", "Accuracy on all test pairs, percent")]
    parts += [accuracy_table(report, "agreed", "Accuracy on the agreed pairs (the global RM was right), percent")]
    parts += [accuracy_table(report, "edited", "Accuracy on the edited pairs (the global RM was wrong), percent")]
    parts += [majority_lines(report), baseline_table(report), data_lines(summary)]
    text = "\n\n".join(part for part in parts if part) + "\n"
    (workdir.reports / "summary.md").write_text(text)
    print(text)


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A Markdown table, padded so that it also reads well on a terminal."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


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


def headline_table(config, report: dict, selection: Sequence[dict]) -> str:
    """Per group: training pairs, share kept, accuracy before and after the first method, difference; macro average."""
    methods = [method for method in report["methods"] if method != "global"]
    method = "scpo" if "scpo" in methods else next(iter(methods), None)
    train = [row for row in selection if row["split"] == "train"]
    rows = []
    for group in report["groups"]:
        kept = [row["keep"] for row in train if row["group"] == group]
        start = report["methods"]["global"][group]["all"]["accuracy"]
        after = report["methods"].get(method, {}).get(group, {}).get("all", {}).get("accuracy")
        difference = None if after is None else after - start
        share = percent(sum(kept) / len(kept)) if kept else "-"
        rows.append([group, len(kept), share, percent(start), percent(after), percent(difference, sign=True)])
    kept = [row["keep"] for row in train]
    start, after = (report["macro"][name]["all"] if name else None for name in ("global", method))
    if start:
        means = [start["difference"], after["difference"] if after else None]
        difference = None if means[1] is None else means[1] - means[0]
        share = percent(sum(kept) / len(kept)) if kept else "-"
        rows.append(["mean", len(kept), share, *map(percent, means), percent(difference, sign=True)])
    return table(["group", "train pairs", "kept %", "start", method or "after", "difference"], rows)


def accuracy_table(report: dict, which: str, title: str) -> str:
    """Groups by methods, with the truth of the simulated world as the last column."""
    methods = list(report["methods"])
    bayes = report.get("bayes") if which in ("all", "agreed") else None
    rows = []
    for group in report["groups"]:
        cells = [percent(report["methods"][method].get(group, {}).get(which, {}).get("accuracy")) for method in methods]
        rows.append([group, *cells, *([percent(bayes[group].get(which))] if bayes else [])])
    macro = [spread(report["macro"][method][which]) for method in methods]
    rows.append(["mean", *macro, *([spread(report["macro_bayes"][which])] if bayes else [])])
    return f"## {title}\n\n" + table(["group", *methods, *(["truth (Bayes)"] if bayes else [])], rows)


def gain_lines(report: dict) -> str:
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
        return ""
    header = ["method", "all pairs", "edited", "agreed", "truth - method on agreed"]
    if "agreed_gap_to_truth" not in report:
        header, rows = header[:-1], [row[:-1] for row in rows]
    note = (
        "## Gain over the global RM\n\nPoints of accuracy, mean over groups, 95 % interval of a bootstrap over users."
    )
    return f"{note}\n\n" + table(header, rows)


def majority_lines(report: dict) -> str:
    """How close the global RM comes to the truth where it was trained."""
    if not report.get("majority"):
        return ""
    rows = []
    for group, record in report["majority"].items():
        accuracy, bayes = record["global"]["accuracy"], record["bayes"]
        rows.append([group, spread(record["global"]), percent(bayes), percent(accuracy / bayes)])
    return "## The global RM on test users of its own countries\n\n" + table(
        ["group", "accuracy", "truth (Bayes)", "share of truth"], rows
    )


def baseline_table(report: dict) -> str:
    """GlobalOpinionQA: what the option text alone gives, and accuracy where the countries' orders differ."""
    if "baselines" not in report:
        return ""
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
    return f"## Baselines of GlobalOpinionQA\n\n{note}\n\n" + table(header, rows)


def data_lines(summary: dict) -> str:
    """What was dropped or is worth knowing of the data."""
    counted = {**summary["dropped"], **summary["counted"], "texts cut to max_length": summary["cut_texts"]}
    return "## Data\n\n" + table(["what", "count"], [[key.replace("_", " "), value] for key, value in counted.items()])
