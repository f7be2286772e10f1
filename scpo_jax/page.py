"""`report.html`: all that was found on one page that needs neither network nor script; texts of users are escaped."""

import base64
import pathlib
from collections.abc import Sequence

import numpy as np
from etils import epath

from scpo_jax import benchmark_page, figures, logs, page_tables, passages, policy_page, storage, strengths, tables
from scpo_jax.data import preferences
from scpo_jax.drawing import Picture
from scpo_jax.tables import spread
from scpo_jax.workdir import Workdir

TEMPLATES = pathlib.Path(__file__).parent / "templates"
GROUPS_OF_EXAMPLES = 12  # shown; reports/examples.json has all


def write(workdir: Workdir) -> None:
    """Writes `report.html` and `figures/*.png` of a workdir that has the reports of a run."""
    report, summary = workdir.read_json(workdir.reports / "evaluation.json"), workdir.read_json(workdir.summary)
    selection = preferences.read_table(workdir.selection).to_pylist()
    found = workdir.read_json(benchmark_of(workdir), {})
    of_benchmark = benchmark_page.pictures(found)
    policies = workdir.read_json(workdir.reports / "policy.json", {})
    of_policies = policy_page.picture(policies)
    pictures = [*draw_all(workdir, report, selection), *([of_policies] if of_policies else []),
                *sum(of_benchmark.values(), [])]  # fmt: skip
    values = context(workdir, report, summary, selection)
    values |= {"benchmark": benchmark_page.section(found, of_benchmark)}
    values |= {"policy": policy_page.section(policies)}
    values |= {"commands": [workdir.record()["command"], *([found["command"]] if found else [])]}
    write_files(workdir, "run.html", values, pictures)


def write_benchmark(workdir: Workdir) -> None:
    """Writes `report.html` and `figures/*.png` of a workdir that has a benchmark alone."""
    found = workdir.read_json(benchmark_of(workdir))
    drawn = benchmark_page.pictures(found)
    write_files(workdir, "benchmark.html", benchmark_page.context(workdir, found, drawn), sum(drawn.values(), []))


def benchmark_of(workdir: Workdir) -> epath.Path:
    """What `scpo benchmark` found."""
    return workdir.reports / "benchmark.json"


def write_files(workdir: Workdir, template: str, values: dict, drawn: Sequence[Picture]) -> None:
    """Writes the page that a template makes of `values`, and its figures; removes other figures."""
    folder, pictures = workdir.root / "figures", {picture.name: picture for picture in drawn}
    for path in folder.glob("*.png"):
        if path.stem not in pictures:
            path.unlink()
    for name, picture in pictures.items():
        storage.write(folder / f"{name}.png", picture.png)
    html = render(template, values | {"pictures": pictures})
    storage.write(workdir.root / "report.html", html)


def draw_all(workdir: Workdir, report: dict, selection: Sequence[dict]) -> list[Picture]:
    """The figures of a run, of those for which there are data."""
    groups = report["groups"]
    drawn = [
        figures.accuracy(report) if groups else None,
        figures.methods(report),
        figures.kept(selection, groups),
        figures.weights(selection, groups),
        figures.controls(report),
        figures.trade_off(report),
        figures.heat_map(report),
        strengths.pareto(report["steering"]),
        strengths.curves(report["steering"]),
        figures.reliability(report),
        figures.training(report, training_curves(workdir, list(report["methods"]))),
    ]
    return [picture for picture in drawn if picture]


def render(template: str, values: dict) -> str:
    """A page; everything but the style is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data"] = lambda picture: base64.b64encode(picture.svg).decode()
    return environment.get_template(template).render(values)


def context(workdir: Workdir, report: dict, summary: dict, selection: Sequence[dict]) -> dict:
    """What the template of a run shows."""
    record, guards = workdir.record(), workdir.read_json(workdir.guards, {"findings": [], "baselines": {}})
    examples = workdir.read_json(workdir.reports / "examples.json", {})
    steered = [*(group for group in report["groups"] if group in examples),
               *(group for group in examples if group not in report["groups"])]  # fmt: skip
    return {
        "title": f"{record['config']['data.source']}: one reward model per group",
        "answer": answer(report),
        "warnings": warnings(report, guards),
        "sentences": list(report["controls"].get("sentences", {}).values()),
        "verdict_note": tables.verdict_note(report),
        "headline": tables.headline_table(report, selection),
        "selection": page_tables.selection_table(report, selection),
        "calibrated": page_tables.calibrated_table(workdir.read_json(workdir.calibration, {})),
        "accuracies": [tables.accuracy_table(report, which) for which in ("all", "agreed", "edited")],
        "gain": tables.gain_table(report),
        "paired": tables.paired_table(report),
        "weight": page_tables.weight_table(report, record["config"]),
        "controls": page_tables.controls_table(report),
        "fairness": tables.fairness_table(report) if report["paired"]["method"] else None,
        "bias": page_tables.bias_table(report),
        "steering": strengths.table(report["steering"]),
        "lowest": page_tables.lowest_table(report),
        "fields": page_tables.fields_table(report),
        "errors": page_tables.calibration_table(report),
        "majority": tables.majority_table(report),
        "baselines": tables.baseline_table(report),
        "examples": [example_lists(group, examples[group]) for group in steered[:GROUPS_OF_EXAMPLES]],
        "more_examples": max(0, len(steered) - GROUPS_OF_EXAMPLES),
        "guards": page_tables.guards_table(guards),
        "shallow": page_tables.shallow_table(guards["baselines"]),
        "data": tables.data_table(summary),
        "config": page_tables.config_table(record["config"]),
        "environment": page_tables.environment_table(record["environment"]),
        "commit": record["environment"]["commit"],
        "seconds": page_tables.seconds_table(record),
        "seed": record["config"]["seed"],
    }


def answer(report: dict) -> list[str]:
    """The findings in a few sentences."""
    method, said = report["paired"]["method"], []
    gain = report["gain"].get(method, {}).get("all")
    if gain:
        said.append(
            f"On the test pairs of its own group an RM of {method} differs from the global RM by "
            f"{spread(gain, sign=True)} points of accuracy, mean over {counted(gain['groups'], 'group')}."
        )
    random = report["paired"]["against"].get("random_subset", {}).get("mean")
    if random:
        said.append(f"Against a random subset of the same size: {spread(random, sign=True)} points.")
    if report["verdict"]:
        verdicts = list(report["verdict"].values())
        said.append(
            f"Culture is shown for {verdicts.count('culture')} of {counted(len(verdicts), 'group')}; for "
            f"{verdicts.count('data_set_only')} something that may be the data set's alone, for "
            f"{verdicts.count('none')} nothing."
        )
    effects = [report.get("effects", {}).get(what) for what in ("filter, nothing weighted", "weight, kept pairs")]
    if all(own and own["accuracy"] and own["excess_bias"] for own in effects):
        filter_, weight = (
            f"{spread(own['accuracy'], sign=True)} points and excess bias by {spread(own['excess_bias'], sign=True)}"
            for own in effects
        )
        said.append(
            f"Against full, the filter alone changes accuracy by {filter_}; the weight added to it by {weight}."
        )
    bias, worst = report["excess_bias"].get(method, {}).get("mean"), report["worst_group"].get(method)
    if bias:
        said.append(f"On the pairs of other groups they lose {spread(bias)} points against the global RM.")
    if worst:
        said.append(f"The worst-served group is {worst['group']} with {spread(worst)} %.")
    return said


def counted(number: int, what: str) -> str:
    """ "1 group", "2 groups"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def warnings(report: dict, guards: dict) -> list[str]:
    """What a reader has to know before the numbers."""
    few = [tables.few_users_line(report)] if report["too_few_users"] else []
    return few + page_tables.guard_lines(guards)


def training_curves(workdir: Workdir, methods: Sequence[str]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Of `figures.CURVES` -> method -> (step, mean over groups) from `metrics.jsonl`, of steps that all have."""
    found = {name: {} for name in figures.CURVES}
    for row in logs.read_metrics(workdir.root):
        for name in found.keys() & row.keys():
            method = row["training"].split("/")[0]
            if method not in methods or "/" not in row["training"]:
                continue  # controls are judged by other groups' users
            found[name].setdefault(method, {}).setdefault(row["step"], []).append(row[name])
    return {
        name: {
            method: [(step, float(np.mean(steps[step]))) for step in sorted(steps) if len(steps[step]) == len(steps[0])]
            for method, steps in own.items()
        }
        for name, own in found.items()
    }


def example_lists(group: str, lists: dict[str, list[dict]]) -> dict:
    """The examples of a group for the template; a pair that is nearest to several places is shown once."""
    titles = {
        "retained": "Retained pairs nearest to a global probability",
        "filtered": "Filtered pairs nearest to a global probability",
        "weights": "Pairs nearest to a weight",
    }
    shown = []
    for name, title in titles.items():
        pairs = {}
        for row in lists[name]:
            pairs.setdefault(row["pair_id"], row | {"places": []})["places"].append(f"{row['place']:g}")
        shown.append({"title": title, "pairs": [example(row) for row in pairs.values()]})
    return {"group": group, "lists": shown}


def example(row: dict) -> dict:
    """A pair for the template; prompts keep their end, where the question stands."""
    sides = [
        {
            "side": side,
            "text": passages.beginning(row[side]),
            "reward": f"{row[f'ref_{side}']:.2f}",
            "score": "" if row[f"score_{side}"] is None else f"{row[f'score_{side}']:g}",
            "direction": passages.direction(row[side]),
        }
        for side in ("chosen", "rejected")
    ]
    numbers = {
        "p": f"{row['p_global']:.3f}",
        "weight": f"{row['weight']:.3f}",
        "pair_id": row["pair_id"],
        "direction": passages.direction(row["prompt"]),
    }
    return {"places": ", ".join(row["places"]), "prompt": passages.end(row["prompt"]), "sides": sides, **numbers}
