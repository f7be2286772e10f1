"""What `scpo benchmark` found, for people: the tables of `reports/benchmark.md` and of the terminal."""

from scpo_jax.efficiency import AXES, MARGIN
from scpo_jax.report import table
from scpo_jax.tables import percent, spread


def text(report: dict) -> str:
    """All tables of a `benchmark.json`."""
    seeds = ", ".join(map(str, report["seeds"]))
    start = (
        f"# Data efficiency\n\nMean over {len(report['groups'])} groups and {len(report['seeds'])} seeds ({seeds}); "
        f"95 % intervals of a bootstrap over seeds and test users. Global RM: {spread(report['global']['all'])} %."
    )
    parts = [start]
    for rule, what in report["rules"].items():
        parts += [f"## Equal {rule}: {what}", curves_table(report, rule), needed_table(report, rule)]
        parts += [ratio_table(report, rule), annotation_table(report, rule)]
    return "\n\n".join(part for part in parts if part) + "\n"


def curves_table(report: dict, rule: str) -> str:
    """Accuracy of every method on shares of the data."""
    header = ["method", *(f"{100 * fraction:g} % of users" for fraction in report["fractions"])]
    rows = [[method, *(spread(own["all"]) for own in points)] for method, points in report["curves"][rule].items()]
    return f"### Accuracy on all test pairs, percent\n\n{table(header, rows)}"


def needed_table(report: dict, rule: str) -> str:
    """Pairs to be as good as full finetuning on all data."""
    full = report["curves"][rule]["full"][-1]
    note = (
        f"Full finetuning on all {full['annotated']:.0f} pairs reaches {spread(report['target'][rule])} %, seeing each "
        f"{report['passes'][rule]:.2f} times on average; counted are the pairs to come within {100 * MARGIN:g} points "
        "of that, by isotonic regression of the curve from the global RM on."
    )
    rows = [[method, *(pairs_of(own[axis]) for axis in AXES)] for method, own in report["needed"][rule].items()]
    return f"### Pairs needed\n\n{note}\n\n" + table(["method", *(f"{axis} pairs" for axis in AXES)], rows)


def pairs_of(record: dict) -> str:
    """A number of pairs with its interval, and its share of all."""
    low, high = ("not reached" if record[end] is None else f"{record[end]:.0f}" for end in ("low", "high"))
    if record["pairs"] is None:
        return f"not reached [{low}, {high}]" if record["low"] is not None else "not reached"
    return f"{record['pairs']:.0f} [{low}, {high}], {percent(record['share'])} %"


def ratio_table(report: dict, rule: str) -> str:
    """The paper's ratio of all pairs to kept pairs."""
    rows = []
    for method, own in report["ratio"][rule].items():
        found = own["ratio"]
        cell = "-" if found is None else f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
        rows.append([method, f"{own['kept']:.0f}", spread(own, sign=True), cell])
    note = (
        "With all users. The ratio is given where the method is not significantly worse than full, which is no proof "
        "of being as good."
    )
    return f"### All pairs / kept pairs\n\n{note}\n\n" + table(
        ["method", "kept pairs", "points against full", "ratio"], rows
    )


def annotation_table(report: dict, rule: str) -> str:
    """Proposed annotation against random annotation, for as many labels."""
    against = ("random_annotation", "full")
    rows = [row for row in report["paired"][rule] if row["method"] == "propose" and row["fraction"] < 1]
    lines = []
    for fraction in dict.fromkeys(row["fraction"] for row in rows):
        own = {row["against"]: row for row in rows if row["fraction"] == fraction}
        point = next(p for p in report["curves"][rule]["propose"] if p["fraction"] == fraction)
        found = [spread(own.get(rival), sign=True) for rival in against]
        lines.append([f"{point['annotated']:.0f}", spread(point["all"]), *found])
    if not lines:
        return ""
    header = ["annotated pairs", "propose, accuracy", "against random pairs", "against all pairs of random users"]
    return f"### What to have annotated\n\nPoints of accuracy, for as many labels.\n\n{table(header, lines)}"
