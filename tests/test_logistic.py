"""Logistic regression against a general optimiser, and where Newton's method alone would fail."""

import numpy as np
import pytest
import scipy.optimize

from scpo_jax import logistic


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("penalty", [1e-3, 0.3])
def test_it_is_the_minimum(penalty, nonnegative):
    rng = np.random.default_rng(0)
    x, weights, offset = rng.normal(size=(80, 4)), rng.random(80), rng.normal(size=80)

    def loss(c):
        return np.mean(weights * np.log1p(np.exp(-(offset + x @ c)))) + penalty / 2 * np.sum(c**2)

    how = {"method": "L-BFGS-B", "options": {"ftol": 1e-15, "gtol": 1e-9}}
    expected = scipy.optimize.minimize(loss, np.zeros(4), bounds=[(0.0 if nonnegative else None, None)] * 4, **how).x
    found = logistic.fit(x, penalty, weights=weights, offset=offset, nonnegative=nonnegative)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found == 0).any() == nonnegative


def test_weights_are_repetitions():
    x = np.random.default_rng(1).normal(size=(20, 3))
    weights = np.resize([2.0, 0.0], 20)
    np.testing.assert_allclose(logistic.fit(x, 0.1, weights=weights), logistic.fit(x[[*range(0, 20, 2)] * 2], 0.1))


def test_separable_and_far_off_pairs_give_finite_coefficients():
    for scale in (1e-3, 1.0, 1e3):
        coefficients = logistic.fit(scale * np.ones((10, 2)), 1e-4, offset=np.full(10, -50.0))
        assert np.isfinite(coefficients).all() and (coefficients > 0).all()
