"""Rotary position embeddings (RoFormer, arXiv 2104.09864), the scaling of Llama 3.1, and how config.json states them.

transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 `rope_parameters`, which holds both.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

FORMS = ("rope_theta", "rope_scaling", "rope_parameters")  # keys of config.json
DEFAULT_THETA = 10_000.0
LARGEST = 1e12  # of what is stated; published models have up to 1e8
LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def parameters(theta: float | None, scaling: dict | None, stated: dict | None, max_positions: int) -> dict:
    """`rope_parameters` as transformers 5 writes it, of either form; as there `rope_scaling` comes first."""
    found = dict(scaling or stated or {})
    kind = found.pop("type", "default")
    found = {"rope_type": kind, "rope_theta": DEFAULT_THETA if theta is None else theta} | found
    if found["rope_type"] == "llama3":
        found = {"original_max_position_embeddings": max_positions} | found
    return found


def unsupported(parameters: dict) -> str | None:
    """What of `rope_parameters` cannot be computed here, or None."""
    kind = parameters["rope_type"]
    if any(isinstance(value, dict) for value in parameters.values()):
        return "rope_parameters that differ between layers"
    if kind not in ("default", "llama3"):
        return f"rope_type {kind!r} (only default and llama3)"
    for key in ("rope_theta", *(LLAMA3_KEYS if kind == "llama3" else ())):
        value = parameters.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LARGEST:
            return f"{key} {value!r} of the rope parameters (a number above 0)"
    if kind == "llama3" and not parameters["low_freq_factor"] < parameters["high_freq_factor"]:
        return "a low_freq_factor that is not below the high_freq_factor"
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        return f"partial_rotary_factor {parameters['partial_rotary_factor']!r} (only 1)"
    return None


def in_both_forms(config: dict) -> dict:
    """A `config.json` with its rope parameters as transformers 4 and as transformers 5 read them, if it states any."""
    if not any(config.get(key) is not None for key in FORMS):
        return config
    found = parameters(*(config.get(key) for key in FORMS), config.get("max_position_embeddings"))
    scaling = {key: value for key, value in found.items() if key != "rope_theta"}
    old = scaling if found["rope_type"] != "default" else None
    return config | dict(zip(FORMS, (found["rope_theta"], old, found), strict=True))


def frequencies(size: int, parameters: dict) -> tuple[float, ...]:
    """Radians a position of each pair of the `size` dimensions of a head, the fastest first; K / 2 float32 numbers.

    Scaling "llama3": waves longer than `original / low_freq_factor` positions are slowed down by `factor`, those
    shorter than `original / high_freq_factor` stay, and between the two it changes smoothly.
    """
    own = 1 / np.float32(parameters["rope_theta"]) ** (np.arange(0, size, 2, dtype=np.float32) / np.float32(size))
    if parameters["rope_type"] == "llama3":
        factor, low, high, original = (np.float32(parameters[key]) for key in LLAMA3_KEYS)
        kept = np.clip((original * own / np.float32(2 * math.pi) - low) / (high - low), 0, 1)
        own = kept * own + (1 - kept) * own / factor
    return tuple(own.astype(np.float32).tolist())


def tables(positions, frequencies: Sequence[float]):
    """Cosines and sines of each token's angles, float32 `[R, T, 1, K / 2]` each; `positions` is `[R, T]`."""
    angles = positions[..., None, None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x, cosines, sines):
    """`x [R, T, H, K]` with the pairs (i, i + K / 2) of its dimensions turned, computed in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = first * cosines - second * sines, second * cosines + first * sines
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
