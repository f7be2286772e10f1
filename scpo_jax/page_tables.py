"""Tables that only the page has: what was selected, whom it hurts, what the guards say, what was run."""

from collections.abc import Sequence

import numpy as np

from scpo_jax import configuration, metrics, tables
from scpo_jax.configs import base
from scpo_jax.tables import Table, percent, spread

LOWEST = 10  # communities shown where the main method gains least
CHANGES = {  # what is added -> methods without and with it
    "filter, nothing weighted": ("full", "filter_only"),
    "weight, all pairs": ("full", "weight_only"),
    "weight, kept pairs": ("filter_only", "scpo"),
    "weight, uncertain pairs": ("uncertain", "uncertain_weighted"),
    "weight, trimmed pairs": ("trim", "trim_weighted"),
}


def selection_table(report: dict, selection: Sequence[dict]) -> Table:
    """What filter and weight make of the training pairs of each group."""
    rows = []
    for group in report["groups"]:
        own = [row for row in selection if row["group"] == group and row["split"] == "train"]
        kept = [row for row in own if row["keep"]]
        parameters = [f"{own[0][name]:g}" for name in ("tau", "beta")] if own else ["-", "-"]
        weights = [f"{np.mean([row['weight'] for row in part]):.2f}" if part else "-" for part in (kept, own)]
        wrong = [tables.share_of([row["p_global"] < 0.5 for row in part]) for part in (kept, own)]
        rows.append(
            [group, len(own), len(kept), tables.share_of([r["keep"] for r in own]), *weights, *wrong, *parameters]
        )
    header = ["group", "train pairs", "kept", "kept %", "mean weight, kept", "mean weight, all", "p < 0.5, kept %",
              "p < 0.5, all %", "tau", "beta"]  # fmt: skip
    note = "The filter reads the label, so the kept pairs contradict the global RM (p < 0.5) more often than all pairs."
    return Table("By group", note, header, rows)


def calibrated_table(found: dict) -> Table | None:
    """The tau and beta that were chosen on training users."""
    if not found:
        return None
    keys = ("tau", "beta", "users")
    rows = [
        [g, *(f"{own[k]:g}" for k in keys), percent(own["before"]), percent(own["accuracy"])]
        for g, own in found.items()
    ]
    note = (
        "Chosen on held-out training users; accuracy in percent there with the configured values and with the chosen."
    )
    return Table("Calibrated tau and beta", note, ["group", *keys, "before", "chosen"], rows)


def weight_table(report: dict, config: dict) -> Table | None:
    """Accuracy and excess bias without and with filter or weight."""
    rows = []
    for what, both in CHANGES.items():
        if not set(both) <= report["methods"].keys():
            continue
        gains = [report["macro"][name]["all"] for name in both]
        costs = [report["excess_bias"][name]["mean"] for name in both]
        rows.append([what, " → ".join(both), *map(spread, gains), *(spread(cost, sign=True) for cost in costs)])
    if not rows:
        return None
    note = "Means over groups: accuracy in percent, excess bias in points."
    if report.get("bayes"):
        note += f" Extreme annotators in this world: {percent(config['data.simulated.extreme_share'])} %."
    header = ["added", "methods", "accuracy without", "accuracy with", "excess bias without", "excess bias with"]
    return Table("What the filter and the weight do", note, header, rows)


def controls_table(report: dict) -> Table | None:
    """Accuracy of the control RMs beside the group's own."""
    own, found = report["controls"]["method"], report["controls"]["accuracy"]
    if not found:
        return None
    records = {"global": report["methods"]["global"], own: report["methods"][own], **found}
    rows = [
        [group, *(spread(record.get(group, {}).get("all")) for record in records.values())]
        for group in report["groups"]
    ]
    means = [report["macro"]["global"]["all"], report["macro"][own]["all"]]
    means += [report["controls"]["macro"][name]["all"] for name in found]
    note = "Percent of all test pairs of the group. Every control trains on as many pairs as the group's own RM."
    rows.append(["mean", *map(spread, means)])
    return Table("Accuracy of the controls", note, ["group", *(name.replace("_", " ") for name in records)], rows)


def bias_table(report: dict) -> Table | None:
    """A[i, j] of the main method, with the global RM first and the excess bias of each RM last."""
    main, groups = report["paired"]["method"], list(report["bias"].get("global", {}))
    if len(groups) < 2 or not report["bias"].get(main):
        return None
    losses = report["excess_bias"][main]["groups"]
    rows = [["global RM", *(percent(report["bias"]["global"][groups[0]][j]) for j in groups), "0"]]
    for i, own in report["bias"][main].items():
        rows.append([f"RM of {i}", *(percent(own[j]) for j in groups), spread(losses.get(i), sign=True)])
    rows.append(["pairs", *(report["bias_pairs"][j] for j in groups), ""])
    note = f"Accuracy in percent of each RM of {main} on the test pairs of each group (columns), some users of each."
    return Table("Every RM on every group", note, ["", *groups, "excess bias"], rows)


def lowest_table(report: dict) -> Table | None:
    """The communities within groups where the main method gains least on the global RM, or loses."""
    main, found = report["paired"]["method"], {}
    for group, own in report["fields"].get("groups", {}).items() if main else ():
        for field, values in own.items():
            for value, cell in values.items():
                before, after = cell["methods"]["global"], cell["methods"][main]
                change = after["accuracy"] - before["accuracy"]
                row = [group, field, value, cell["users"], spread(before), spread(after), percent(change, sign=True)]
                same = group, cell["users"], before["accuracy"], after["accuracy"]  # the same people by another field
                found.setdefault(same, (change, row))
    if not found:
        return None
    rows = [row for _, row in sorted(found.values(), key=lambda item: item[0])[:LOWEST]]
    note = (
        f"The {len(rows)} lowest of {len(found)} communities of {metrics.FEW_USERS} or more test users by change, in "
        "points; the lowest of many are low by chance as well."
    )
    header = ["group", "field", "value", "users", "global", main, "change"]
    return Table("Communities within groups that gain least", note, header, rows)


def fields_table(report: dict) -> Table | None:
    """Accuracy by the fields of the survey, over all groups."""
    found, main = report["fields"].get("pooled", {}), report["paired"]["method"]
    shown = ["global", *([main] if main else [])]
    rows = [
        [field, value, cell["users"], cell["pairs"], *(spread(cell["methods"][name]) for name in shown)]
        for field, values in found.items()
        for value, cell in values.items()
    ]
    note = "Every pair is judged by its own group's RM, percent."
    header = ["field", "value", "users", "pairs", *shown]
    return Table("Accuracy by survey field, all groups", note, header, rows) if rows else None


def calibration_table(report: dict) -> Table | None:
    """Expected calibration error of the global RM and of the main method per group."""
    main = report["paired"]["method"]
    shown = [name for name in ("global", main) if report["calibration"].get(name)]
    rows = []
    for group in report["groups"] if shown else ():
        cells = []
        for own in (report["calibration"][name].get(group) for name in shown):
            temperature = f"{own['temperature']:.2f}" if own and own["temperature"] else "-"
            errors = [f"{percent(own['ece'])} [{percent(own['low'])}, {percent(own['high'])}]",
                      percent(own["ece_without_temperature"])] if own else ["-", "-"]  # fmt: skip
            cells += [temperature, *errors]
        rows.append([group, *cells])
    header = [f"{name}, {what}" for name in shown for what in ("T", "ECE %", "ECE % at T = 1")]
    note = "Expected calibration error of sigmoid(|R+ - R-| / T), T fitted on training users; 95 % intervals."
    return Table("By group", note, ["group", *header], rows) if rows else None


def guards_table(guards: dict) -> Table | None:
    """What every guard found."""
    rows = [
        [f["name"].replace("_", " "), f["level"], f"{f['count']} of {f['of']}", f["what"]] for f in guards["findings"]
    ]
    return Table("", "", ["guard", "finding", "count", "what"], rows) if rows else None


def shallow_table(records: dict) -> Table | None:
    """Accuracy of the baselines that read no content."""
    rows = [[name, spread(own), percent(own["train_accuracy"])] for name, own in records.items()]
    note = "Accuracy in percent of predicting the label from length alone and from characters alone."
    return Table("Baselines that do not read", note, ["baseline", "test", "train"], rows) if rows else None


def config_table(config: dict) -> Table:
    """The keys in which the run differs from configs/base.py."""
    defaults = configuration.flatten(base.get_config())
    rows = [[key, listed(value), listed(defaults[key])] for key, value in config.items() if value != defaults.get(key)]
    return Table("Configuration", "Keys that differ from configs/base.py.", ["key", "value", "default"], rows)


def listed(value) -> str:
    """A value of the configuration."""
    if isinstance(value, list):
        return ", ".join(map(listed, value)) or "()"
    return '""' if value == "" else str(value)


def environment_table(environment: dict) -> Table:
    """Versions, commit and devices."""
    return Table("Versions and devices", "", ["what", "value"], [[k, listed(v)] for k, v in environment.items()])


def seconds_table(record: dict) -> Table:
    """Wall time of the stages before this one."""
    stages = {name: own["seconds"] for name, own in record["stages"].items() if name != "report" and "seconds" in own}
    rows = [*stages.items(), ["sum", round(sum(stages.values()), 2)]]
    return Table("Wall time", "", ["stage", "seconds"], rows)


def benchmark_tables(found: dict) -> list[Table]:
    """For each rule of `reports/benchmark.json` the pairs that methods need to be as good as full finetuning."""
    shown = []
    for rule, what in found.get("rules", {}).items():
        rows = []
        for method, needed in found["needed"][rule].items():
            own = found["ratio"][rule].get(method)
            ratio = (
                own
                and own["ratio"]
                and f"{own['ratio']['ratio']:.2f} [{own['ratio']['low']:.2f}, {own['ratio']['high']:.2f}]"
            )
            kept = [f"{own['kept']:.0f}", spread(own, sign=True), ratio or "-"] if own else ["-", "-", "-"]
            rows.append([method, *(pairs_of(needed[axis]) for axis in ("annotated", "trained")), *kept])
        note = (
            f"{what[0].upper()}{what[1:]}. Pairs to come within {100 * found['margin']:g} points of full finetuning on "
            f"all data, which reaches {spread(found['target'][rule])} %; the ratio only where the method is not "
            "significantly worse."
        )
        header = [
            "method",
            "annotated pairs needed",
            "trained pairs needed",
            "kept pairs",
            "points against full",
            "all / kept",
        ]
        shown.append(Table(f"Equal {rule}", note, header, rows))
    return shown


def pairs_of(record: dict) -> str:
    """A number of pairs with its interval."""
    pairs, low, high = (
        "not reached" if record[key] is None else f"{record[key]:.0f}" for key in ("pairs", "low", "high")
    )
    return pairs if pairs == low == high else f"{pairs} [{low}, {high}]"
