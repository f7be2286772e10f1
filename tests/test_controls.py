"""Control trainings: what they are trained on, and what may be claimed from them."""

import json

import numpy as np
import pytest

from scpo_jax import checkpoint, controls, scored_pairs, workdir
from scpo_jax.controls import Material
from scpo_jax.data import preferences
from tests.run_helpers import GROUPS, World, refusal


@pytest.fixture
def own() -> dict[str, Material]:
    def material(group: str, rows: int, held_out: int) -> Material:
        made = [[{"pair_id": f"{group}{i}", "group": group} for i in range(n)] for n in (rows, held_out)]
        return Material(made[0], np.arange(rows, dtype=np.float32), made[1], (group,))

    return {"A": material("A", 60, 6), "B": material("B", 40, 4), "C": material("C", 80, 8)}


def test_pooled_pairs_are_as_many_and_of_all_groups(own):
    drawn = controls.draw("pooled", "B", own, np.random.default_rng(0))
    assert (len(drawn.rows), len(drawn.held_out), drawn.source) == (40, 4, ("A", "B", "C"))
    assert len({row["pair_id"] for row in drawn.rows}) == 40 and {row["group"] for row in drawn.rows} == set("ABC")
    assert [int(row["pair_id"][1:]) for row in drawn.rows] == drawn.weights.tolist()  # every pair keeps its weight
    assert drawn.rows == controls.draw("pooled", "B", own, np.random.default_rng(0)).rows


def test_another_group_has_as_many_pairs_if_one_has(own):
    sources = {controls.draw("other_country", "B", own, np.random.default_rng(s)).source for s in range(20)}
    assert sources == {("A",), ("C",)}
    drawn = controls.draw("other_country", "A", own, np.random.default_rng(0))
    assert (len(drawn.rows), len(drawn.held_out)) == (60, 6)
    assert {row["group"] for row in drawn.rows + drawn.held_out} == {"C"}
    fewer = controls.draw("other_country", "C", own, np.random.default_rng(0))
    assert (len(fewer.rows), fewer.source) == (60, ("A",))  # none has 80: all of the largest
    assert controls.draw("other_country", "A", {"A": own["A"]}, np.random.default_rng(0)) is None


def test_shuffled_labels_are_coins():
    row = {"prompt": "q", "chosen_id": "g", "rejected_id": "b", "ref_chosen": 2.0, "ref_rejected": -1.0}
    rows = [row | {"pair_id": f"p{i}", "chosen": f"good{i}", "rejected": f"bad{i}"} for i in range(400)]
    found = controls.shuffled(rows, np.random.default_rng(0))
    flipped = [i for i in range(400) if found[i] != rows[i]]
    assert 160 < len(flipped) < 240
    for i in flipped:
        assert (found[i]["chosen"], found[i]["rejected"], found[i]["chosen_id"]) == (f"bad{i}", f"good{i}", "b")
        assert (found[i]["ref_chosen"], found[i]["ref_rejected"]) == (-1.0, 2.0) and found[i]["pair_id"] != f"p{i}"


def group_pairs(name: str, users: int, accuracies: dict[str, float]) -> scored_pairs.GroupPairs:
    rng = np.random.default_rng(0)
    made = scored_pairs.test_pairs([{"user_id": f"{name}{i // 5}"} for i in range(5 * users)], name=name)
    luck = rng.random(5 * users)
    made.margins.update({rival: np.where(luck < accuracy, 1.0, -1.0) for rival, accuracy in accuracies.items()})
    return made


RIVALS = ("scpo", "pooled", "other_country", "global")


def test_verdicts():
    accuracies = {
        "culture": (0.8, 0.65, 0.6, 0.6),
        "pooled is as good": (0.8, 0.8, 0.6, 0.6),
        "another is as good": (0.8, 0.6, 0.8, 0.6),
    }
    groups = {name: group_pairs(name, 60, dict(zip(RIVALS, own, strict=True))) for name, own in accuracies.items()}
    groups["nothing"] = group_pairs("nothing", 15, dict(zip(RIVALS, (0.7, 0.71, 0.69, 0.7), strict=True)))
    groups["not trained"] = group_pairs("not trained", 60, {"global": 0.7})
    found = controls.findings(groups, "scpo", controls.CONTROLS)
    expected = ["culture", "data_set_only", "data_set_only", "none"]
    assert found["verdict"] == dict(zip(groups, expected, strict=False))
    tests = found["tests"]["culture"]
    assert tests["pooled"]["difference"] == pytest.approx(0.15, abs=0.06) and tests["pooled"]["p"] < 0.01
    assert tests["p_culture"] == pytest.approx(4 * max(tests[name]["p"] for name in ("pooled", "other_country")))
    assert found["sentences"].keys() == found["verdict"].keys()
    assert "15 test users are too few" in found["sentences"]["nothing"]
    assert "too few" not in found["sentences"]["culture"] and "of its own" in found["sentences"]["culture"]


def test_holm_takes_back_a_claim_that_would_hold_alone():
    alone = {"A": group_pairs("A", 20, {"scpo": 0.75, "pooled": 0.72, "other_country": 0.5, "global": 0.5})}
    found = controls.findings(alone, "scpo", controls.CONTROLS)
    assert 0.01 < found["tests"]["A"]["p_culture"] < 0.05 and found["verdict"]["A"] == "culture"
    seven = alone | {name: group_pairs(name, 20, dict.fromkeys(RIVALS, 0.6)) for name in "BCDEFG"}
    assert controls.findings(seven, "scpo", controls.CONTROLS)["verdict"]["A"] == "data_set_only"


def test_without_both_controls_there_is_no_verdict():
    groups = {"A": group_pairs("A", 60, {"scpo": 0.8, "pooled": 0.6, "global": 0.6})}
    found = controls.findings(groups, "scpo", ("pooled",))
    assert found["verdict"] == {} and found["tests"]["A"]["pooled"]["p"] < 0.05


def test_the_main_method():
    assert controls.main_method(("full", "scpo")) == "scpo" and controls.main_method(("full",)) == "full"
    assert controls.main_method(()) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("controls"))
    assert world.run("--config.controls=pooled,other_country,shuffled", "--config.scpo.methods=scpo") == 0
    return world


def test_a_run_with_controls_trains_them(run):
    place = workdir.Workdir(run.workdir)
    assert place.methods() == ["other_country", "pooled", "scpo", "shuffled"]
    slugs = preferences.slugs(GROUPS)
    for group in GROUPS:
        cards = {m: checkpoint.load_card(place.checkpoint_of(m, group, slugs)) for m in place.methods()}
        assert all(card["group"] == group for card in cards.values())
        assert cards["pooled"]["pairs"] == cards["scpo"]["pairs"] >= cards["shuffled"]["pairs"] > 0
        assert cards["scpo"]["trained_on"] == cards["shuffled"]["trained_on"] == [group]
        assert cards["pooled"]["trained_on"] == list(GROUPS)
        assert set(cards["other_country"]["trained_on"]) < set(GROUPS) - {group}


def test_a_run_with_controls_reports_them(run):
    report = json.loads((run.workdir / "reports" / "evaluation.json").read_text())
    assert list(report["methods"]) == ["global", "scpo"]  # controls are no methods
    assert set(report["controls"]["accuracy"]) == {"pooled", "other_country", "shuffled"}
    assert report["verdict"].keys() == report["controls"]["sentences"].keys() == set(GROUPS)
    assert set(report["verdict"].values()) <= {"culture", "data_set_only", "none"}
    assert report["too_few_users"] == list(GROUPS)
    assert report["bias"].keys() == {"global", "scpo"} and report["bias"]["scpo"].keys() == set(GROUPS)
    for group in GROUPS:
        assert report["bias"]["scpo"][group][group] == report["methods"]["scpo"][group]["all"]["accuracy"]
        assert report["calibration"]["scpo"][group]["temperature"] > 0
        assert report["flips"]["scpo"][group]["low"] <= report["flips"]["scpo"][group]["mean"]
    summary = (run.workdir / "reports" / "summary.md").read_text()
    assert "## Culture or data set?" in summary and "the interval is too narrow" in summary
    assert all(sentence in summary for sentence in report["controls"]["sentences"].values())


def test_controls_need_a_method(run, tmp_path, capsys):
    flags = [f"--config={run.config}", f"--workdir={tmp_path}", "--config.controls=pooled", "--config.scpo.methods="]
    assert "config.controls stand beside the RMs of a method" in refusal(capsys, "run", *flags)
