"""The report stage: what a run found, as a summary in Markdown (on the terminal too) and as a page with figures."""

from collections.abc import Sequence

from scpo_jax import page, storage, tables
from scpo_jax.data import preferences
from scpo_jax.tables import section
from scpo_jax.workdir import Workdir


def write(config, workdir: Workdir) -> None:
    """Writes `reports/summary.md`, which it prints, `report.html` and `figures/`."""
    report = workdir.read_json(workdir.reports / "evaluation.json")
    summary = workdir.read_json(workdir.summary)
    selection = preferences.read_table(workdir.selection).to_pylist()
    text = markdown(config.data.source, report, summary, selection)
    page.write(workdir)
    storage.write(workdir.reports / "summary.md", text)
    print(text)


def markdown(source: str, report: dict, summary: dict, selection: Sequence[dict]) -> str:
    """The summary of a run."""
    parts = [f"# {source}: one reward model per group", tables.few_users_line(report)]
    parts += [
        section(tables.headline_table(report, selection)),
        verdict_lines(report),
        section(tables.gain_table(report)),
    ]
    parts += [section(tables.paired_table(report)), section(tables.fairness_table(report))]
    parts += [section(tables.accuracy_table(report, which)) for which in ("all", "agreed", "edited")]
    parts += [section(tables.majority_table(report)), section(tables.baseline_table(report))]
    parts += [section(tables.data_table(summary))]
    return "\n\n".join(part for part in parts if part) + "\n"


def verdict_lines(report: dict) -> str:
    """What the control runs say, a sentence a group."""
    if not report["verdict"]:
        return ""
    sentences = "\n".join(f"- {sentence}" for sentence in report["controls"]["sentences"].values())
    return f"## Culture or data set?\n\n{tables.verdict_note(report)}\n\n{sentences}"
