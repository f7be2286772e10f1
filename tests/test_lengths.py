"""Pairs made of length quantiles alone."""

import numpy as np
import pytest

from scpo_jax.configs import base
from scpo_jax.data import batches, lengths

PRISM = base.PRISM_LENGTHS


def test_lengths_are_distributed_as_the_quantiles():
    drawn = lengths.draw(PRISM, 5000, seed=1)
    assert drawn.shape == (5000, 2) and drawn.dtype == np.int32
    shares = np.linspace(0.005, 0.995, 100)
    np.testing.assert_allclose(np.quantile(drawn, shares), np.interp(shares, np.linspace(0, 1, 101), PRISM), atol=3)


def test_the_default_is_prism():
    drawn = lengths.draw(PRISM, 20000, seed=0)
    assert drawn.mean() == pytest.approx(126, abs=1)
    assert np.quantile(drawn, 0.99) < 313
    assert np.corrcoef(drawn.T)[0, 1] == pytest.approx(0.59, abs=0.06)


def test_lengths_are_a_function_of_the_seed():
    assert np.array_equal(lengths.draw(PRISM, 50, seed=3), lengths.draw(PRISM, 50, seed=3))
    assert not np.array_equal(lengths.draw(PRISM, 50, seed=3), lengths.draw(PRISM, 50, seed=4))


def test_pairs_have_these_lengths_up_to_the_longest():
    made = lengths.pairs((100, 200), 64, longest=150, seed=0)
    sizes = batches.lengths_of(made)
    assert np.array_equal(sizes, np.minimum(lengths.draw((100, 200), 64, 0), 150))
    assert sizes.min() >= 100 and sizes.max() == 150
    assert made.weights.dtype == np.float32 and np.all(made.weights == 1)
