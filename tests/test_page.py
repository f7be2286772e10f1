"""The page of a run: whole, offline, without script, readable by machines that read it aloud; texts are escaped."""

import html.parser
import json
import re

import numpy as np
import pytest

from scpo_jax import drawing, figures, page, page_tables
from scpo_jax.workdir import Workdir
from tests.run_helpers import GROUPS, scpo

VOID = {"meta", "img", "br", "link", "input"}


class Reader(html.parser.HTMLParser):
    """Elements, text and nesting of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if "style" not in self.open else ""

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def read(world) -> Reader:
    return Reader((world.workdir / "report.html").read_text(encoding="utf-8"))


def test_the_page_is_self_contained_and_accessible(finished):
    found = read(finished)
    assert not found.all("script", "link", "iframe", "object")
    addresses = [own[key] for _, own in found.elements for key in ("src", "href") if key in own]
    assert addresses and all(address.startswith(("data:image/svg+xml;base64,", "#")) for address in addresses)
    targets = {own["id"] for _, own in found.elements if "id" in own}
    assert {address[1:] for address in addresses if address.startswith("#")} <= targets
    (page_of,), pictures = found.all("html"), found.all("img")
    assert page_of == {"lang": "en"} and len(pictures) >= 7 and all(len(own["alt"]) > 40 for own in pictures)
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert all("scope" in own for own in found.all("th"))
    assert all(own.get("aria-label") for own in found.all("div") if own.get("class") == "scroll")
    policy = [own["content"] for own in found.all("meta") if own.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
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
    assert "Data efficiency" in found.text and "annotated pairs needed" in found.text
    assert (copy.workdir / "figures" / "benchmark.png").exists()


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
    names = ("full", "weight_only", "filter_only")
    report = {
        "methods": dict.fromkeys(names),
        "macro": {name: {"all": record(0.6 + 0.1 * i)} for i, name in enumerate(names)},
        "excess_bias": {
            name: {"mean": {"difference": 0.01 * i, "low": 0, "high": 0.1}} for i, name in enumerate(names)
        },
        "bayes": {"a": {}},
    }
    found = page_tables.weight_table(report, {"data.simulated.extreme_share": 0.15})
    assert [row[1] for row in found.rows] == ["full → filter_only", "full → weight_only"] and "15.0 %" in found.note
    assert found.rows[1][2:] == ["60.0 [50.0, 70.0]", "70.0 [60.0, 80.0]", "+0.0 [+0.0, +10.0]", "+1.0 [+0.0, +10.0]"]


def test_data_efficiency():
    def needed(pairs, low, high):
        return dict(zip(("pairs", "low", "high"), (pairs, low, high), strict=True))

    def points(start):
        return [{"annotated": n, "trained": n / 2, "all": record(start + n / 1000)} for n in (10, 100)]

    ratio = {"kept": 70, "ratio": None, "difference": -0.02, "low": -0.03, "high": -0.01}
    found = {
        "rules": {"steps": "every cell makes 5 steps"}, "margin": 0.005, "target": {"steps": record(0.7)},
        "curves": {"steps": {"full": points(0.6), "scpo": points(0.55)}}, "ratio": {"steps": {"scpo": ratio}},
        "needed": {"steps": {"full": {"annotated": needed(90.0, 50.0, None), "trained": needed(90.0, 90.0, 90.0)},
                             "scpo": dict.fromkeys(("annotated", "trained"), needed(None, None, None))}},
    }  # fmt: skip
    (table,) = page_tables.benchmark_tables(found)
    assert table.rows[0][1:3] == ["90 [50, not reached]", "90"] and table.rows[1][1] == "not reached"
    assert table.rows[1][3:] == ["70", "-2.0 [-3.0, -1.0]", "-"] and "70.0 [60.0, 80.0] %" in table.note
    assert figures.benchmark(found).svg and figures.benchmark({}) is None and page_tables.benchmark_tables({}) == []


def test_direction_of_a_text():
    assert page.direction("שלום, an English reply") == "ltr" and page.direction("مرحبا بكم ok") == "rtl"
    assert page.direction("") == page.direction("42!") == "ltr"


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
