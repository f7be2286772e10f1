"""Records, reports and baselines on pairs that can be counted by hand."""

import json

import numpy as np
import pytest

from scpo_jax import evaluate, metrics, reference_reports, scored_pairs
from scpo_jax.scored_pairs import GroupPairs


def pairs(global_margins, users=None, tau_test=0.5, **margins) -> GroupPairs:
    n = len(global_margins)
    users = users or [f"u{i}" for i in range(n)]
    rows = [
        {"pair_id": f"p{i}", "user_id": user, "prompt": "q", "chosen": f"c{i}", "rejected": f"r{i}"}
        for i, user in enumerate(users)
    ]
    made = scored_pairs.test_pairs(rows, tau_test)
    made.margins["global"] = np.array(global_margins, np.float32)
    made.margins.update({name: np.array(values, np.float32) for name, values in margins.items()})
    return made


@pytest.fixture
def groups():
    return {
        "A": pairs([0.5, -0.25, 0.0, 1.5], scpo=[0.1, 0.2, -0.3, -0.4]),
        "B": pairs([-1.0, 2.0], scpo=[0.7, 0.0]),
        "C": pairs([1.0, 2.0, 3.0]),  # no RM of its own
    }


def test_records(groups):
    found = scored_pairs.records(groups, "scpo")
    assert list(found) == ["A", "B"]
    counts = {which: (A["accuracy"], A["n"], A["ties"]) for which, A in found["A"].items()}
    assert counts == {"all": (0.5, 4, 0), "edited": (1.0, 1, 0), "agreed": (0.5, 2, 0)}  # a tie is neither
    assert (found["B"]["all"]["accuracy"], found["B"]["all"]["ties"]) == (0.5, 1)
    assert scored_pairs.records(groups, "global")["A"]["all"]["ties"] == 1
    nothing = scored_pairs.records(groups, "global")["C"]["edited"]
    assert nothing == {"accuracy": None, "low": None, "high": None, "n": 0, "ties": 0}


def test_what_is_constant_by_definition_is_none(groups):
    found = scored_pairs.records(groups, "global")["A"]
    assert found["agreed"] == {"accuracy": None, "low": None, "high": None, "n": 2, "ties": 0}
    assert (found["edited"]["accuracy"], found["edited"]["n"]) == (None, 1) and found["all"]["accuracy"] == 0.5
    means = scored_pairs.macro(groups, ["global", "scpo"])
    assert means["global"]["edited"]["difference"] is None and means["global"]["agreed"]["high"] is None
    assert means["global"]["all"]["difference"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert means["scpo"]["edited"]["difference"] == 1.0
    wider = scored_pairs.records({"A": pairs([0.5, -0.25], tau_test=0.7)}, "global")["A"]
    assert wider["edited"]["accuracy"] == 0.5 and wider["agreed"]["accuracy"] is None


def test_flips_are_pairs_on_which_one_is_right(groups):
    assert scored_pairs.flips("scpo")(groups["A"]).tolist() == [0, 1, 0, 1]


def test_a_global_rm_with_noise_against_drawn_noise():
    """The closed form is the mean over draws of noise on every distinct text; equal texts never become right."""
    made = pairs([0.5, -0.5, -2.0, 0.0, 0.1])
    made.rows[3]["rejected"] = made.rows[3]["chosen"]
    made.movement["scpo"] = 0.7
    noise = np.random.default_rng(0).normal(0, 0.7, (200_000, 5, 2))
    noise[:, 3, 1] = noise[:, 3, 0]
    drawn = (made.margins["global"] + noise[..., 0] - noise[..., 1] > 0).mean(0)
    np.testing.assert_allclose(scored_pairs.noisy_global("scpo")(made), drawn, atol=0.005)
    record = scored_pairs.noise_records({"A": made}, "scpo")["A"]
    assert record["movement"] == 0.7 and record["edited"]["mean"] == pytest.approx(drawn[1:3].mean(), abs=0.005)
    made.movement["scpo"] = 0.0
    assert scored_pairs.noisy_global("scpo")(made).tolist() == [1, 0, 0, 0, 1]


def test_compare_is_paired_by_group_and_in_the_mean(groups):
    found = scored_pairs.compare(groups, "scpo", "global")
    assert found["groups"].keys() == {"A", "B"} and found["groups"]["A"]["difference"] == 0
    assert found["mean"]["groups"] == 2 and 0 < found["mean"]["p"] <= 1
    assert scored_pairs.compare(groups, "scpo", "full") == {"groups": {}, "mean": None}


def test_groups_of_one_size_are_resampled_independently():
    rows = [{"user_id": f"u{i}"} for i in range(30)]
    first, second = (scored_pairs.test_pairs(rows, name=name).counts for name in ("A", "B"))
    assert np.abs(first - second).sum() > 0
    np.testing.assert_array_equal(first, scored_pairs.test_pairs(rows, name="A").counts)


def test_tau_test_moves_the_edited_set():
    made = pairs([0.5, -0.25, 0.9, 1.5], tau_test=0.7)  # logit(0.7) is 0.847
    assert made.subset("edited").tolist() == [True, True, False, False]
    assert made.subset("agreed").tolist() == [True, False, True, True]


def test_percent_report_has_the_shape_of_the_reference(groups):
    report = reference_reports.percent_report(groups, ("scpo",), "all")
    assert report["A"] == {"start": 50.0, "scpo": 50.0}
    assert report["C"] == {"start": 100.0}
    assert report["avg"] == {"start": pytest.approx((50 + 50 + 100) / 3), "scpo": 50.0}
    edited = reference_reports.percent_report(groups, ("scpo",), "edited")
    assert edited["B"] == {"start": 0.0, "scpo": 100.0} and edited["C"] == {"start": None}
    assert edited["avg"] == {"start": 0.0, "scpo": 100.0}
    json.dumps(edited, allow_nan=False)


def test_edited_ratios_pool_all_pairs():
    selection = [{"group": g, "split": s, "keep": k} for g, s, k in (
        ("A", "train", True), ("A", "train", False), ("A", "train", False), ("B", "train", True), ("A", "test", False),
    )]  # fmt: skip
    ratios = reference_reports.edited_ratios(selection, ["A", "B", "C"])
    assert ratios == {"train": {"A": 1 / 3, "B": 1.0, "avg": 0.5}, "test": {"A": 0.0, "avg": 0.0}}


def test_gain_is_paired_and_a_mean_over_groups(groups):
    gain = scored_pairs.gain(groups, "scpo")
    assert gain["all"]["difference"] == pytest.approx((0 + 0) / 2) and gain["all"]["groups"] == 2
    assert gain["edited"]["difference"] == pytest.approx(1.0)
    assert gain["agreed"]["difference"] == pytest.approx((-0.5 - 1) / 2)
    same = scored_pairs.gain({"A": pairs([0.5, -0.25, 1.0], scpo=[0.5, -0.25, 1.0])}, "scpo")
    assert same["all"] == {"difference": 0, "low": 0, "high": 0, "groups": 1}  # same resamples


def test_the_bootstrap_is_over_users():
    rng = np.random.default_rng(2)
    right = rng.random(40) < 0.6
    margins = np.where(np.repeat(right, 25), 0.5, -0.5)  # 25 pairs of a user stand and fall together
    users = [f"u{i}" for i in range(40) for _ in range(25)]
    clustered = scored_pairs.records({"A": pairs(margins, users)}, "global")["A"]["all"]
    naive = scored_pairs.records({"A": pairs(margins)}, "global")["A"]["all"]
    spread = np.sqrt(right.mean() * (1 - right.mean()) / 40)
    assert clustered["high"] - clustered["low"] == pytest.approx(2 * 1.96 * spread, rel=0.15)
    assert naive["high"] - naive["low"] < 0.3 * (clustered["high"] - clustered["low"])


def test_bootstrap_counts_draw_whole_users():
    users = np.array(["b", "a", "b", "c"])
    counts = metrics.bootstrap_counts(users, np.random.default_rng(0), resamples=2000)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 2])
    np.testing.assert_array_equal(counts[:, 0] + counts[:, 1] + counts[:, 3], 3)
    np.testing.assert_allclose(counts.mean(0), 1, atol=0.08)


def test_option_text_baseline():
    rate = evaluate.win_rates([{"chosen": "yes", "rejected": "no"}] * 3 + [{"chosen": "no", "rejected": "yes"}])
    assert (rate("yes"), rate("no"), rate("maybe")) == (0.75, 0.25, 0.5)
