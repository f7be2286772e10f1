"""Temperature, reliability and calibration error against scipy, plain loops and labels drawn as the model says."""

import numpy as np
import pytest
import scipy.optimize

from scpo_jax import calibration, metrics


def drawn(n: int, temperature: float, seed: int = 0) -> np.ndarray:
    """Margins `[n]` of an RM whose labels are as likely as sigmoid(margin / temperature) says."""
    rng = np.random.default_rng(seed)
    differences = rng.normal(0, 2, n)
    agrees = rng.random(n) < 1 / (1 + np.exp(-differences / temperature))
    return np.where(agrees, differences, -differences)


def test_temperature_against_scipy_and_the_truth():
    margins = drawn(20_000, 1.7)
    best = scipy.optimize.minimize_scalar(
        lambda t: np.mean(np.logaddexp(0, -margins / t)), bounds=(0.1, 10), method="bounded"
    )
    assert calibration.fit_temperature(margins) == pytest.approx(best.x, rel=1e-3)
    assert calibration.fit_temperature(margins) == pytest.approx(1.7, rel=0.05)


def test_temperatures_at_the_ends():
    assert calibration.fit_temperature(np.ones(5)) == pytest.approx(0.01)
    assert calibration.fit_temperature(-np.ones(5)) == pytest.approx(100)
    assert calibration.fit_temperature(np.zeros(0)) is None


def test_reliability_and_error_against_a_plain_loop():
    margins, temperature = drawn(500, 1.0), 0.6
    bins = calibration.reliability(margins, temperature)
    assert sum(own["n"] for own in bins) == 500 and (bins[0]["from"], bins[-1]["to"]) == (0.5, 1)
    total = 0
    for own in bins:
        inside = [
            (confidence, margin > 0)
            for margin in margins
            if own["from"] <= (confidence := 1 / (1 + np.exp(-abs(margin) / temperature))) < own["to"]
        ]
        assert own["n"] == len(inside)
        if inside:
            confidence, accuracy = np.mean(inside, axis=0)
            assert (own["confidence"], own["accuracy"]) == (pytest.approx(confidence), pytest.approx(accuracy))
            total += len(inside) / 500 * abs(accuracy - confidence)
    error, samples = calibration.expected_error(margins, temperature, np.ones((3, 500)))
    assert error == pytest.approx(total) and samples == pytest.approx([total] * 3)


def test_the_bootstrap_of_the_error_against_a_plain_loop():
    margins, counts = drawn(60, 1.0), np.random.default_rng(1).integers(0, 3, (5, 60))
    _, samples = calibration.expected_error(margins, 0.5, counts)
    for own, sample in zip(counts, samples, strict=True):
        repeated = np.repeat(margins, own)
        assert sample == pytest.approx(calibration.expected_error(repeated, 0.5, np.ones((1, len(repeated))))[0])


def test_a_calibrated_model_and_an_overconfident_one():
    margins = drawn(3000, 1.5)
    counts = metrics.bootstrap_counts(np.arange(3000), np.random.default_rng(0))
    good, bad = (calibration.record(margins, counts, temperature) for temperature in (1.5, 0.5))
    assert good["low"] < 0.005 and good["ece"] < 0.03 and bad["low"] > 0.08
    assert good["ece_without_temperature"] == bad["ece_without_temperature"] > good["ece"]
    assert calibration.record(margins, counts, None)["ece"] == good["ece_without_temperature"]


def test_certain_and_tied_pairs_have_a_bin():
    bins = calibration.reliability(np.array([1000.0, 0.0]), 1.0)
    assert (bins[-1]["n"], bins[0]["n"], bins[0]["accuracy"], bins[3]["accuracy"]) == (1, 1, 0.0, None)
