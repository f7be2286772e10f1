"""Tables that only the page has: what was selected, whom it hurts, what the guards say, what was run."""

from collections.abc import Sequence

import numpy as np

from scpo_jax import configuration, metrics, tables
from scpo_jax.configs import base
from scpo_jax.tables import Table, percent, spread

LOWEST = 10  # communities shown where the main method gains least


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
    """What filter and weight change in accuracy and in excess bias."""
    rows = []
    for what, own in report.get("effects", {}).items():
        before, after = own["methods"]
        accuracies = [report["macro"][name]["all"] for name in (before, after)]
        costs = [report["excess_bias"][name]["mean"] for name in (before, after)]
        rows.append([
            f"{what}: {before} → {after}",
            " → ".join(percent(cell and cell["difference"]) for cell in accuracies), spread(own["accuracy"], sign=True),
            " → ".join(percent(cell and cell["difference"], True) for cell in costs), spread(own["excess_bias"], True),
        ])  # fmt: skip
    if not rows:
        return None
    note = (
        "Accuracy on all test pairs in percent, excess bias (what RMs lose on other groups' pairs against the global "
        "RM) in points, means over groups; changes on the same resamples."
    )
    if report.get("bayes"):
        note += f" Extreme annotators in this world: {percent(config['data.simulated.extreme_share'])} %."
    return Table(
        "What the filter and the weight do", note, ["added", "accuracy", "change", "excess bias", "change"], rows
    )


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


def guard_lines(guards: dict) -> list[str]:
    """What guards warn of."""
    return [
        f"{f['name'].replace('_', ' ')} ({f['level']}): {f['count']} of {f['of']} {f['what']}."
        for f in guards["findings"]
        if f["level"] != "ok"
    ]


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
