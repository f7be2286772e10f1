"""What `report.html` shows of `scpo benchmark`: a section of a run's page, or a page of its own."""

from scpo_jax import benchmark_figures, benchmark_tables, metrics, page_tables, tables
from scpo_jax.drawing import Picture
from scpo_jax.scored_pairs import SUBSETS
from scpo_jax.tables import Table
from scpo_jax.workdir import Workdir

OF_THE_DESIGN = ("seed", "scpo.methods", "controls")  # keys of the config that a benchmark has otherwise


def pictures(found: dict) -> dict[str, list[Picture]]:
    """Rule for the optimiser -> its figures; {} without a `reports/benchmark.json`."""
    return {rule: benchmark_figures.pictures(found, rule) for rule in found.get("rules", {})}


def section(found: dict, drawn: dict[str, list[Picture]]) -> dict:
    """What the macro `efficiency` of the templates shows; {} without a `reports/benchmark.json`."""
    return found and {
        "note": benchmark_tables.note(found),
        "answer": benchmark_tables.answer(found),
        "rules": [
            {
                "name": rule,
                "title": f"Equal {rule}: {what}",
                "lines": benchmark_tables.label_lines(found, rule),
                "figures": [picture.name for picture in drawn[rule]],
                "tables": benchmark_tables.tables_of(found, rule),
                "accuracies": [benchmark_tables.curves_table(found, rule, which) for which in SUBSETS],
            }
            for rule, what in found["rules"].items()
        ],
    }


def context(workdir: Workdir, found: dict, drawn: dict[str, list[Picture]]) -> dict:
    """What the template of a page of its own shows; config and versions are those of the first seed."""
    places = {seed: workdir.seed_of_benchmark(seed) for seed in found["seeds"]}
    record = places[found["seeds"][0]].record()
    config = {key: value for key, value in record["config"].items() if key not in OF_THE_DESIGN}
    return {
        "title": f"{record['config']['data.source']}: data efficiency",
        "warnings": warnings(found, places),
        "benchmark": section(found, drawn),
        "design": design_table(found),
        "config": page_tables.config_table(config),
        "environment": page_tables.environment_table(record["environment"]),
        "commit": record["environment"]["commit"],
        "commands": [found["command"]],
    }


def warnings(found: dict, places: dict[int, Workdir]) -> list[str]:
    """What a reader has to know before the numbers."""
    users = {group: min(own.get(group, 0) for own in found["test_users"].values()) for group in found["groups"]}
    few = [group for group, number in users.items() if number < metrics.FEW_USERS]
    said = [tables.few_users_line({"too_few_users": few, "test_users": users})] if few else []
    for rule, passes in found["passes"].items():
        if passes < 1:
            said.append(
                f"At equal {rule} full finetuning on all users sees a pair {passes:.2f} times on average: what it "
                "never sees cannot help it."
            )
    for seed, place in places.items():
        said += [f"Seed {seed}: {line}" for line in page_tables.guard_lines(place.read_json(place.guards))]
    return said


def design_table(found: dict) -> Table:
    """Which cells there are."""
    users = sorted({number for own in found["test_users"].values() for number in own.values()})
    rows = [
        ["groups", ", ".join(found["groups"])],
        ["test users of a group", " to ".join(f"{number:,}" for number in dict.fromkeys((users[0], users[-1])))],
        ["seeds", ", ".join(map(str, found["seeds"]))],
        ["shares of the training users", ", ".join(f"{100 * share:g} %" for share in found["fractions"])],
        ["methods", ", ".join(found["methods"])],
        *([f"equal {rule}", what] for rule, what in found["rules"].items()),
    ]
    return Table("Design", "", ["what", "value"], rows)
