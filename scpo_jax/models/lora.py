"""Low-rank adapters (LoRA, arXiv 2106.09685) of a frozen base: x @ W + (alpha / rank) * (dropout(x) @ A) @ B.

Only A `[L, in, r]`, B `[L, r, out]` and the score head are trained, in float32. A and B stand beside the kernel that
they adapt, as `lora_a` and `lora_b` in the nested dict of a model's parameters.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from scpo_jax.errors import InputError
from scpo_jax.models import layers

ALL_LINEAR = "all-linear"
LEAVES = ("lora_a", "lora_b")
LARGEST_RANK, LARGEST_ALPHA = 2**16, 1e12  # of adapters that a file describes
HEAD = "score"  # trained whole


class Lora(NamedTuple):
    """What of a model is adapted and how; names and meaning are PEFT's."""

    rank: int
    alpha: float
    targets: tuple[str, ...]  # last parts of the names in the Hugging Face form, or "all-linear": all but the head
    dropout: float = 0.0  # of the adapters' inputs, in training only

    @property
    def scale(self) -> float:
        """What the product of the adapters is multiplied with."""
        return self.alpha / self.rank


def problem(adapters: Lora) -> str | None:
    """What is wrong with adapters that a file describes, or None."""
    rank, alpha, targets, rate = adapters
    numbers = not any(isinstance(value, bool) for value in (rank, alpha, rate))
    if not numbers or not isinstance(rank, int) or not 1 <= rank <= LARGEST_RANK:
        return f"adapters of rank {str(rank)[:40]!r} (from 1 to {LARGEST_RANK})"
    if not isinstance(alpha, int | float) or not 0 < alpha < LARGEST_ALPHA:
        return f"adapters of alpha {str(alpha)[:40]!r} (a number above 0)"
    if not isinstance(rate, int | float) or not 0 <= rate < 1:
        return f"adapters of dropout {str(rate)[:40]!r} (from 0 to below 1)"
    if not all(isinstance(target, str) for target in targets):
        return f"adapters of targets {str(targets)[:60]} (names)"
    return None


def places(names: dict[str, str], found: list[str], lora: Lora) -> list[str]:
    """Those of the linear maps `found` (our paths, "layers/attention/query") that are adapted. Raises InputError.

    `names` gives the Hugging Face form of a path, "model.layers.{}.self_attn.q_proj".
    """
    free = [path for path in found if path != HEAD]
    chosen = {target: [p for p in free if f".{names[p]}".endswith(f".{target}")] for target in lora.targets}
    chosen |= {ALL_LINEAR: free} if ALL_LINEAR in lora.targets else {}
    unknown = [target for target, paths in chosen.items() if not paths]
    if unknown or not chosen:
        known = ", ".join(dict.fromkeys(names[path].rsplit(".", 1)[-1] for path in free))
        raise InputError(f"LoRA targets {', '.join(unknown) or '()'}: the model has {ALL_LINEAR}, {known}")
    return [path for path in free if any(path in paths for paths in chosen.values())]


def attach(network: nnx.Module, names: dict[str, str], lora: Lora) -> nnx.Module:
    """The network with zero adapters beside the kernels of its targets. Raises InputError."""
    linear = {"/".join(path): part for path, part in nnx.iter_modules(network) if isinstance(part, layers.Linear)}
    for path in places(names, list(linear), lora):
        part = linear[path]
        *stacked, fan_in, fan_out = part.kernel.shape
        part.lora_a = nnx.data(nnx.Param(jnp.zeros((*stacked, fan_in, lora.rank), jnp.float32)))
        part.lora_b = nnx.data(nnx.Param(jnp.zeros((*stacked, lora.rank, fan_out), jnp.float32)))
        part.lora_scale, part.lora_rate = lora.scale, lora.dropout
    return network


def init(shapes: dict, key) -> dict:
    """Adapters to start from, of a model's parameter shapes: A uniform within 1 / sqrt(in), B zero, as PEFT draws."""
    adapters = sorted((p, leaf.shape) for p, leaf in traverse_util.flatten_dict(shapes).items() if p[-1] in LEAVES)
    drawn = {}
    for (path, shape), own in zip(adapters, jax.random.split(key, len(adapters)), strict=True):
        bound = shape[-2] ** -0.5
        a = path[-1] == "lora_a"
        drawn[path] = jax.random.uniform(own, shape, jnp.float32, -bound, bound) if a else jnp.zeros(shape, jnp.float32)
    return traverse_util.unflatten_dict(drawn)


def split(params: dict) -> tuple[dict, dict]:
    """(what is trained, what is frozen) of parameters, or of a tree like them; without adapters all are trained."""
    adapted = any(path[-1] in LEAVES for path in traverse_util.flatten_dict(params))
    return parts(params) if adapted else (params, {})


def parts(params: dict) -> tuple[dict, dict]:
    """(adapters, if there are any, and score head, the base) of parameters, or of a tree like them."""
    flat = traverse_util.flatten_dict(params)
    trained = {path: leaf for path, leaf in flat.items() if path[0] == HEAD or path[-1] in LEAVES}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
    return traverse_util.unflatten_dict(trained), traverse_util.unflatten_dict(frozen)


def join(trained: dict, frozen: dict) -> dict:
    """The parameters of which `split` made two parts; of what both have, the first counts."""
    return traverse_util.unflatten_dict(traverse_util.flatten_dict(frozen) | traverse_util.flatten_dict(trained))


def narrowed(frozen: dict, dtype, causal: bool) -> dict:
    """Shapes of frozen parameters, in `dtype` what a model computing in it casts to it before any use.

    These are the kernels of the layers, and of a causal model the word embeddings and the language head: the scores
    stay the same, bitwise.
    """

    def narrow(path, leaf):
        of_layers = path[0] == "layers" and path[-1] == "kernel"
        words = path in (("embeddings", "word", "embedding"), ("lm_head", "embedding"))
        cast = of_layers or (causal and words)
        return jax.ShapeDtypeStruct(leaf.shape, dtype if cast else leaf.dtype)

    flat = traverse_util.flatten_dict(frozen)
    return traverse_util.unflatten_dict({path: narrow(path, leaf) for path, leaf in flat.items()})


def merged(params: dict, lora: Lora) -> dict:
    """Parameters of the model without adapters that computes the same: kernel + scale * A @ B, float32 on the host."""
    flat = traverse_util.flatten_dict(params)
    plain = {path: leaf for path, leaf in flat.items() if path[-1] not in LEAVES}
    for path in [path for path in flat if path[-1] == "lora_a"]:
        a, b, kernel = (np.asarray(flat[(*path[:-1], name)], np.float32) for name in (*LEAVES, "kernel"))
        plain[(*path[:-1], "kernel")] = kernel + np.float32(lora.scale) * np.matmul(a, b)
    return traverse_util.unflatten_dict(plain)
