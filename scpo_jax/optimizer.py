"""AdamW with clipping and a schedule, as the reference's trainer sets it up (DESIGN section 2)."""

import math

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("linear", "cosine", "constant")


def learning_rate_at(step: int, schedule: str, learning_rate: float, max_steps: int, warmup_steps: int) -> float:
    """Rate of step k = 0, 1, ...: a linear rise over `warmup_steps`, then constant or a decay to 0 at `max_steps`."""
    if step < warmup_steps:
        return learning_rate * step / warmup_steps
    share = min((step - warmup_steps) / max(max_steps - warmup_steps, 1), 1.0)
    match schedule:
        case "linear":
            return learning_rate * (1 - share)
        case "cosine":
            return learning_rate * (1 + math.cos(math.pi * share)) / 2
        case "constant":
            return learning_rate
    raise ValueError(f"unknown schedule {schedule!r}; schedules are {SCHEDULES}")


def adamw(weight_decay: float) -> optax.GradientTransformation:
    """AdamW(0.9, 0.999, eps 1e-8) for a learning rate of 1.

    `descend` applies the rate, so that one compiled program serves all rates and schedules.
    """
    return optax.chain(optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8), optax.add_decayed_weights(weight_decay))


def updates_made(opt_state) -> jax.Array:
    """How many updates the state of `adamw` has seen."""
    return opt_state[0].count


def clip(gradients, norm, max_grad_norm: float):
    """Gradients of global norm `norm` scaled down to a norm of `max_grad_norm` where it is larger; 0 does not."""
    if not max_grad_norm:
        return gradients
    return jax.tree.map(lambda g: jnp.where(norm < max_grad_norm, g, g / norm * max_grad_norm), gradients)


def descend(params, updates, learning_rate):
    """params - learning_rate * updates, leaf by leaf."""
    return jax.tree.map(lambda p, u: p - learning_rate * u, params, updates)


def freeze_score_bias(gradients: dict) -> dict:
    """Gradients with that of the score head's bias, if it has one, set to 0.

    A pairwise loss does not depend on the bias: its gradient is rounding noise, which Adam would turn into steps.
    """
    head = gradients["score"]
    return {**gradients, "score": {name: jnp.zeros_like(g) if name == "bias" else g for name, g in head.items()}}
