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


def empty_cache(model: RewardModel, rows: int, columns: int, dtype: str) -> dict:
    """Room for the keys and values of all layers, `[L, B, C, H', K]` each."""
    settings = module.read_settings(model.config, "config")
    shape = settings.num_hidden_layers, rows, columns, settings.key_heads, settings.head_size
    return {name: jnp.zeros(shape, jnp.dtype(dtype)) for name in ("keys", "values")}


def extend(model: RewardModel, params: dict, input_ids, positions, mask, cache: dict, column, dtype: str):
    """Reads the tokens `[B, Q]` that stand from `column` on; what stands before is in the cache already.

    Args:
      positions: of the tokens in their texts, `[B, Q]`.
      mask: what each token may see of the first columns of the cache, itself included, `[B, Q, up to C]`.

    Returns:
      The scores of the token after the last one, `[B, V]` float32, and the cache with these tokens in it.
    """
    network = nnx.merge(model.graphdef, params)
    with module.precision(dtype):
        hidden, cache = network.extend(input_ids, positions, mask, cache, column, jnp.dtype(dtype))
    return logits_of(model, params, hidden[:, -1]), cache
