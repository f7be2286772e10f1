"""Accuracy records and the bootstrap over users, against plain loops and cases known in closed form."""

import numpy as np
import pytest

from scpo_jax import metrics


def test_counts_against_a_plain_loop():
    users = np.array(["b", "a", "b", "c", "a", "b"])
    counts = metrics.bootstrap_counts(users, np.random.default_rng(3), resamples=50)
    assert counts.shape == (50, 6)
    draws = np.random.default_rng(3).multinomial(3, [1 / 3] * 3, size=50)  # of a, b, c
    for r in range(50):
        expected = [dict(zip("abc", draws[r], strict=True))[user] for user in users]
        assert counts[r].tolist() == expected and draws[r].sum() == 3


def test_means_against_a_plain_loop():
    rng = np.random.default_rng(0)
    values, counts = rng.normal(size=7), rng.integers(0, 3, (20, 7))
    counts[4] = 0
    means = metrics.resampled_means(values, counts)
    for r in range(20):
        drawn = [v for v, c in zip(values, counts[r], strict=True) for _ in range(c)]
        assert means[r] == pytest.approx(np.mean(drawn)) if drawn else np.isnan(means[r])


def test_the_interval_of_known_samples():
    assert metrics.interval(np.arange(101.0)) == pytest.approx((2.5, 97.5))
    assert metrics.interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)


def test_one_pair_a_user_gives_the_binomial_interval():
    n, p = 400, 0.7
    margins = np.where(np.arange(n) < p * n, 1.0, -1.0)
    counts = metrics.bootstrap_counts(np.arange(n), np.random.default_rng(0), resamples=4000)
    record = metrics.accuracy_record(margins, counts)
    half = 1.96 * np.sqrt(p * (1 - p) / n)
    assert record["accuracy"] == pytest.approx(p)
    assert record["low"] == pytest.approx(p - half, abs=0.005) and record["high"] == pytest.approx(p + half, abs=0.005)


def test_pairs_of_one_user_are_drawn_together():
    """With all pairs of a user alike the interval is that of the users, far wider than that of the pairs."""
    users = np.repeat(np.arange(20), 20)
    margins = np.where(users < 10, 1.0, -1.0)
    counts = metrics.bootstrap_counts(users, np.random.default_rng(0))
    record = metrics.accuracy_record(margins, counts)
    assert record["high"] - record["low"] == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 20), abs=0.06)


def test_ties_are_errors_and_counted():
    counts = np.ones((10, 5), int)
    record = metrics.accuracy_record(np.array([1.0, 0.0, -1.0, 0.0, 2.0]), counts)
    assert record == {"accuracy": 0.4, "low": 0.4, "high": 0.4, "n": 5, "ties": 2}


def test_a_mask_and_an_empty_one():
    margins, counts = np.array([1.0, 0.0, -1.0]), np.ones((10, 3), int)
    record = metrics.accuracy_record(margins, counts, np.array([True, True, False]))
    assert record == {"accuracy": 0.5, "low": 0.5, "high": 0.5, "n": 2, "ties": 1}
    empty = metrics.accuracy_record(margins, counts, np.zeros(3, bool))
    assert empty == {"accuracy": None, "low": None, "high": None, "n": 0, "ties": 0}


def test_mean_difference_weighs_groups_alike():
    differences = [np.ones(100), np.zeros(2)]
    result = metrics.mean_difference(differences, [np.ones((10, 100), int), np.ones((10, 2), int)])
    assert result == {"difference": 0.5, "low": 0.5, "high": 0.5, "groups": 2}


def test_mean_difference_against_the_normal_interval():
    rng = np.random.default_rng(1)
    differences = [rng.normal(0.2, 1.0, 300), rng.normal(0.4, 1.0, 300)]
    counts = [metrics.bootstrap_counts(np.arange(300), np.random.default_rng(g), resamples=4000) for g in range(2)]
    result = metrics.mean_difference(differences, counts)
    mean = np.mean([d.mean() for d in differences])
    half = 1.96 * np.sqrt(sum(d.var() / 300 for d in differences)) / 2
    assert result["difference"] == pytest.approx(mean)
    assert result["low"] == pytest.approx(mean - half, abs=0.01) and result["high"] == pytest.approx(
        mean + half, abs=0.01
    )
