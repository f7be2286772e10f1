"""Relative positions of DeBERTa: the row of the table for each distance, and attention with what it adds to the scores.

Segments are contiguous, so within a segment the distance of two positions is that of their columns: one `[T, T]` index
serves all rows of a batch, packed or not.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from scpo_jax.models import disentangled, layers


def bucket(distance, buckets: int, largest: int):
    """Log bucket of `distance = query - key` (numpy int array): itself up to `buckets / 2`, then ever wider buckets.

    As in transformers' `make_log_bucket_position`, in float32 like there: the ceiling makes rounding visible.
    """
    middle = buckets // 2
    far = np.maximum(np.abs(distance), middle).astype(np.float32)
    scale = np.log(np.float32((largest - 1) / middle))
    steps = np.ceil(np.log(far / np.float32(middle)) / scale * np.float32(middle - 1)).astype(np.int64)
    return np.where(np.abs(distance) <= middle, distance, np.sign(distance) * (middle + steps))


def table_rows(length: int, span: int, buckets: int, largest: int):
    """Which rows of a table of `2 * span` rows a text row of `length` columns needs: (first, end, index `[T, T]`).

    `index[query, key]` counts from `first`. Without buckets (below 1) every distance has a row; distances beyond the
    table share its outer rows.
    """
    distance = np.arange(1 - length, length)
    if buckets > 0:
        distance = bucket(distance, buckets, largest)
    rows = np.clip(distance + span, 0, 2 * span - 1)
    columns = jnp.arange(length)
    index = jnp.asarray(rows - rows[0], jnp.int32)[columns[:, None] - columns[None, :] + length - 1]
    return int(rows[0]), int(rows[-1]) + 1, index


def attention_bias(query, keys, position_key, position_query, index):
    """The relative terms of the attention scores, before scaling: float32 `[R, H, T, T]`.

    `query`, `keys` are `[R, T, H, K]`; `position_key` (for c2p) and `position_query` (for p2c) are projected rows of
    the relative table `[P, H, K]`, or None for a model without the term; `index [T, T]` is the row of a query and key.
    """
    bias = jnp.zeros((), jnp.float32)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    gather = functools.partial(jnp.take_along_axis, indices=index[None, None], mode="promise_in_bounds")
    if position_key is not None:
        bias = bias + gather(product("rqhd,phd->rhqp", query, position_key), axis=-1)
    if position_query is not None:
        bias = bias + gather(product("rkhd,phd->rhpk", keys, position_query), axis=-2)
    return bias


def bias_of_reads(query, keys, position_key, position_query, index):
    """As `attention_bias` for one query a row, `query [S, 1, H, K]` with `index [S, T]`: float32 `[S, H, 1, T]`.

    A product with the whole table would be as much work as for all queries of a row.
    """
    bias = jnp.zeros((), jnp.float32)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    if position_key is not None:
        bias = bias + product("sqhd,skhd->shqk", query, rows_at(position_key, index))
    if position_query is not None:
        bias = bias + product("skhd,skhd->shk", keys, rows_at(position_query, index))[:, :, None]
    return bias


def rows_at(table, index):
    """`table[index]`; on TPUs as a product with a one-hot matrix: the backward pass of that has no scatter."""

    def product(table, index):
        return jnp.einsum("skp,phd->skhd", jax.nn.one_hot(index, len(table), dtype=table.dtype), table)

    return jax.lax.platform_dependent(table, index, tpu=product, default=lambda table, index: table[index])


def attention(query, keys, value, position_key, position_query, index, mask, scale: float, rate: float, key):
    """Disentangled attention `[R, T, H * K]`: softmax of all terms under `mask [R, T, T]`, dropout, times `value`.

    One function in two forms: on TPUs the fused one, elsewhere the plain one. What each costs there stands in
    `tests/bench/attention_cost.py`. The first five arguments are as in `attention_bias`; `value [R, T, H, K]`.
    """
    arguments = (query, keys, value, position_key, position_query, index, mask)
    plain = functools.partial(plain_attention, scale=scale, rate=rate, key=key)
    if not disentangled.supported(query.shape[1]):
        return plain(*arguments)
    fused = functools.partial(disentangled.attend, scale=scale, rate=rate, key=key)
    return jax.lax.platform_dependent(*arguments, tpu=fused, default=plain)


def plain_attention(query, keys, value, position_key, position_query, index, mask, scale: float, rate: float, key):
    """The form of `attention` to check others by: every score in memory."""
    bias = attention_bias(query, keys, position_key, position_query, index)
    return layers.attend((layers.products(query, keys) + bias) * scale, value, mask, rate, key)


def attention_of_reads(query, keys, value, position_key, position_query, index, mask, scale: float, rate: float, key):
    """`attention` for one query a row, `[S, 1, H * K]`; the arguments are as in `bias_of_reads`, `mask [S, 1, T]`."""
    bias = bias_of_reads(query, keys, position_key, position_query, index)
    return layers.attend((layers.products(query, keys) + bias) * scale, value, mask, rate, key)
