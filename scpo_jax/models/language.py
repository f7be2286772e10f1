"""A causal model as a language model: scores of every next token, values, and decoding with a cache.

Of the parameters these use `lm_head` where the model has one, else the words' embeddings; `score` is the value head.
Legend of dimensions: B rows, T tokens, C columns of the cache, V vocabulary, D width, L layers.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from scpo_jax.models import layers, module
from scpo_jax.models.module import RewardModel, TextBatch


def hidden_states(
    model: RewardModel, params: dict, batch: TextBatch, dtype: str = "float32", remat: bool = False, whole=None
) -> jax.Array:
    """Hidden states `[B, T, D]` before the final norm, without dropout; see `RewardModel.score`.

    `whole` makes a layer's parameters whole where the devices hold shares of them.
    """
    network = nnx.merge(model.graphdef, params)
    with module.precision(dtype):
        return network(*batch[:4], None, jnp.dtype(dtype), layers.StackOptions(remat=remat, whole=whole))


def logits_of(model: RewardModel, params: dict, hidden: jax.Array) -> jax.Array:
    """Hidden states `[..., D]` -> scores of every next token, `[..., V]` float32."""
    with module.precision(hidden.dtype.name):
        return nnx.merge(model.graphdef, params).logits(hidden)


def values_of(model: RewardModel, params: dict, hidden: jax.Array) -> jax.Array:
    """Hidden states `[..., D]` -> values `[...]` float32, what the score head says of every token."""
    network = nnx.merge(model.graphdef, params)
    with module.precision("float32"):
        return network.score(network.pool(hidden.astype(jnp.float32)))[..., 0]


def logits(model: RewardModel, params: dict, batch: TextBatch, dtype: str = "float32") -> jax.Array:
    """Scores of every next token, `[B, T, V]` float32, without dropout."""
    return logits_of(model, params, hidden_states(model, params, batch, dtype))


def layers_apart(params: dict) -> dict:
    """Parameters for `extend` with the layers of a model that has few of them one by one, not stacked: a tuple."""
    stacked = params["layers"]
    count = jax.tree.leaves(stacked)[0].shape[0]
    if count > layers.UNROLLED:
        return params
    return params | {"layers": tuple(jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(count))}


def empty_cache(model: RewardModel, rows: int, columns: int, dtype: str) -> tuple[dict, ...]:
    """Room for the keys `[B, H', K, C]` and values `[B, H', C, K]` of each layer; of many layers one with `[L]` before.

    Products read both as they lie.
    """
    settings = module.read_settings(model.config, "config")
    count, heads, size = settings.num_hidden_layers, settings.key_heads, settings.head_size
    shapes = {"keys": (rows, heads, size, columns), "values": (rows, heads, columns, size)}
    parts = [()] * count if count <= layers.UNROLLED else [(count,)]
    return tuple({name: jnp.zeros((*n, *shape), jnp.dtype(dtype)) for name, shape in shapes.items()} for n in parts)


def extend(model: RewardModel, params: dict, input_ids, positions, mask, cache: tuple[dict, ...], column, dtype: str):
    """Reads the tokens `[B, Q]` that stand from `column` on; what stands before is in the cache already.

    Args:
      params: see `layers_apart`.
      positions: of the tokens in their texts, `[B, Q]`.
      mask: what one token a row may see of the cache, itself included, `[B, 1, C]`; of tokens that begin the cache
        what they may see of each other, `[B, Q, Q]`.

    Returns:
      The scores of the token after the last one, `[B, V]` float32, and the cache with these tokens in it.
    """
    stacked = params["layers"]
    params = params | {"layers": stacked[0]} if isinstance(stacked, tuple) else params
    network = nnx.merge(model.graphdef, params)
    with module.precision(dtype):
        hidden, cache = network.extend(stacked, input_ids, positions, mask, cache, column, jnp.dtype(dtype))
    return logits_of(model, params, hidden[:, -1]), cache
