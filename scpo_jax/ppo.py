"""The arithmetic of PPO and its kin (rloo, grpo): arrays in, arrays out; names and meaning are trl's.

Dimensions: B responses, N tokens of a response. `mask [B, N]` is True on a response's own tokens, which come first in
its row; a response without any counts nowhere. Everything is float32.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np


def response_mask(lengths, size: int) -> jax.Array:
    """Mask `[B, size]` of the first `lengths [B]` tokens."""
    return jnp.arange(size) < lengths[:, None]


def masked_mean(values, mask) -> jax.Array:
    """The mean where `mask` is True, of all rows together; 0 where it is nowhere."""
    return jnp.where(mask, values, 0).sum() / jnp.maximum(mask.sum(), 1)


def whiten(values, mask) -> jax.Array:
    """`[B, N]` scaled to mean 0 and deviation 1 over the tokens of all rows; 0 elsewhere (trl: masked_whiten)."""
    chex.assert_equal_shape([values, mask])
    mean = masked_mean(values, mask)
    variance = masked_mean(jnp.square(values - mean), mask)
    return jnp.where(mask, (values - mean) * jax.lax.rsqrt(variance + 1e-8), 0)


def token_kl(logprobs, ref_logprobs, estimator: str) -> jax.Array:
    """An estimate of KL(pi || pi_ref) at each token drawn from pi, in nats: k1 or k3 (joschu.net/blog/kl-approx.html).

    Both have the KL as their mean; k1 may be negative, k3 has the lower variance near the reference.
    """
    chex.assert_equal_shape([logprobs, ref_logprobs])
    difference = logprobs - ref_logprobs
    return difference if estimator == "k1" else jnp.expm1(-difference) + difference


def shaped_rewards(kl, scores, lengths, ended, kl_coef, missing_eos_penalty) -> jax.Array:
    """Rewards `[B, N]`: -kl_coef * kl of every token, and the response's score at its last one.

    Args:
      kl: `[B, N]` of `token_kl`; scores: `[B]`; lengths: `[B]`; ended: `[B]`, False takes off `missing_eos_penalty`.
    """
    chex.assert_rank(kl, 2)
    chex.assert_shape([scores, lengths, ended], kl.shape[:1])
    columns = jnp.arange(kl.shape[1])
    own = columns < lengths[:, None]
    final = jnp.asarray(scores, jnp.float32) - missing_eos_penalty * jnp.where(ended, 0.0, 1.0)
    return jnp.where(own, -kl_coef * kl, 0) + jnp.where(columns == lengths[:, None] - 1, final[:, None], 0)


def gae(rewards, values, mask, gamma: float, gae_lambda: float) -> tuple[jax.Array, jax.Array]:
    """(advantages, returns) `[B, N]` by generalised advantage estimation (arXiv 1506.02438); 0 after the end.

    `values [B, N]` are of the text before each token; after the last token there is nothing more to gain.
    """
    chex.assert_equal_shape([rewards, values, mask])

    def step(after, column):
        advantage, value_after = after
        reward, value, own = column
        delta = reward + gamma * value_after - value
        advantage = jnp.where(own, delta + gamma * gae_lambda * advantage, 0)
        return (advantage, jnp.where(own, value, 0)), advantage

    nothing = jnp.zeros(len(rewards), jnp.float32)
    columns = tuple(jnp.asarray(x).T for x in (rewards, values, mask))
    advantages = jax.lax.scan(step, (nothing, nothing), columns, reverse=True)[1].T
    return advantages, jnp.where(mask, advantages + values, 0)


def compared(returns, num_generations: int, scale: bool) -> jax.Array:
    """Advantages `[B]` of responses by what those to the same prompt got, which stand beside each other.

    rloo (arXiv 2402.14740): less the mean of the others. With `scale` grpo (arXiv 2402.03300): less the mean of all,
    over their standard deviation.

    Args:
      returns: `[B]`, score less KL of each response.
    """
    chex.assert_rank(returns, 1)
    same = returns.reshape(-1, num_generations)
    centred = same - same.mean(1, keepdims=True)
    if scale:
        return (centred / (same.std(1, keepdims=True, ddof=1) + 1e-4)).reshape(-1)
    return (centred * (num_generations / (num_generations - 1))).reshape(-1)


class PolicyLoss(NamedTuple):
    """The clipped loss of the policy and what is said of it, scalars."""

    loss: jax.Array
    approxkl: jax.Array  # half the mean square of log pi / pi_old, nats a token
    clipfrac: jax.Array  # share of tokens at which the clipped term counts
    ratio: jax.Array  # mean of pi / pi_old
    ratio_gap: jax.Array  # largest |ratio - 1|


def policy_loss(logprobs, old_logprobs, advantages, mask, cliprange: float) -> PolicyLoss:
    """PPO's clipped surrogate (arXiv 1707.06347), the mean over all tokens; all arguments `[B, N]`."""
    chex.assert_equal_shape([logprobs, old_logprobs, advantages, mask])
    difference = jnp.where(mask, logprobs - old_logprobs, 0)
    ratio = jnp.exp(difference)
    plain = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1 - cliprange, 1 + cliprange)
    return PolicyLoss(
        masked_mean(jnp.maximum(plain, clipped), mask),
        0.5 * masked_mean(jnp.square(difference), mask),
        masked_mean((clipped > plain).astype(jnp.float32), mask),
        masked_mean(ratio, mask),
        jnp.abs(jnp.where(mask, ratio - 1, 0)).max(),
    )


def value_loss(values, old_values, returns, mask, cliprange_value: float) -> tuple[jax.Array, jax.Array]:
    """(half the clipped squared error of values, the mean over all tokens; share of clipped ones); all `[B, N]`."""
    chex.assert_equal_shape([values, old_values, returns, mask])
    clipped = jnp.clip(values, old_values - cliprange_value, old_values + cliprange_value)
    plain, held = jnp.square(values - returns), jnp.square(clipped - returns)
    return 0.5 * masked_mean(jnp.maximum(plain, held), mask), masked_mean((held > plain).astype(jnp.float32), mask)


def adapted_kl_coef(kl_coef: float, kl: float, kl_target: float, responses: int, kl_horizon: int) -> float:
    """The coefficient after a batch of `responses` of mean `kl` nats (arXiv 1909.08593, 2.2); target 0 leaves it.

    It grows by at most 0.2 * responses / horizon, and falls by as much.
    """
    if not kl_target:
        return kl_coef
    error = float(np.clip(kl / kl_target - 1, -0.2, 0.2))
    return kl_coef * (1 + error * responses / kl_horizon)


class Scale(NamedTuple):
    """Mean and standard deviation of the scores of a group's RM on responses of the reference policy."""

    mean: float
    std: float

    @classmethod
    def of(cls, scores: np.ndarray) -> "Scale":
        """The scale of scores `[n]`; where all are equal its deviation is 1."""
        wide = np.asarray(scores, np.float64)
        return cls(float(wide.mean()), float(wide.std()) or 1.0)

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Scores of mean 0 and deviation 1 on the reference, float32."""
        return ((np.asarray(scores, np.float64) - self.mean) / self.std).astype(np.float32)
