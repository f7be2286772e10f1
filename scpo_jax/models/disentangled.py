"""Disentangled attention as one kernel for TPUs, where a gather along the keys costs more than all the rest of a layer.

The scores of a row and head never leave the fast memory, so it costs less than plain attention without relative terms.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from scpo_jax.models.disentangled_kernel import BLOCK, Operands, backward_kernel, forward_kernel, precision

LONGEST = 1024  # columns of a row whose scores fit in the fast memory
ROLL_IN_STEPS = ("TPU v2", "TPU v3", "TPU v4", "TPU v4 lite")  # kinds of TPUs that cannot roll with a stride
VMEM_BYTES = 64 * 2**20  # of that memory; the v5p has 95 MiB, v5e and v6e 128


def expand_tables(position_key, position_query, index, length: int):
    """Tables `[P, H, K]` or None -> `[H, 2 * length, K]` or None, with a row for each distance of two columns.

    `position_key` comes ordered by key - query from 1 - length to length - 1, `position_query` by query - key; rows
    that `index [T, T]` does not ask for are zero, and so is the last one. The rows are selected by a product with a
    one-hot matrix, whose transpose in the backward pass needs no scatter.
    """
    more = length - index.shape[0]
    rising = jnp.pad(jnp.concatenate([index[0, ::-1], index[1:, 0]]), (more, more), constant_values=-1)

    def expand(table, rows):
        if table is None:
            return None
        selection = jax.nn.one_hot(jnp.pad(rows, (0, 1), constant_values=-1), table.shape[0], dtype=table.dtype)
        return jnp.einsum("op,phd->hod", selection, table, precision=precision(table.dtype))

    return expand(position_key, rising[::-1]), expand(position_query, rising)


def specs(operands: Operands) -> Operands:
    """Which block of each operand the program of head h and row r works on."""
    places = [lambda h, r: (r, h, 0, 0)] * 3 + [lambda h, r: (h, 0, 0)] * 2
    places += [lambda h, r: (r, 0, 0), lambda h, r: (r, h, 0, 0)]
    return Operands(*(
        None if x is None else pl.BlockSpec((*[None] * (x.ndim - 2), *x.shape[-2:]), place)
        for x, place in zip(operands, places, strict=True)
    ))  # fmt: skip


def call(kernel, operands: tuple, in_specs: tuple, out_shape, out_specs, scratch: list, interpret: bool):
    """One program for every head and row; heads may go to different cores."""
    rows, heads = operands[0].query.shape[:2]
    return pl.pallas_call(
        kernel,
        out_shape=out_shape,
        grid=(heads, rows),
        in_specs=in_specs,
        out_specs=out_specs,
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=cost(operands, out_shape),
        interpret=interpret,
        name=kernel.func.__name__,
    )(*operands)


def cost(operands: tuple, out_shape) -> pl.CostEstimate:
    """What the kernel on these operands costs, for the compiler's schedule: it cannot see into the kernel."""
    rows, heads, length, size = operands[0].query.shape
    square, wide = length**2, length * (length + BLOCK)
    terms = sum(x is not None for x in operands[0][3:5])
    if len(operands) == 1:
        products = 2 * square + terms * wide
    else:  # besides: the gradients of four factors; of a term the turned block, and the gradients of two factors
        products = 5 * square + terms * (3 * wide + square * BLOCK // size)
    moved = sum(x.size * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves((operands, out_shape)))
    return pl.CostEstimate(
        flops=2 * rows * heads * size * products, transcendentals=rows * heads * square, bytes_accessed=moved
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def fused(operands: Operands, scale: float, rate: float, interpret: bool):
    """The attention of `attend` on its padded and turned operands: `[R, H, T, K]`."""
    query, length = operands.query, operands.query.shape[2]
    own = specs(operands)
    kernel = functools.partial(forward_kernel, scale=scale, rate=rate)
    shape, scratch = jax.ShapeDtypeStruct(query.shape, query.dtype), [pltpu.VMEM((length, length), jnp.float32)]
    return call(kernel, (operands,), (own,), shape, own.query, scratch, interpret)


def fused_forward(operands, scale, rate, interpret):
    return fused(operands, scale, rate, interpret), operands


def fused_backward(scale, rate, interpret, operands, d_out):
    length, size = operands.query.shape[2:]
    own = specs(operands)
    kernel = functools.partial(backward_kernel, scale=scale, rate=rate)
    shape = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32 if x.ndim == 3 else x.dtype), operands)
    shape, out_specs = (x._replace(mask=None, keep=None) for x in (shape, own))
    scratch = [pltpu.VMEM((length, n), jnp.float32) for n in (length, size, size)]
    (grads,) = call(kernel, (operands, d_out), (own, own.query), (shape,), (out_specs,), scratch, interpret)
    tables = [x if x is None else x.astype(d_out.dtype) for x in (grads.table_key, grads.table_query)]
    return (grads._replace(table_key=tables[0], table_query=tables[1]),)


fused.defvjp(fused_forward, fused_backward)


def supported(length: int) -> bool:
    """Whether TPUs can run the kernel on rows of that many columns.

    Those of the mesh in whose context this is traced (`shard_map`, `jax.set_mesh`), which a program may be compiled
    for without having it; without a mesh those of this machine, if it has any.
    """
    described = jax.sharding.get_abstract_mesh().abstract_device
    device = jax.devices()[0] if described is None else described
    return length <= LONGEST and device.device_kind not in ROLL_IN_STEPS


def attend(
    query, keys, value, position_key, position_query, index, mask, scale: float, rate: float, key, interpret=False
):
    """Disentangled attention `[R, T, H * K]`; the arguments are those of `relative.attention`."""
    rows, length, heads, size = query.shape
    padded = -(-length // BLOCK) * BLOCK
    more = padded - length
    turned = (jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, more), (0, 0))) for x in (query, keys, value))
    tables = expand_tables(position_key, position_query, index, padded)
    # a query beyond the end sees nothing: its weights are uniform and its result is cut off
    mask = jnp.pad(mask.astype(jnp.int8), ((0, 0), (0, more), (0, more)))
    keep = None
    if key is not None and rate > 0:
        keep = jax.random.bernoulli(key, 1 - rate, (rows, heads, length, length)).astype(jnp.int8)
        keep = jnp.pad(keep, ((0, 0), (0, 0), (0, more), (0, more)))
        # drawn once: XLA would draw it a second time for the copy that waits for the backward pass
        keep = jax.lax.optimization_barrier(keep)
    mixed = fused(Operands(*turned, *tables, mask, keep), scale, rate, interpret)
    return mixed[:, :, :length].swapaxes(1, 2).reshape(rows, length, heads * size)
