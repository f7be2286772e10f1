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


def test_training_sets_of_the_methods():
    chosen, rejected = np.array([0.3, -1.5, 2.25, 0.0, -0.4]), np.array([0.1, 0.75, -0.5, 0.0, -0.1])
    selected = scpo.select(chosen, rejected, 0.7, 1.1, 0.2)
    sets = {method: scpo.training_set(method, selected, np.random.default_rng(3)) for method in scpo.METHODS}
    filters = {
        "scpo heads filter_only inverse_weight": [True, True, False, True, True],
        "uncertain uncertain_weighted": [True, False, False, True, True],
        "trim trim_weighted": [True, False, True, True, True],
        "full weight_only": [True] * 5,
    }
    for methods, mask in filters.items():
        for method in methods.split():
            np.testing.assert_array_equal(sets[method][0], mask, method)
    for method in ("scpo", "heads", "weight_only", "uncertain_weighted", "trim_weighted"):
        np.testing.assert_allclose(sets[method][1], [1, math.exp(-2.25 / 1.1), 1, 1, math.exp(-0.3 / 1.1)], rtol=1e-6)
    for method in ("full", "filter_only", "random_subset", "uncertain", "trim"):
        np.testing.assert_array_equal(sets[method][1], np.ones(5))
    np.testing.assert_allclose(sets["inverse_weight"][1], [1, math.exp(2.25), 1, 1, math.exp(0.3)], rtol=1e-6)
    assert sets["random_subset"][0].sum() == 4
    assert {weights.dtype for _, weights in sets.values()} == {np.dtype(np.float32)}


@given(rewards, rewards, st.floats(0.5, 1))
def test_uncertain_is_blind_to_the_label_and_is_the_filter_without_sure_disagreement(chosen, rejected, tau):
    chosen, rejected = np.float64(chosen), np.float64(rejected)
    kept = scpo.uncertain(chosen, rejected, tau)
    assert kept == scpo.uncertain(rejected, chosen, tau)
    assert kept == (scpo.keep(chosen, rejected, tau) and scpo.keep(rejected, chosen, tau))


def test_trim_drops_the_labels_that_are_more_likely_reversed_than_not():
    share, difference = 0.15, np.linspace(-6, 6, 1001)
    p = scpo.global_probability(difference, 0.0)
    reversed_label = share * (1 - p) / (share * (1 - p) + (1 - share) * p)
    np.testing.assert_array_equal(scpo.trim(difference, 0.0, share), reversed_label < 0.5)


def test_the_filter_by_label_teaches_the_reverse_and_the_blind_one_does_not():
    """Labels drawn by the global RM itself: what each filter keeps, against p of the labels kept."""
    rng = np.random.default_rng(0)
    difference = rng.normal(0, 2, 20000)
    label = np.where(rng.random(20000) < scpo.global_probability(difference, 0.0), 1, -1)
    chosen, rejected = difference * label, np.zeros(20000)
    agreed = {}
    for rule in (scpo.keep, scpo.uncertain):
        kept = rule(chosen, rejected, 0.7)
        agreed[rule.__name__] = (chosen[kept] > 0).mean() - scpo.global_probability(abs(chosen[kept]), 0.0).mean()
    assert agreed["keep"] < -0.15 and abs(agreed["uncertain"]) < 0.02


def test_random_subset_does_not_look_at_the_filter():
    kept = np.arange(1000) < 300
    mask = scpo.random_subset(kept, np.random.default_rng(5))
    assert mask.sum() == 300
    assert 60 < mask[:300].sum() < 120  # about 90 by chance


def test_unknown_method():
    with pytest.raises(ValueError, match="unknown method"):
        scpo.training_set("best", scpo.select(np.ones(1), np.ones(1), 0.7, 1.1, 0.1), None)
