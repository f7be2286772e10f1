"""The kernels of disentangled attention for one head of one row; see `disentangled.py` for what runs them.

The relative terms need no gather: against a table with one row per distance, ordered by distance, the term of query q
and key k stands in column k - q + constant, so a block of rows is right once row r is rolled by r, which TPUs do as
they move data (`pltpu.roll` with a stride). The gradient has to roll the other way, which they do not: there a block's
rows are turned upside down first, by a product with a permutation matrix, and row 127 - r rolled by 127 - r.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

BLOCK = 128  # rows that are rolled together; lanes of a TPU's vector registers


def precision(dtype):
    """All of float32 for float32: TPUs would otherwise round the factors to bfloat16."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def dot(a, b, contracted=(1, 0)):
    """Product of two matrices over these axes, in float32."""
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision(a.dtype), jnp.float32)


def skew(x):
    """`[BLOCK, N + BLOCK]` -> `[BLOCK, N]`: column j of row r is column j - r + BLOCK - 1."""
    return pltpu.roll(x, 1, 1, stride=1, stride_axis=0)[:, BLOCK:]


def unskew(flipped):
    """The transpose of `skew` on a block with the last row first, which is how it leaves it."""
    padded = jnp.concatenate([flipped, jnp.zeros((BLOCK, BLOCK), flipped.dtype)], axis=1)
    return pltpu.roll(padded, 0, 1, stride=1, stride_axis=0)


def exchange(dtype):
    """The matrix `[BLOCK, BLOCK]` that turns a block upside down."""
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, (BLOCK, BLOCK), axis) for axis in (0, 1))
    return (rows + columns == BLOCK - 1).astype(dtype)


def each_block(length: int, body) -> None:
    """Calls body(block, window) for each block of a row: its slice, and that of the table with its distances."""

    @pl.loop(0, length // BLOCK)
    def run(block):
        start = pl.multiple_of(block * BLOCK, BLOCK)
        body(pl.ds(start, BLOCK), pl.ds(pl.multiple_of(length - BLOCK - start, BLOCK), length + BLOCK))


class Operands(NamedTuple):
    """What the kernels read: arrays, their blocks or references to these."""

    query: jax.Array  # [R, H, T, K], as keys and value
    keys: jax.Array
    value: jax.Array
    table_key: jax.Array | None  # [H, 2T, K], see `expand_tables`
    table_query: jax.Array | None
    mask: jax.Array  # [R, T, T] int8, 0 where a query must not see a key
    keep: jax.Array | None  # [R, H, T, T] int8, 0 where dropout drops a weight; None without dropout


def store_key_terms(keys, table_query, terms):
    """p2c for all queries and keys `[T, T]`, before scaling. Skewed per key, then turned to [query, key]."""

    def store(block, window):
        terms[:, block] = skew(dot(keys[block], table_query[window], (1, 1))).T

    each_block(keys.shape[0], store)


def exponentials(refs, terms, block, window, scale):
    """exp(score - largest) `[BLOCK, T]` of a block of queries, and their sum `[BLOCK, 1]`."""
    scores = dot(refs.query[block], refs.keys[...], (1, 1))
    if refs.table_key is not None:
        scores += skew(dot(refs.query[block], refs.table_key[window], (1, 1)))
    if refs.table_query is not None:
        scores += terms[block]
    scores = jnp.where(refs.mask[block].astype(jnp.int32) != 0, scores * scale, jnp.finfo(jnp.float32).min)
    raised = jnp.exp(scores - scores.max(1, keepdims=True))
    return raised, raised.sum(1, keepdims=True)


def forward_kernel(refs: Operands, out, terms, *, scale: float, rate: float):
    """Attention of one head of one row."""
    if refs.table_query is not None:
        store_key_terms(refs.keys, refs.table_query, terms)

    def attend_block(block, window):
        raised, total = exponentials(refs, terms, block, window, scale)
        if refs.keep is not None:
            raised = jnp.where(refs.keep[block].astype(jnp.int32) != 0, raised, 0)
            total *= 1 - rate
        out[block] = (dot(raised.astype(out.dtype), refs.value[...]) / total).astype(out.dtype)

    each_block(out.shape[0], attend_block)


def backward_kernel(refs: Operands, d_out, grads: Operands, terms, d_keys, d_value, *, scale: float, rate: float):
    """Gradients of one head of one row; those of the tables add up over the rows, which the grid runs through last."""
    dtype, length = d_out.dtype, d_out.shape[0]
    flip = exchange(dtype)
    d_keys[...], d_value[...] = jnp.zeros_like(d_keys), jnp.zeros_like(d_value)

    @pl.when(pl.program_id(1) == 0)
    def clear_tables():
        for table in (grads.table_key, grads.table_query):
            if table is not None:
                table[...] = jnp.zeros_like(table)

    if refs.table_query is not None:
        store_key_terms(refs.keys, refs.table_query, terms)

    def query_block(block, window):
        raised, total = exponentials(refs, terms, block, window, scale)
        weights = raised / total
        d_weights = dot(d_out[block], refs.value[...], (1, 1))
        kept = weights
        if refs.keep is not None:
            keep = refs.keep[block].astype(jnp.int32) != 0
            kept, d_weights = (jnp.where(keep, x / (1 - rate), 0) for x in (weights, d_weights))
        d_value[...] += dot(kept.astype(dtype), d_out[block], (0, 0))
        d_scores = weights * (d_weights - (weights * d_weights).sum(1, keepdims=True)) * scale
        narrow = d_scores.astype(dtype)
        d_keys[...] += dot(narrow, refs.query[block], (0, 0))
        d_query = dot(narrow, refs.keys[...])
        if refs.table_key is not None:
            skewed = unskew(dot(flip, narrow)).astype(dtype)
            d_query += dot(flip, dot(skewed, refs.table_key[window]).astype(dtype))
            flipped = dot(flip, refs.query[block]).astype(dtype)
            grads.table_key[window] += dot(skewed, flipped, (0, 0))
        grads.query[block] = d_query.astype(dtype)
        if refs.table_query is not None:
            terms[block] = d_scores  # this block's terms are spent

    def key_block(block, window):
        skewed = unskew(dot(flip, terms[:, block].astype(dtype), (1, 1))).astype(dtype)
        d_keys[block] += dot(flip, dot(skewed, refs.table_query[window]).astype(dtype))
        flipped = dot(flip, refs.keys[block]).astype(dtype)
        grads.table_query[window] += dot(skewed, flipped, (0, 0))

    each_block(length, query_block)
    if refs.table_query is not None:
        each_block(length, key_block)
    grads.keys[...], grads.value[...] = d_keys[...].astype(dtype), d_value[...].astype(dtype)
