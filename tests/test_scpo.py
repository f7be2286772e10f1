"""The filter and the weights against the reference's cases, and their properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpo_jax import scpo
from tests.golden import reference

rewards = st.floats(-60, 60, width=32)


def test_filter_cases_of_the_reference():
    numbers = {key.removeprefix("filter/"): value for key, value in reference().items() if key.startswith("filter/")}
    chosen, rejected = (numbers[key].astype(np.float32) for key in ("r_chosen", "r_rejected"))
    assert len(chosen) == 120 and 20 < numbers["train_keep"].sum() < 100
    kept = [bool(scpo.keep(c, r, tau)) for c, r, tau in zip(chosen, rejected, numbers["tau"], strict=True)]
    np.testing.assert_array_equal(kept, numbers["train_keep"])
    np.testing.assert_array_equal(scpo.keep(chosen, rejected, 0.5), numbers["test_keep"])
    np.testing.assert_allclose(scpo.global_probability(chosen, rejected), numbers["p"], rtol=2e-6, atol=1e-9)


@given(rewards, rewards, st.floats(0.05, 5))
def test_weight_is_in_0_1_and_is_1_where_the_global_model_agrees(chosen, rejected, beta):
    value = scpo.weight(np.float64(chosen), np.float64(rejected), beta)
    assert 0 <= value <= 1
    if chosen >= rejected:
        assert value == 1
    else:
        assert value == pytest.approx(math.exp((chosen - rejected) / beta), rel=1e-12)


@given(rewards, rewards, rewards)
def test_weight_falls_with_disagreement(chosen, rejected, further):
    nearer, farther = sorted([rejected, further])
    assert scpo.weight(np.float64(chosen), np.float64(farther), 1.1) <= scpo.weight(
        np.float64(chosen), np.float64(nearer), 1.1
    )


@given(rewards, rewards)
def test_inverse_weight_is_at_least_1_and_undoes_the_weight_of_beta_1(chosen, rejected):
    chosen, rejected = np.float64(chosen), np.float64(rejected)
    inverse = scpo.inverse_weight(chosen, rejected)
    assert inverse >= 1
    assert inverse * scpo.weight(chosen, rejected, 1.0) == pytest.approx(1, rel=1e-12)


def test_filter_is_strict_and_stable_far_out():
    assert not scpo.keep(np.float32(0.5), np.float32(0.5), 0.5)
    assert scpo.keep(np.float32(-0.25), np.float32(1000.5), 0.7)
    assert not scpo.keep(np.float32(1000.5), np.float32(-0.25), 0.7)
    assert scpo.keep(np.float32(1000.5), np.float32(-0.25), 1.0)
    assert not scpo.keep(np.float32(-0.25), np.float32(1000.5), 0.0)


def methods_on(kept, weights, chosen, rejected):
    rng = np.random.default_rng(3)
    return {m: scpo.training_set(m, kept, weights, chosen, rejected, rng) for m in scpo.METHODS}


def test_training_sets_of_the_methods():
    chosen, rejected = np.array([0.3, -1.5, 2.25, 0.0, -0.4]), np.array([0.1, 0.75, -0.5, 0.0, -0.1])
    kept, weights = scpo.keep(chosen, rejected, 0.7), scpo.weight(chosen, rejected, 1.1)
    sets = methods_on(kept, weights, chosen, rejected)
    np.testing.assert_array_equal(kept, [True, True, False, True, True])
    for method in ("scpo", "filter_only", "inverse_weight"):
        np.testing.assert_array_equal(sets[method][0], kept)
    for method in ("full", "weight_only"):
        assert sets[method][0].all()
    for method in ("scpo", "weight_only"):
        np.testing.assert_allclose(sets[method][1], [1, math.exp(-2.25 / 1.1), 1, 1, math.exp(-0.3 / 1.1)], rtol=1e-6)
    for method in ("full", "filter_only", "random_subset"):
        np.testing.assert_array_equal(sets[method][1], np.ones(5))
    np.testing.assert_allclose(sets["inverse_weight"][1], [1, math.exp(2.25), 1, 1, math.exp(0.3)], rtol=1e-6)
    assert sets["random_subset"][0].sum() == kept.sum()


def test_random_subset_does_not_look_at_the_filter():
    kept = np.arange(1000) < 300
    mask = scpo.random_subset(kept, np.random.default_rng(5))
    assert mask.sum() == 300
    assert 60 < mask[:300].sum() < 120  # about 90 by chance


def test_unknown_method():
    with pytest.raises(ValueError, match="unknown method"):
        scpo.training_set("best", np.ones(1, bool), np.ones(1), np.zeros(1), np.zeros(1), None)
