"""The report stage: what a run found, as a summary in Markdown (on the terminal too) and as a page with figures."""

import json
from collections.abc import Sequence

from scpo_jax import page, tables
from scpo_jax.data import preferences
from scpo_jax.tables import Table
from scpo_jax.workdir import Workdir


def write(config, workdir: Workdir) -> None:
    """Writes `reports/summary.md`, which it prints, `report.html` and `figures/`."""
    report = json.loads((workdir.reports / "evaluation.json").read_text())
    summary = json.loads(workdir.summary.read_text())
    selection = preferences.read_table(workdir.selection).to_pylist()
    text = markdown(config.data.source, report, summary, selection)
    (workdir.reports / "summary.md").write_text(text)
    print(text)
    page.write(workdir, report, summary, selection)


def markdown(source: str, report: dict, summary: dict, selection: Sequence[dict]) -> str:
    """The summary of a run."""
    parts = [f"# {source}: one reward model per group", tables.few_users_line(report)]
    parts += [table(tables.headline_table(report, selection)), verdict_lines(report), table(tables.gain_table(report))]
    parts += [table(tables.paired_table(report)), table(tables.fairness_table(report))]
    parts += [table(tables.accuracy_table(report, which)) for which in ("all", "agreed", "edited")]
    parts += [table(tables.majority_table(report)), table(tables.baseline_table(report))]
    parts += [table(tables.data_table(summary))]
    return "\n\n".join(part for part in parts if part) + "\n"


def verdict_lines(report: dict) -> str:
    """What the control runs say, a sentence a group."""
    if not report["verdict"]:
        return ""
    sentences = "\n".join(f"- {sentence}" for sentence in report["controls"]["sentences"].values())
    return f"## Culture or data set?\n\n{tables.verdict_note(report)}\n\n{sentences}"


def table(content: Table | None) -> str:
    """A table in Markdown, padded so that it also reads well on a terminal; "" for None."""
    if content is None:
        return ""
    cells = [[str(cell) for cell in row] for row in [content.header, *content.rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(content.header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines = [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
    parts = [f"## {content.title}" if content.title else "", content.note, "\n".join(lines)]
    return "\n\n".join(part for part in parts if part)
