"""Accuracy along the strength: records by hand, and the section that a run writes."""

import json

import numpy as np
import pytest

from scpo_jax import bias, scored_pairs, strengths
from scpo_jax.strengths import Point
from tests.run_helpers import pairs, scpo, write_rows


def made(name, users, margins):
    found = scored_pairs.test_pairs([{"user_id": user} for user in users], name=name)
    found.margins["global"] = np.array(margins, float)
    return found


GROUPS_OF_TWO = {"A": made("A", ["a", "a", "b"], [1, -1, 1]), "B": made("B", ["c", "d"], [1, -1])}
POINTS = {
    0.0: Point({group: own.margins["global"] for group, own in GROUPS_OF_TWO.items()}, bias.global_rows(GROUPS_OF_TWO)),
    0.5: Point(
        {"A": np.array([1, 1, -1]), "B": np.array([1, 1])},
        {"A": {"A": np.ones(3), "B": np.array([-1, -1])}, "B": {"A": np.array([1, 1, 1]), "B": np.ones(2)}},
    ),
}


def test_records_by_hand():
    found = strengths.report("scpo", POINTS, GROUPS_OF_TWO, GROUPS_OF_TWO)
    assert (found["method"], found["strengths"], found["groups"]) == ("scpo", [0.0, 0.5], ["A", "B"])
    estimates = {kind: [own["difference"] for own in found[kind]] for kind in strengths.KINDS}
    assert estimates["own"] == pytest.approx([(2 / 3 + 1 / 2) / 2, (2 / 3 + 1) / 2])
    assert estimates["others"] == pytest.approx([(1 / 2 + 2 / 3) / 2, (0 + 1) / 2])
    assert estimates["agreed"] == [None, pytest.approx((1 / 2 + 1) / 2)]  # by definition at strength 0
    for kind in strengths.KINDS:
        record = found[kind][1]
        assert record["low"] <= record["difference"] <= record["high"]
    assert strengths.report(None, {}, {}, {}) == {} and strengths.table({}) is None and strengths.curves({}) is None


def test_a_single_group_has_no_others():
    one = {"A": GROUPS_OF_TWO["A"]}
    point = Point({"A": np.ones(3)}, {"A": {"A": np.ones(3)}})
    found = strengths.report("scpo", {0.0: point, 1.0: point}, one, one)
    assert found["others"] == [None, None] and strengths.pareto(found) is None and strengths.curves(found).png
    assert [row[2] for row in strengths.table(found).rows] == ["-", "-"]


def test_what_a_run_writes(finished, tmp_path):
    report = json.loads((finished.workdir / "reports" / "evaluation.json").read_text())
    found = report["steering"]
    assert found["method"] == "scpo" and found["strengths"] == list(strengths.STRENGTHS)
    zero, one = found["strengths"].index(0), found["strengths"].index(1)
    for method, place in (("global", zero), ("scpo", one)):
        assert found["own"][place] == report["macro"][method]["all"]
    assert found["agreed"][one] == report["macro"]["scpo"]["agreed"]
    loss = found["others"][zero]["difference"] - found["others"][one]["difference"]
    assert loss == pytest.approx(report["excess_bias"]["scpo"]["mean"]["difference"])
    accuracies = [on_test_pairs(finished, group, 1.5, tmp_path) for group in report["groups"]]
    assert found["own"][-1]["difference"] == pytest.approx(np.mean(accuracies))
    for name in ("pareto", "strengths"):
        assert (finished.workdir / "figures" / f"{name}.png").exists()
    assert "Accuracy along the strength" in (finished.workdir / "report.html").read_text()


def on_test_pairs(finished, group: str, strength: float, folder) -> float:
    """Accuracy of `scpo evaluate --profile` on the test pairs of a group."""
    test = set(json.loads((finished.workdir / "data" / "split.json").read_text())["test"])
    rows = [row for row in pairs() if row["group"] == group and row["user_id"] in test]
    source = write_rows(folder / "test.jsonl", rows)
    flags = (f"--data={source}", f"--output={folder / 'out'}", f"--profile={json.dumps({group: strength})}")
    assert scpo("evaluate", f"--model={finished.workdir}", *flags) == 0
    return json.loads((folder / "out").read_text())["methods"]["scpo"][group]["all"]["accuracy"]
