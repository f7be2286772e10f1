"""Accuracy records and the bootstrap over users, against plain loops and cases known in closed form."""

import numpy as np
import pytest
import scipy.stats

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


def users_with_pairs(rng, users: int) -> tuple[np.ndarray, np.ndarray]:
    """(right or wrong `[B]`, user `[B]`): some users are easier than others, some have more pairs."""
    member = np.repeat(np.arange(users), rng.integers(1, 12, users))
    return (rng.random(len(member)) < rng.beta(4, 2, users)[member]).astype(float), member


def test_the_bootstrap_against_scipy():
    right, member = users_with_pairs(np.random.default_rng(0), 80)
    counts = metrics.bootstrap_counts(member, np.random.default_rng(1), resamples=20_000)
    found = metrics.accuracy_record(right - 0.5, counts)
    sums, sizes = np.bincount(member, right), np.bincount(member)
    scipys = scipy.stats.bootstrap(
        (sums, sizes), lambda s, n, axis: s.sum(axis) / n.sum(axis), paired=True, vectorized=True,
        method="percentile", n_resamples=20_000, rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert found["high"] - found["low"] > 0.08
    np.testing.assert_allclose([found["low"], found["high"]], [scipys.low, scipys.high], atol=0.003)


def test_intervals_cover_the_truth():
    """95 % of them, give or take: 600 samples of 60 users whose accuracies differ; the mean of beta(4, 2) is 2/3."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(600):
        right, member = users_with_pairs(rng, 60)
        record = metrics.accuracy_record(right - 0.5, metrics.bootstrap_counts(member, rng, resamples=400))
        hits += record["low"] <= 2 / 3 <= record["high"]
    assert 0.92 <= hits / 600 <= 0.98


def test_the_p_value_goes_with_the_interval_and_the_normal_one():
    rng = np.random.default_rng(0)
    difference = rng.normal(0.1, 1, 400)
    counts = metrics.bootstrap_counts(np.arange(400), rng, resamples=20_000)
    z = difference.mean() / (difference.std() / 20)
    two, one = (metrics.paired_test([difference], [counts], sides) for sides in (2, 1))
    assert two["p"] == pytest.approx(2 * scipy.stats.norm.sf(abs(z)), abs=0.01)
    assert one["p"] == pytest.approx(scipy.stats.norm.sf(z), abs=0.01)
    assert (two["p"] < 0.05) == (two["low"] > 0 or two["high"] < 0)
    assert metrics.p_value(np.zeros(99)) == 1 and metrics.p_value(np.ones(99), 1) == 0.01
    assert metrics.p_value(-np.ones(99), 1) == 1 and metrics.p_value(-np.ones(99)) == 0.02


def test_holm_by_hand():
    """0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1 raised to the one before it."""
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([0.6, 0.5]) == [1, 1] and metrics.holm([]) == [] and metrics.holm([0.05]) == [0.05]
