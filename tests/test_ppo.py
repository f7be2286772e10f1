"""The arithmetic of PPO against plain loops, on ragged masks with fractional and negative numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scpo_jax import ppo

pytestmark = pytest.mark.filterwarnings("error:::(jax|flax|scpo_jax|tests).*")
LENGTHS = np.array([5, 0, 7, 1, 3])
SIZE = 7


def draw(seed=0):
    """Six `[B, N]` arrays that are not 0 after the end either, scores `[B]` with fractions, and the mask."""
    generator = np.random.default_rng(seed)
    arrays = generator.normal(0, 0.7, (6, len(LENGTHS), SIZE)).astype(np.float32)
    scores = np.array([-0.37, 0.9, 1.25, -2.6, 0.04], np.float32)
    return arrays, scores, np.arange(SIZE) < LENGTHS[:, None]


def tokens():
    """(row, column) of every token of a response."""
    return [(i, t) for i, length in enumerate(LENGTHS) for t in range(length)]


def mean(values):
    return sum(float(values[i, t]) for i, t in tokens()) / len(tokens())


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_rewards_are_kl_and_at_the_last_token_the_score(estimator):
    arrays, scores, _ = draw()
    ended = np.array([True, False, False, True, False])
    kl = ppo.token_kl(arrays[0], arrays[1], estimator)
    found = ppo.shaped_rewards(kl, scores, LENGTHS, ended, 0.3, 0.75)
    assert found.dtype == jnp.float32
    wanted = np.zeros((len(LENGTHS), SIZE))
    for i, t in tokens():
        ratio = np.exp(float(arrays[1, i, t]) - float(arrays[0, i, t]))
        wanted[i, t] = -0.3 * (-np.log(ratio) if estimator == "k1" else ratio - 1 - np.log(ratio))
    for i, length in enumerate(LENGTHS):
        if length:
            wanted[i, length - 1] += float(scores[i]) - (0 if ended[i] else 0.75)
    close(found, wanted)
    whole = ppo.shaped_rewards(kl, np.array([1, 2, 3, 4, 5]), LENGTHS, ended, 0.3, 0.75)
    assert whole.dtype == jnp.float32 and whole[3, 0] == pytest.approx(4 - 0.3 * float(kl[3, 0]))


def test_both_estimates_have_the_kl_as_their_mean():
    pi, ref = np.array([0.5, 0.3, 0.2], np.float32), np.array([0.2, 0.2, 0.6], np.float32)
    kl = (pi * np.log(pi / ref)).sum()
    for estimator in ("k1", "k3"):
        found = ppo.token_kl(np.log(pi)[None], np.log(ref)[None], estimator)
        assert (pi * found[0]).sum() == pytest.approx(kl, abs=1e-6)


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.97, 0.0)])
def test_advantages_and_returns(gamma, lam):
    (rewards, values, *_), _, mask = draw()
    advantages, returns = ppo.gae(rewards, values, mask, gamma, lam)
    wanted = np.zeros((2, len(LENGTHS), SIZE))
    for i, length in enumerate(LENGTHS):
        following = 0.0
        for t in reversed(range(length)):
            after = float(values[i, t + 1]) if t + 1 < length else 0.0
            following = float(rewards[i, t]) + gamma * after - float(values[i, t]) + gamma * lam * following
            wanted[:, i, t] = following, following + float(values[i, t])
    close(advantages, wanted[0])
    close(returns, wanted[1])


def test_whitening_is_over_the_tokens_of_all_rows():
    (values, *_), _, mask = draw()
    variance = mean((values - mean(values)) ** 2)
    wanted = np.zeros(values.shape)
    for i, t in tokens():
        wanted[i, t] = (values[i, t] - mean(values)) / np.sqrt(variance + 1e-8)
    close(ppo.whiten(values, mask), wanted)
    nowhere = ppo.whiten(values, np.zeros_like(mask))
    assert not np.asarray(nowhere).any()


def test_the_policy_s_loss_and_its_gradient():
    (new, old, advantages, *_), _, mask = draw()
    found, gradient = jax.value_and_grad(lambda x: ppo.policy_loss(x, old, advantages, mask, 0.2)[0])(new)
    terms, slopes, clipped, kl, ratios = (np.zeros(new.shape) for _ in range(5))
    for i, t in tokens():
        ratio = np.exp(float(new[i, t]) - float(old[i, t]))
        held = min(max(ratio, 0.8), 1.2)
        own = float(advantages[i, t])
        clipped[i, t] = -own * held > -own * ratio
        terms[i, t] = max(-own * ratio, -own * held)
        slopes[i, t] = 0 if clipped[i, t] else -own * ratio / len(tokens())
        kl[i, t], ratios[i, t] = 0.5 * (new[i, t] - old[i, t]) ** 2, ratio
    every = ppo.policy_loss(new, old, advantages, mask, 0.2)
    close(found, mean(terms))
    close(gradient, slopes)
    close([every.approxkl, every.clipfrac, every.ratio], [mean(kl), mean(clipped), mean(ratios)])
    assert 0 < mean(clipped) < 1
    assert every.ratio_gap == pytest.approx(max(abs(ratios[i, t] - 1) for i, t in tokens()), rel=1e-5)
    assert ppo.policy_loss(old, old, advantages, mask, 0.2).ratio_gap == 0


def test_the_value_loss_and_its_gradient():
    (new, old, returns, *_), _, mask = draw()
    found, gradient = jax.value_and_grad(lambda x: ppo.value_loss(x, old, returns, mask, 0.3)[0])(new)
    terms, slopes, clipped = (np.zeros(new.shape) for _ in range(3))
    for i, t in tokens():
        value, before, wanted = (float(x[i, t]) for x in (new, old, returns))
        held = min(max(value, before - 0.3), before + 0.3)
        plain, other = (value - wanted) ** 2, (held - wanted) ** 2
        clipped[i, t] = other > plain
        terms[i, t] = 0.5 * max(plain, other)
        slopes[i, t] = 0 if clipped[i, t] else (value - wanted) / len(tokens())
    close(found, mean(terms))
    close(gradient, slopes)
    close(ppo.value_loss(new, old, returns, mask, 0.3)[1], mean(clipped))
    assert 0 < mean(clipped) < 1


def test_responses_to_one_prompt_are_compared():
    returns = np.array([0.5, -1.25, 2.0, 0.1, 3.0, 3.0, 3.0, 3.0], np.float32)
    found = ppo.compared(returns, 4, scale=False)
    for i, own in enumerate(returns):
        first = i // 4 * 4
        others = [returns[j] for j in range(first, first + 4) if j != i]
        assert found[i] == pytest.approx(own - sum(others) / 3, abs=1e-6)
    scaled = ppo.compared(returns, 4, scale=True)
    deviation = np.sqrt(sum((x - returns[:4].mean()) ** 2 for x in returns[:4]) / 3)
    close(scaled, [*((returns[:4] - returns[:4].mean()) / (deviation + 1e-4)), 0, 0, 0, 0])


def test_nothing_finite_is_lost_where_there_is_no_token():
    """A minibatch of responses without any token gives losses of 0 and gradients that are finite."""
    arrays, _, mask = draw()
    nowhere = np.zeros_like(mask)
    for loss in (
        lambda x: ppo.policy_loss(x, arrays[1] - 1e3, arrays[2], nowhere, 0.2)[0],
        lambda x: ppo.value_loss(x, arrays[1], arrays[2], nowhere, 0.2)[0],
    ):
        found, gradient = jax.value_and_grad(loss)(arrays[0])
        assert found == 0 and not np.asarray(gradient).any()


def test_the_adaptive_controller():
    """By hand: twice the target is cut to an error of 0.2, a tenth below is one of -0.1."""
    assert ppo.adapted_kl_coef(0.1, 12.0, 6.0, 64, 1000) == pytest.approx(0.1 * (1 + 0.2 * 0.064))
    assert ppo.adapted_kl_coef(0.1, 5.4, 6.0, 64, 1000) == pytest.approx(0.1 * (1 - 0.1 * 0.064))
    assert ppo.adapted_kl_coef(0.1, -1.0, 6.0, 64, 1000) == pytest.approx(0.1 * (1 - 0.2 * 0.064))
    assert ppo.adapted_kl_coef(0.1, 99.0, 0.0, 64, 1000) == 0.1


def test_scores_are_normalised_on_those_of_the_reference():
    scores = np.array([1.5, -0.5, 2.0, 0.25])
    scale = ppo.Scale.of(scores)
    found = scale(scores)
    assert found.dtype == np.float32 and abs(found.mean()) < 1e-6 and found.std() == pytest.approx(1, rel=1e-6)
    assert scale(np.array([0.8125]))[0] == pytest.approx(0, abs=1e-6)
    assert ppo.Scale.of(np.array([2.0, 2.0])) == (2.0, 1.0)
