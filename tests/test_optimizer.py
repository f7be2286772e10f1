"""The schedule's values, and AdamW with clipping against a plain numpy version."""

import jax.numpy as jnp
import numpy as np
import pytest

from scpo_jax import optimizer


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("linear", 0, {0: 1.0, 1: 0.9, 5: 0.5, 9: 0.1, 10: 0.0}),
        ("linear", 4, {0: 0.0, 1: 0.25, 3: 0.75, 4: 1.0, 7: 0.5, 9: 1 / 6}),
        ("cosine", 0, {0: 1.0, 5: 0.5, 10: 0.0}),
        ("cosine", 2, {0: 0.0, 1: 0.5, 2: 1.0, 6: 0.5}),
        ("constant", 0, {0: 1.0, 9: 1.0}),
        ("constant", 2, {1: 0.5, 2: 1.0, 9: 1.0}),
        ("linear", 20, {5: 0.25, 9: 0.45}),
    ],
)
def test_rates(schedule, warmup, expected):
    for step, rate in expected.items():
        assert optimizer.learning_rate_at(step, schedule, 0.3, 10, warmup) == pytest.approx(0.3 * rate, abs=1e-12)


def test_an_unknown_schedule():
    with pytest.raises(ValueError, match="unknown schedule 'step'"):
        optimizer.learning_rate_at(1, "step", 0.1, 10, 0)


def numpy_adamw(params, gradients, rate, decay, clip):
    """AdamW as the paper has it, gradients clipped by their global norm."""
    mean, square = np.zeros_like(params), np.zeros_like(params)
    for step, gradient in enumerate(gradients, start=1):
        norm = np.sqrt(np.sum(gradient**2))
        gradient = gradient * min(1.0, clip / norm) if clip else gradient
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        update = (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        params = params - rate * (update + decay * params)
    return params


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_adamw(decay, clip):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=7), rng.normal(size=(6, 7)) * np.array([0.01, 1, 10, 1, 0.1, 3, 1])[:6, None]
    transform = optimizer.adamw(decay)
    params = {"a": jnp.asarray(start[:3], jnp.float32), "b": jnp.asarray(start[3:], jnp.float32)}
    state = transform.init(params)
    for gradient in gradients:
        parts = {"a": jnp.asarray(gradient[:3], jnp.float32), "b": jnp.asarray(gradient[3:], jnp.float32)}
        parts = optimizer.clip(parts, np.sqrt(np.sum(gradient**2)), clip)
        updates, state = transform.update(parts, state, params)
        params = optimizer.descend(params, updates, 0.05)
    expected = numpy_adamw(start, gradients, 0.05, decay, clip)
    np.testing.assert_allclose(np.concatenate([params["a"], params["b"]]), expected, rtol=1e-5, atol=1e-6)


def test_the_bias_of_the_head_is_frozen():
    gradients = {"score": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}, "pooler": {"bias": jnp.ones(2)}}
    frozen = optimizer.freeze_score_bias(gradients)
    assert frozen["score"]["bias"].tolist() == [0] and frozen["pooler"]["bias"].tolist() == [1, 1]
    assert gradients["score"]["bias"].tolist() == [1] and frozen["score"]["kernel"].tolist() == [[1], [1]]
