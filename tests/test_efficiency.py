"""Statistics of the benchmark: on curves that can be read by eye, against scipy, and on seeds of known accuracy."""

import json
import re

import numpy as np
import pytest
import scipy.optimize

from scpo_jax import benchmark, benchmark_tables, efficiency, scored_pairs
from scpo_jax.efficiency import GLOBAL, Key

FRACTIONS = (0.25, 0.5, 1.0)
PAIRS = {0.25: 100, 0.5: 200, 1.0: 400}


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_isotonic_regression_is_that_of_scipy(size):
    rng = np.random.default_rng(size)
    for values in (rng.normal(size=size), rng.integers(3, size=size), np.arange(size), -np.arange(size)):
        np.testing.assert_allclose(
            efficiency.isotonic(values), scipy.optimize.isotonic_regression(values).x, atol=1e-12
        )


@pytest.mark.parametrize(
    ("accuracies", "target", "expected"),
    [
        ((0.5, 0.6, 0.7, 0.8), 0.65, 150),  # on the line between two points
        ((0.5, 0.6, 0.7, 0.8), 0.7, 200),
        ((0.5, 0.6, 0.7, 0.8), 0.55, 50),  # between the global RM and the first point
        ((0.5, 0.6, 0.7, 0.8), 0.5, 0),  # the global RM is there already
        ((0.5, 0.6, 0.7, 0.8), 0.81, np.inf),
        ((0.5, 0.8, 0.6, 0.7), 0.6, 50),  # 0.8, 0.6, 0.7 are pooled to 0.7
        ((0.5, 0.8, 0.6, 0.7), 0.75, np.inf),  # 0.8 alone was luck
        ((0.7, 0.6, 0.5, 0.4), 0.56, np.inf),
    ],
)
def test_pairs_needed(accuracies, target, expected):
    assert efficiency.pairs_needed((0, 100, 200, 400), accuracies, target) == pytest.approx(expected)


METHODS = ("full", "scpo", "propose", "random_subset", "random_annotation", "trim")


def seed(number: int, accuracies: dict, kept: float = 0.5, users: int = 150, same_users: bool = False):
    """A seed with three groups; `accuracies` are those of each method by fraction, on pairs with luck in common."""
    rng = np.random.default_rng(number)
    groups, correct = {}, {}
    for group in "ABC":
        name = group if same_users else f"{number}{group}"
        rows = [{"user_id": f"{name}{i // 4}"} for i in range(4 * users)]
        groups[group] = scored_pairs.test_pairs(rows, name=name)
        luck = rng.random(4 * users)
        groups[group].margins["global"] = 0.6 - luck
        for method, own in accuracies.items():
            for fraction, accuracy in zip(FRACTIONS, own, strict=True):
                noisy = np.where(rng.random(4 * users) < 0.1, rng.random(4 * users), luck)
                correct.setdefault(Key("steps", method, fraction), {})[group] = (noisy < accuracy).astype(float)
    counts = {}
    for key in correct:
        pairs = 3 * PAIRS[key.fraction]
        trained = round(kept * pairs) if key.method in ("scpo", "random_subset") else pairs
        annotated = trained if key.method == "random_subset" else pairs
        counts[key] = {"annotated": annotated, "trained": trained, "steps": 30}
    return efficiency.seed_of(groups, correct, counts)


CURVES = {
    "full": (0.64, 0.7, 0.76),
    "scpo": (0.7, 0.76, 0.79),
    "propose": (0.66, 0.72, 0.76),
    "random_subset": (0.62, 0.64, 0.65),
    "random_annotation": (0.64, 0.7, 0.76),
    "trim": (0.66, 0.74, 0.79),
}


@pytest.fixture(scope="module")
def report():
    design = benchmark.Design(FRACTIONS, (0, 1, 2), METHODS, ("steps",))
    return benchmark.report_of(design, {str(i): seed(i, CURVES) for i in range(3)}, 80)


def test_the_two_numbers(report):
    needed = report["needed"]["steps"]
    scpo, full = needed["scpo"], needed["full"]
    assert scpo["annotated"]["pairs"] == pytest.approx(3 * 195, rel=0.15)  # 0.755 on the line to (200, 0.76)
    assert scpo["trained"]["pairs"] == pytest.approx(scpo["annotated"]["pairs"] / 2)
    assert scpo["annotated"]["low"] < scpo["annotated"]["pairs"] < scpo["annotated"]["high"] < 1200
    assert full["annotated"]["share"] == pytest.approx(0.96, abs=0.05) and scpo["annotated"]["share"] < 0.6
    assert needed["random_subset"]["trained"] | {"share": None} == {
        "pairs": None, "low": None, "high": None, "share": None, "reached": 0.0
    }  # fmt: skip


def test_an_end_of_the_interval_may_not_be_reached():
    curves = CURVES | {"scpo": (0.7, 0.74, 0.757)}
    seeds = efficiency.Seeds([seed(i, curves, users=60) for i in range(3)], np.random.default_rng(0))
    found = efficiency.needed(seeds, "steps", "scpo", FRACTIONS, "annotated")
    assert found["low"] is not None and found["high"] is None and 0.1 < found["reached"] < 0.97
    assert "not reached]" in benchmark_tables.pairs_of(found)


def test_the_ratio_is_given_only_where_nothing_is_lost(report):
    ratio = report["ratio"]["steps"]
    assert ratio.keys() == {"scpo", "random_subset"}  # the others save no pair
    assert ratio["scpo"]["ratio"] == {"ratio": 2.0, "low": 2.0, "high": 2.0} and ratio["scpo"]["difference"] > 0
    assert ratio["random_subset"]["ratio"] is None and ratio["random_subset"]["p"] < 0.01


def test_methods_are_compared_on_equal_shares(report):
    rows = {(row["fraction"], row["method"], row["against"]): row for row in report["paired"]["steps"]}
    row = rows[0.5, "propose", "random_annotation"]
    assert row["low"] < row["difference"] < row["high"] and row["difference"] == pytest.approx(0.02, abs=0.015)
    assert rows[1.0, "scpo", "full"]["p"] < 0.05 < rows[1.0, "propose", "random_annotation"]["p"]
    assert (0.5, "full", "full") not in rows


def at_equal_labels(kept: float, *names: str):
    seeds = efficiency.Seeds([seed(i, CURVES, kept) for i in range(3)], np.random.default_rng(0))
    return seeds, efficiency.at_equal_labels(seeds, "steps", *names, FRACTIONS)


def test_as_many_labels_at_a_point_of_both_curves():
    for kept, names, shares in ((0.5, ("trim", "full"), (1.0, 1.0)), (0.5, ("random_subset", "full"), (1.0, 0.5))):
        seeds, found = at_equal_labels(kept, *names)
        expected = efficiency.difference(
            seeds, *(Key("steps", n, share) for n, share in zip(names, shares, strict=True))
        )
        assert found == {"annotated": 1200 * shares[1], "interpolated": None} | {
            key: pytest.approx(value) for key, value in expected.items()
        }


def test_as_many_labels_between_two_points():
    seeds, found = at_equal_labels(0.35, "random_subset", "full")
    below, above = (seeds.accuracy(Key("steps", "full", fraction))[0] for fraction in (0.25, 0.5))
    other = below + np.log(420 / 300) / np.log(2) * (above - below)
    own = seeds.accuracy(Key("steps", "random_subset", 1.0))[0]
    assert found["annotated"] == 420 and found["interpolated"] == "full"
    assert found["difference"] == pytest.approx(own - other) and found["low"] < found["difference"] < found["high"]
    _, turned = at_equal_labels(0.35, "full", "random_subset")
    assert turned["difference"] == pytest.approx(-found["difference"]) and turned["interpolated"] == "full"
    assert at_equal_labels(0.1, "random_subset", "full")[1] is None  # 120 labels, and full begins with 300


def test_a_report_is_json_and_has_tables(report):
    report = json.loads(json.dumps(report, allow_nan=False))
    text = benchmark_tables.text(report)
    for line in ("Equal steps", "Pairs needed", "All pairs / kept pairs", "What to have annotated", "not reached"):
        assert line in text
    (first, *_) = benchmark_tables.label_lines(report, "steps")
    assert re.fullmatch(r"At 1,200 annotated pairs trim differs from scpo by \S+ \[\S+, \S+\] points\.", first)
    assert f"- {first}" in text and "trim differs from random_subset" in text and "(trim interpolated)" not in text
    assert report["global"]["agreed"]["accuracy"] is None and 0.55 < report["global"]["all"]["accuracy"] < 0.65
    point = report["curves"]["steps"]["scpo"][1]
    assert (point["fraction"], point["annotated"], point["trained"], point["steps"]) == (0.5, 600, 300, 30)
    assert point["edited"]["accuracy"] < point["all"]["accuracy"] < point["agreed"]["accuracy"]
    assert report["passes"]["steps"] == 2.0 and "2.00 times" in text  # 30 steps of 80 pairs on 1200
    assert report["test_users"]["1"] == {"A": 150, "B": 150, "C": 150}


def test_bands_of_one_seed_are_those_of_its_users():
    one = seed(0, CURVES)
    key = Key("steps", "scpo", 1.0)
    found = efficiency.accuracy_record(efficiency.Seeds([one], np.random.default_rng(0)), key)
    assert [found["low"], found["high"]] == pytest.approx(np.percentile(one.samples[key]["all"], [2.5, 97.5]))
    assert found["accuracy"] == one.estimates[key]["all"]


def spread_of(seeds) -> float:
    return efficiency.Seeds(seeds, np.random.default_rng(0)).accuracy(Key("steps", "full", 1.0))[1].std()


def test_seeds_with_the_same_users_do_not_average_them_out():
    curves = {"full": CURVES["full"]}
    same, other = ([seed(7, curves, same_users=True)] * 3, [seed(i, curves) for i in range(3)])
    one = spread_of(same[:1])
    assert spread_of(same) == pytest.approx(one)  # three times the same is no more than once
    assert 0.5 * one < spread_of(other) < 0.9 * one


def test_seeds_that_differ_widen_the_interval():
    alike, unlike = ([seed(i, {"full": (0.6, 0.6, 0.7 + i * step)}) for i in range(3)] for step in (0.0, 0.08))
    assert spread_of(unlike) > 1.5 * spread_of(alike)


def test_resampled_means_are_those_of_one_column_at_a_time():
    rng = np.random.default_rng(0)
    values, counts = rng.random((30, 4)).round(), rng.poisson(1.0, (50, 30)).astype(np.float32)
    counts[3] = 0
    expected = np.stack([scored_pairs.metrics.resampled_means(column, counts) for column in values.T], axis=1)
    np.testing.assert_allclose(efficiency.resampled(values, counts), expected, rtol=1e-6)
    assert GLOBAL.method == "global"
