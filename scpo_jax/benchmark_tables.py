"""What `scpo benchmark` found, for people: tables and sentences of `reports/benchmark.md`, terminal and page."""

from scpo_jax.efficiency import AXES, MARGIN
from scpo_jax.tables import TITLES, Table, percent, section, spread


def text(report: dict) -> str:
    """All of a `benchmark.json` in Markdown."""
    parts = [f"# Data efficiency\n\n{note(report)}"]
    for rule, what in report["rules"].items():
        parts += [f"## Equal {rule}: {what}", section(curves_table(report, rule), 3)]
        parts += [section(table, 3) for table in tables_of(report, rule)]
        lines = label_lines(report, rule)
        parts += ["### Selections for as many labels\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""]
    return "\n\n".join(part for part in parts if part) + "\n"


def note(report: dict) -> str:
    """What the numbers are means of."""
    seeds = ", ".join(map(str, report["seeds"]))
    return (
        f"Mean over {len(report['groups'])} groups and {len(report['seeds'])} seeds ({seeds}); "
        f"95 % intervals of a bootstrap over seeds and test users. Global RM: {spread(report['global']['all'])} %."
    )


def tables_of(report: dict, rule: str) -> list[Table]:
    """What is needed, what is kept and what to buy."""
    made = needed_table(report, rule), ratio_table(report, rule), annotation_table(report, rule)
    return [table for table in made if table]


def curves_table(report: dict, rule: str, which: str = "all") -> Table:
    """Accuracy of every method on shares of the data."""
    header = ["method", *(f"{100 * fraction:g} % of users" for fraction in report["fractions"])]
    rows = [[method, *(spread(own[which]) for own in points)] for method, points in report["curves"][rule].items()]
    return Table(TITLES[which], "", header, rows)


def needed_table(report: dict, rule: str) -> Table:
    """Pairs to be as good as full finetuning on all data."""
    full = report["curves"][rule]["full"][-1]
    note = (
        f"Full finetuning on all {full['annotated']:,.0f} pairs reaches {spread(report['target'][rule])} %, seeing "
        f"each {report['passes'][rule]:.2f} times on average; counted are the pairs to come within {100 * MARGIN:g} "
        "points of that, by isotonic regression of the curve from the global RM on."
    )
    rows = [[method, *(pairs_of(own[axis]) for axis in AXES)] for method, own in report["needed"][rule].items()]
    return Table("Pairs needed", note, ["method", *(f"{axis} pairs" for axis in AXES)], rows)


def pairs_of(record: dict) -> str:
    """A number of pairs with its interval, and its share of all."""
    low, high = ("not reached" if record[end] is None else f"{record[end]:,.0f}" for end in ("low", "high"))
    if record["pairs"] is None:
        return f"not reached [{low}, {high}]" if record["low"] is not None else "not reached"
    return f"{record['pairs']:,.0f} [{low}, {high}], {percent(record['share'])} %"


def ratio_table(report: dict, rule: str) -> Table:
    """The paper's ratio of all pairs to kept pairs."""
    rows = []
    for method, own in report["ratio"][rule].items():
        found = own["ratio"]
        cell = "-" if found is None else f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
        rows.append([method, f"{own['kept']:,.0f}", spread(own, sign=True), cell])
    note = (
        "With all users. The ratio is given where the method is not significantly worse than full, which is no proof "
        "of being as good."
    )
    return Table("All pairs / kept pairs", note, ["method", "kept pairs", "points against full", "ratio"], rows)


def annotation_table(report: dict, rule: str) -> Table | None:
    """Proposed annotation against random annotation, for as many labels."""
    against = ("random_annotation", "full")
    rows = [row for row in report["paired"][rule] if row["method"] == "propose" and row["fraction"] < 1]
    lines = []
    for fraction in dict.fromkeys(row["fraction"] for row in rows):
        own = {row["against"]: row for row in rows if row["fraction"] == fraction}
        point = next(p for p in report["curves"][rule]["propose"] if p["fraction"] == fraction)
        found = [spread(own.get(rival), sign=True) for rival in against]
        lines.append([f"{point['annotated']:,.0f}", spread(point["all"]), *found])
    if not lines:
        return None
    header = ["annotated pairs", "propose, accuracy", "against random pairs", "against all pairs of random users"]
    return Table("What to have annotated", "Points of accuracy, for as many labels.", header, lines)


def label_lines(report: dict, rule: str) -> list[str]:
    """Selections against others where they have annotated equally many pairs, a sentence each."""
    return [
        f"At {own['annotated']:,.0f} annotated pairs {own['method']} differs from {own['against']} by "
        f"{spread(own, sign=True)} points{between(own['interpolated'])}."
        for own in report["equal_labels"][rule]
    ]


def between(method: str | None) -> str:
    """Says whose accuracy lies between two points of its curve."""
    return f" ({method} interpolated)" if method else ""


def answer(report: dict) -> list[str]:
    """How many pairs the main method needs, a sentence for each rule."""
    method, said = next(name for name in ("scpo", *report["methods"]) if name in report["methods"]), []
    for rule, needed in report["needed"].items():
        annotated, trained = (pairs_of(needed[method][axis]) for axis in AXES)
        said.append(
            f"Pairs that {method} needs to come within {100 * report['margin']:g} points of full finetuning on all "
            f"data ({spread(report['target'][rule])} %) at equal {rule}: annotated {annotated}; trained {trained}."
        )
    return said
