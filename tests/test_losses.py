"""The loss against the reference's cases and hand-computed values, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scpo_jax import losses, scpo
from tests.golden import reference

CASES = range(24)


def case(k: int, dtype):
    prefix = f"loss/{k}/"
    numbers = {key.removeprefix(prefix): v for key, v in reference().items() if key.startswith(prefix)}
    inverse, beta, center, expected = numbers.pop("scalars")
    numbers = {key: value.astype(dtype) for key, value in numbers.items()}
    refs = numbers["ref_rewards_chosen"], numbers["ref_rewards_rejected"]
    weights = scpo.inverse_weight(*refs) if inverse else scpo.weight(*refs, beta)
    return numbers, np.asarray(weights, dtype), float(center), expected


def loss_and_gradients(numbers, weights, center):
    def loss(chosen, rejected):
        return losses.weighted_bradley_terry(
            chosen, rejected, weights, margin=numbers.get("margin"), center_rewards_coefficient=center
        )

    rewards = jnp.asarray(numbers["rewards_chosen"]), jnp.asarray(numbers["rewards_rejected"])
    return jax.value_and_grad(loss, argnums=(0, 1))(*rewards)


@pytest.mark.parametrize("k", CASES)
def test_reference_cases_in_float32(k):
    numbers, weights, center, expected = case(k, np.float32)
    loss, gradients = loss_and_gradients(numbers, weights, center)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for gradient, side in zip(gradients, ("chosen", "rejected"), strict=True):
        wanted = case(k, np.float64)[0][f"grad_rewards_{side}"]
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("k", CASES)
def test_reference_cases_in_float64(k):
    with jax.enable_x64(True):
        numbers, weights, center, expected = case(k, np.float64)
        np.testing.assert_allclose(weights, numbers["weights"], rtol=1e-12)
        loss, gradients = loss_and_gradients(numbers, weights, center)
        np.testing.assert_allclose(float(loss), expected, rtol=1e-12)
        for gradient, side in zip(gradients, ("chosen", "rejected"), strict=True):
            np.testing.assert_allclose(gradient, numbers[f"grad_rewards_{side}"], rtol=1e-10, atol=1e-12)


def test_by_hand_and_not_divided_by_the_sum_of_weights():
    loss = losses.weighted_bradley_terry(jnp.array([1.5, -0.5]), jnp.array([0.5, 0.25]), jnp.array([0.25, 0.5]))
    by_hand = (0.25 * np.log1p(np.exp(-1.0)) + 0.5 * np.log1p(np.exp(0.75))) / 2
    np.testing.assert_allclose(loss, by_hand, rtol=1e-6)


def test_masked_pairs_count_for_nothing():
    rewards = jnp.array([0.7, -1.25, 9.5]), jnp.array([-0.3, 0.5, -7.0])
    weights, mask = jnp.array([1.0, 0.3, 0.9]), jnp.array([True, True, False])
    short = losses.weighted_bradley_terry(*(r[:2] for r in rewards), weights[:2], center_rewards_coefficient=0.01)
    padded = losses.weighted_bradley_terry(*rewards, weights, mask=mask, center_rewards_coefficient=0.01)
    np.testing.assert_allclose(padded, short, rtol=1e-6)
    gradient = jax.grad(lambda r: losses.weighted_bradley_terry(r, rewards[1], weights, mask=mask))(rewards[0])
    assert gradient[2] == 0
    assert jnp.all(gradient[:2] < 0)  # raising a chosen reward lowers the loss


def test_an_empty_batch_is_0_and_extremes_stay_finite():
    big = jnp.array([3e4, -3e4])
    nothing = jnp.zeros(2, bool)
    assert losses.weighted_bradley_terry(big, -big, jnp.ones(2), mask=nothing) == 0
    gradient = jax.grad(lambda r: losses.weighted_bradley_terry(r, -big, jnp.ones(2)))(big)
    assert jnp.all(jnp.isfinite(gradient))


def test_shapes_are_checked():
    with pytest.raises(AssertionError):
        losses.weighted_bradley_terry(jnp.zeros((2, 1)), jnp.zeros((2, 1)), jnp.ones(2))
    with pytest.raises(AssertionError):  # quirk 12: a flat margin against column rewards would broadcast
        losses.weighted_bradley_terry(jnp.zeros(2), jnp.zeros(2), jnp.ones(2), margin=jnp.zeros((2, 1)))
