"""The weighted Bradley-Terry loss (arXiv 2606.18606, section 3.2). Pure functions on arrays of `[B]` pairs."""

import chex
import jax
import jax.numpy as jnp


def weighted_bradley_terry(
    rewards_chosen, rewards_rejected, weights, *, margin=None, mask=None, count=None, center_rewards_coefficient=0.0
):
    """mean(-w * log_sigmoid(R+ - R- - margin)) + c * mean((R+ + R-)^2) over the pairs.

    Both means are over the number of pairs and not over the sum of the weights, so that a batch of pairs with which
    the global reward model strongly disagrees takes a small step.

    Args:
      rewards_chosen, rewards_rejected: scores of the model in training, `[B]`.
      weights: weight of each pair, `[B]`; `scpo.weight` or ones.
      margin: what the difference must exceed, `[B]`, or None for 0.
      mask: True where there is a pair, `[B]`; None when all of them are. Padding counts in no mean.
      count: number of pairs of the whole batch if these are a part of it; the parts' losses then add up to the loss.
      center_rewards_coefficient: c, pulls R+ + R- towards 0; 0 switches it off.

    Returns:
      The loss, a scalar.
    """
    chex.assert_rank(rewards_chosen, 1)
    chex.assert_equal_shape([rewards_chosen, rewards_rejected, weights])
    difference = rewards_chosen - rewards_rejected
    if margin is not None:
        chex.assert_equal_shape([difference, margin])
        difference = difference - margin
    loss = masked_mean(-weights * jax.nn.log_sigmoid(difference), mask, count)
    if center_rewards_coefficient:
        loss += center_rewards_coefficient * masked_mean((rewards_chosen + rewards_rejected) ** 2, mask, count)
    return loss


def masked_mean(values, mask=None, count=None):
    """Mean of `values` `[B]` where `mask` `[B]` is True; 0 when it is True nowhere. Of a part: its sum over `count`."""
    mask = jnp.ones(values.shape, bool) if mask is None else mask
    count = jnp.sum(mask) if count is None else count
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(count, 1)
