"""The page of a run: whole, offline, without script, readable by machines that read it aloud; texts are escaped."""

import json
import re

import numpy as np
import pytest

from scpo_jax import drawing, figures, page, page_tables, passages
from scpo_jax.workdir import Workdir
from tests.run_helpers import GROUPS, Reader, check_page, scpo


def read(world) -> Reader:
    return Reader((world.workdir / "report.html").read_text(encoding="utf-8"))


def test_the_page_is_self_contained_and_accessible(finished):
    found = read(finished)
    check_page(found)
    assert len(found.all("img")) >= 7
    assert (finished.workdir / "report.html").stat().st_size < 5e6


def test_what_the_page_says(finished):
    text, record = read(finished).text, finished.record()
    assert all(group in text for group in GROUPS) and record["command"] in text
    for key in ("train.learning_rate", "global_rm.groups", record["environment"]["jax"], "template"):
        assert key in text
    for part in (
        "Result",
        "What was run",
        "Kept pairs",
        "Methods",
        "Whom it hurts",
        "Steering",
        "Calibration",
        "Examples",
        "Guards",
    ):
        assert part in text
    written = {path.stem for path in (finished.workdir / "figures").iterdir()}
    assert written == {
        "accuracy", "methods", "kept", "weights", "trade_off", "bias", "reliability", "pareto", "strengths"
    }  # fmt: skip
    assert all((finished.workdir / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG" for name in written)


def test_the_same_reports_give_the_same_page(copy):
    paths = [copy.workdir / "report.html", *(copy.workdir / "figures").iterdir()]
    before = [path.read_bytes() for path in paths]
    (copy.workdir / "figures" / "benchmark.png").write_bytes(b"of an earlier run")
    page.write(Workdir(copy.workdir))
    assert [path.read_bytes() for path in paths] == before
    assert not (copy.workdir / "figures" / "benchmark.png").exists()


ATTACK = "<script>alert('x')</script></p></details>&amp;\"{{ 7 * 7 }}{% raw %} Ünïcödé 日本 🎉"


def test_texts_of_users_are_escaped(copy):
    for name, keys in (("examples", ("prompt", "chosen", "rejected", "pair_id")), ("guards", ("what",))):
        path = copy.workdir / "reports" / f"{name}.json"
        lists = json.loads(path.read_text())
        rows = (
            lists["findings"]
            if name == "guards"
            else [r for own in lists.values() for part in own.values() for r in part]
        )
        for row in rows:
            row |= {key: ATTACK for key in keys} | ({"level": "warning"} if name == "guards" else {})
        path.write_text(json.dumps(lists))
    page.write(Workdir(copy.workdir))
    found = read(copy)
    assert not found.all("script") and found.text.count(ATTACK) > 20


def test_a_run_without_methods_has_a_page(copy):
    path = copy.workdir / "reports" / "evaluation.json"
    report = json.loads(path.read_text())
    for key in ("methods", "macro", "worst_group", "calibration", "bias", "margins"):
        report[key] = {"global": report[key]["global"]}
    for key in ("gain", "flips", "noise", "macro_noise", "excess_bias", "steps"):
        report[key] = {}
    report["paired"], report["fields"], report["steering"] = {"method": None, "against": {}}, {}, {}
    report["controls"] |= {"method": None}
    path.write_text(json.dumps(report))
    page.write(Workdir(copy.workdir))
    found = read(copy)
    assert "Whom it hurts" not in found.text and "Calibration" in found.text and len(found.all("img")) == 4


def test_a_benchmark_is_shown(copy):
    flags = ("--fractions=0.5,1", "--seeds=0", "--methods=full")
    assert scpo("benchmark", f"--config={copy.config}", f"--workdir={copy.workdir}", *flags) == 0
    found = read(copy)
    assert "Data efficiency" in found.text and "Whom it hurts" in found.text and "Pairs needed" in found.text
    check_page(found)
    assert (copy.workdir / "figures" / "benchmark_epochs_subsets.png").exists()


def test_many_groups_and_strange_names():
    groups = [f"$\\nope$ {i} 日本" for i in range(figures.MANY + 1)]
    rows = [
        {"group": group, "split": "train", "p_global": p, "keep": p < 0.7, "weight": min(1.0, 0.2 + p)}
        for group in groups
        for p in np.linspace(0.05, 0.95, 7)
    ]
    assert list(figures.panels_of(rows, groups)) == [f"{len(groups)} groups"]
    assert list(figures.panels_of(rows, [*groups[:2], "nobody"])) == groups[:2]
    assert b"\\nope" in figures.kept(rows, groups[:2]).svg and figures.kept([], groups) is None
    assert figures.weights(rows, groups).png[:4] == b"\x89PNG"


def test_reliability_of_all_groups_together():
    def bins(*cells):
        return {"bins": [dict(zip(("n", "confidence", "accuracy"), cell, strict=True)) for cell in cells]}

    own = [bins((10, 0.6, 0.5), (0, None, None), (0, None, None)), bins((30, 0.8, 0.9), (5, 0.9, 1.0), (0, None, None))]
    x, y, total = figures.pooled_bins(own)
    np.testing.assert_allclose((x, y), ([75, 90], [80, 100]))
    assert total.tolist() == [40, 5]


def test_training_curves(tmp_path):
    rows = [("scpo/a", 0, 0.5), ("scpo/b", 0, 0.7), ("scpo/a", 5, 0.6), ("scpo/b", 5, 0.9), ("scpo/a", 9, 1.0)]
    rows += [("pooled/a", 0, 0.1), ("global", 5, 0.1)]
    lines = [json.dumps({"training": name, "step": step, "validation_accuracy": own}) for name, step, own in rows]
    (tmp_path / "metrics.jsonl").write_text(
        "\n".join([*lines, '{"training": "scpo/a", "step": 6, "loss": 1.0}']) + "\n"
    )
    found = page.training_curves(Workdir(tmp_path), ["global", "scpo"])
    assert found["validation_accuracy"] == {"scpo": [(0, pytest.approx(0.6)), (5, pytest.approx(0.75))]}
    assert found["validation_agreed"] == {}
    assert figures.training({"methods": {"global": {}, "scpo": {}}}, found).name == "training"


def record(accuracy: float) -> dict:
    return {"accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1}


def test_communities_that_gain_least():
    def cell(users, before, after):
        return {"users": users, "pairs": 99, "methods": {"global": record(before), "scpo": record(after)}}

    fields = {
        "a": {"age": {"old": cell(30, 0.6, 0.5), "young": cell(40, 0.5, 0.7)}, "era": {"old": cell(30, 0.6, 0.5)}}
    }
    found = page_tables.lowest_table({"paired": {"method": "scpo"}, "fields": {"groups": fields}})
    assert [row[:4] + row[-1:] for row in found.rows] == [
        ["a", "age", "old", 30, "-10.0"],
        ["a", "age", "young", 40, "+20.0"],
    ]
    assert "The 2 lowest of 2" in found.note
    assert page_tables.lowest_table({"paired": {"method": "scpo"}, "fields": {}}) is None


def test_what_filter_and_weight_do():
    def change(points):
        return {"difference": points / 100, "low": points / 100 - 0.01, "high": points / 100 + 0.01}

    effects = {
        what: {"methods": list(names), "accuracy": change(gain), "excess_bias": change(-gain / 2)}
        for what, names, gain in (
            ("filter, nothing weighted", ("full", "filter_only"), -5),
            ("weight, kept pairs", ("filter_only", "scpo"), 6),
        )
    }
    names = ("full", "filter_only", "scpo")
    report = {
        "effects": effects,
        "macro": {name: {"all": change(60 + i)} for i, name in enumerate(names)},
        "excess_bias": {name: {"mean": change(i)} for i, name in enumerate(names)},
        "bayes": {"a": {}},
    }
    found = page_tables.weight_table(report, {"data.simulated.extreme_share": 0.15})
    assert "15.0 %" in found.note
    assert found.rows == [
        ["filter, nothing weighted: full → filter_only", "60.0 → 61.0", "-5.0 [-6.0, -4.0]", "+0.0 → +1.0",
         "+2.5 [+1.5, +3.5]"],
        ["weight, kept pairs: filter_only → scpo", "61.0 → 62.0", "+6.0 [+5.0, +7.0]", "+1.0 → +2.0",
         "-3.0 [-4.0, -2.0]"],
    ]  # fmt: skip
    report |= {"paired": {"method": None, "against": {}}, "gain": {}, "verdict": {}, "worst_group": {}}
    assert page.answer(report) == [
        "Against full, the filter alone changes accuracy by -5.0 [-6.0, -4.0] points and excess bias by +2.5 [+1.5, "
        "+3.5]; the weight added to it by +6.0 [+5.0, +7.0] points and excess bias by -3.0 [-4.0, -2.0]."
    ]
    effects["weight, kept pairs"]["excess_bias"] = None  # of a single group
    assert page.answer(report) == [] and page_tables.weight_table(report, {"data.simulated.extreme_share": 0}).rows


def test_direction_of_a_text():
    assert passages.direction("שלום, an English reply") == "ltr" and passages.direction("مرحبا بكم ok") == "rtl"
    assert passages.direction("") == passages.direction("42!") == "ltr"


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.2)."""
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_colours_stand_out():
    """WCAG 2.2: 4.5 for text, 3 for what has to be told from the ground."""
    style = (page.TEMPLATES / "report.css").read_text()
    text = [colour if len(colour) == 7 else "#" + "".join(2 * c for c in colour[1:])
            for colour in re.findall(r"--(?:ink|soft|accent): (#\w+)", style)]  # fmt: skip
    assert len(text) == 3 and all(1.05 / (luminance(colour) + 0.05) >= 4.5 for colour in text)
    assert all(1.05 / (luminance(colour) + 0.05) >= 3 for colour in drawing.METHOD_COLOURS)
    assert len(set(drawing.METHOD_COLOURS)) == len(drawing.METHOD_COLOURS)
