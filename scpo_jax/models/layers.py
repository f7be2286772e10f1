"""The parts that the families share: linear maps, norms, embeddings, dropout, attention, the stack of layers.

Parameters are float32 and named `kernel [in, out]`, `bias`, `scale` or `embedding`; the layers of a stack share one
set of arrays with a leading `[L]`. A module computes in the type of its input; norms and softmax compute in float32.
No module keeps random state: dropout happens if and only if a key is passed.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

UNROLLED = 8  # layers at most that run one after the other: a loop would copy what goes in and out of it
GATHERED = "gathered"  # checkpoint name of parameters that were made whole from the shares of several devices
ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


class Linear(nnx.Module):
    """`x @ kernel + bias`, in the type of `x`; what `lora.attach` has given adapters adds their part."""

    def __init__(self, fan_in: int, fan_out: int, std: float, rngs: nnx.Rngs, use_bias: bool = True):
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (fan_in, fan_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((fan_out,), jnp.float32)) if use_bias else None
        self.lora_a = self.lora_b = None
        self.lora_scale, self.lora_rate = 0.0, 0.0

    def __call__(self, x, key=None):
        """`key` is for the dropout of the adapters' input."""
        y = x @ self.kernel[...].astype(x.dtype)
        if self.lora_a is not None:
            inner = dropout(x, self.lora_rate, key) @ self.lora_a[...].astype(x.dtype)
            y = y + inner @ self.lora_b[...].astype(x.dtype) * self.lora_scale
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def widen(head: Linear, outputs: int) -> None:
    """Gives a linear map `outputs` of them, all zero."""
    head.kernel = nnx.Param(jnp.zeros((head.kernel.shape[0], outputs), jnp.float32))
    if head.bias is not None:
        head.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))


class Norm(nnx.Module):
    """Layer norm over the last axis, computed in float32."""

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x):
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Division by the root mean square over the last axis (arXiv 1910.07467), computed in float32."""

    def __init__(self, width: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x):
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.epsilon)
        return (normed * self.scale[...]).astype(x.dtype)


class Embedding(nnx.Module):
    """A table of rows; an id outside it gives NaN, so that it cannot go unseen."""

    def __init__(self, size: int, width: int, std: float, rngs: nnx.Rngs, padding_id: int | None = None):
        table = std * jax.random.normal(rngs.params(), (size, width), jnp.float32)
        self.embedding = nnx.Param(table if padding_id is None else table.at[padding_id].set(0.0))
        self.width = width

    def __call__(self, ids):
        """`[R, T]` -> `[R, T, width]`.

        Where, in `shard_map`, the devices of the axis data have a share of the columns each, every one looks up all
        tokens in its columns: tokens are sent around, not the table.
        """
        table = self.embedding[...]
        look_up = functools.partial(jnp.take, axis=0, mode="fill", fill_value=jnp.nan)
        if table.shape[1] == self.width:
            return look_up(table, ids)
        found = look_up(table, jax.lax.all_gather(ids, "data"))
        return jax.lax.all_to_all(found, "data", split_axis=0, concat_axis=found.ndim - 1, tiled=True)[0]


class FeedForward(nnx.Module):
    """Two linear maps with an activation between them, then dropout, residual and norm (as in BERT)."""

    def __init__(self, settings, rngs: nnx.Rngs):
        width, inner, std = settings.hidden_size, settings.intermediate_size, settings.initializer_range
        self.input = Linear(width, inner, std, rngs)
        self.output = Linear(inner, width, std, rngs)
        self.norm = Norm(width, settings.layer_norm_eps)
        self.activation, self.rate = ACTIVATIONS[settings.hidden_act], settings.hidden_dropout_prob

    def __call__(self, x, key=None):
        y = self.output(self.activation(self.input(x)))
        return self.norm(x + dropout(y, self.rate, key))


class Layer(nnx.Module):
    """A family's attention, then its feed-forward; each has its norm and residual inside."""

    def __init__(self, make_attention, make_feed_forward, settings, rngs: nnx.Rngs):
        self.attention = make_attention(settings, rngs)
        self.feed_forward = make_feed_forward(settings, rngs)

    def __call__(self, x, *arguments, key=None, read=None):
        attention_key, feed_forward_key = split_key(key, 2)
        return self.feed_forward(self.attention(x, *arguments, key=attention_key, read=read), feed_forward_key)


class Read(NamedTuple):
    """The tokens whose hidden states are read: the last layer computes those of no others."""

    rows: jax.Array  # [S]
    columns: jax.Array  # [S]

    def tokens(self, x):
        """`[R, T, ...]` -> `[S, 1, ...]`: each as the one query of a row of its own."""
        return x[self.rows, self.columns][:, None]


def queries(x, read: Read | None):
    """Who asks in attention: all of `x [R, T, ...]`, or the tokens that are read."""
    return x if read is None else read.tokens(x)


def rows_of(x, read: Read | None):
    """`[R, T, ...]` whom the queries may see, a row for each row of theirs."""
    return x if read is None else x[read.rows]


def split_key(key, count: int):
    """`count` fresh keys, or `count` times None when there is no dropout."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def dropout(x, rate: float, key):
    """Zero entries with probability `rate` and scale up the rest; `x` itself without a key."""
    if key is None or rate == 0:
        return x
    return jnp.where(kept(key, rate, x.shape), x / (1 - rate), 0).astype(x.dtype)


def kept(key, rate: float, shape: tuple[int, ...]):
    """Where dropout keeps entries: bool of `shape`, the very draws of `jax.random.bernoulli(key, 1 - rate, shape)`.

    Threefry-2x32 (Salmon et al. 2011) on each entry's number, written in one piece: jax loops over its rounds on CPUs,
    where this takes a fifteenth of the time.
    """
    first, second = jax.random.key_data(key)
    keys = first, second, first ^ second ^ jnp.uint32(0x1BD11BDA)
    x, y = keys[0], jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape) + keys[1]
    for i in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            x = x + y
            y = x ^ (y << turn | y >> 32 - turn)
        x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    # 23 bits of the word are the uniform number that bernoulli compares with
    return (x ^ y) >> 9 < jnp.uint32(math.ceil(np.float32(1 - rate) * 2**23))


def heads(x, count: int):
    """`[..., H * K]` -> `[..., H, K]`."""
    return x.reshape(*x.shape[:-1], count, -1)


def same_segment(segment_ids):
    """`[R, T]` -> bool `[R, T, T]`: who may attend to whom.

    Padding is a segment too (0), so every token attends to something and no softmax is empty.
    """
    return segment_ids[:, :, None] == segment_ids[:, None, :]


def earlier_in_segment(segment_ids):
    """As `same_segment`, but to a token's own and earlier columns only."""
    columns = jnp.arange(segment_ids.shape[1])
    return same_segment(segment_ids) & (columns[:, None] >= columns[None, :])


def products(query, keys):
    """Every `query [R, Q, H, K]` with each of the `keys [R, T, H, K]`: float32 `[R, H, Q, T]`."""
    return jnp.einsum("rqhd,rkhd->rhqk", query, keys, preferred_element_type=jnp.float32)


def attend(scores, value, mask, rate: float, key):
    """Softmax of `scores [R, H, Q, T]` under `mask [R, Q, T]`, times `value [R, T, H, K]` -> `[R, Q, H * K]`."""
    scores = jnp.where(mask[:, None], scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1), rate, key).astype(value.dtype)
    # heads first: on a CPU the einsum of the other order is slower and sums its terms with four times the error
    mixed = jnp.matmul(weights, value.swapaxes(1, 2)).swapaxes(1, 2)
    return mixed.reshape(*mixed.shape[:2], -1)


def stack(make_attention, settings, rngs: nnx.Rngs, make_feed_forward=FeedForward):
    """All layers as one module whose parameters have a leading `[L]`."""
    make_layer = nnx.vmap(lambda rngs: Layer(make_attention, make_feed_forward, settings, rngs), in_axes=0, out_axes=0)
    return nnx.split_rngs(splits=settings.num_hidden_layers)(make_layer)(rngs)


class StackOptions(NamedTuple):
    """How to run a stack of layers."""

    remat: bool = False  # compute each layer again in the backward pass instead of keeping its inner values
    every_layer: bool = False  # return every layer's output
    # makes a layer's parameters whole where a device holds a share of them; again in the backward pass, not kept for it
    whole: Callable | None = None


def run_stack(layers, x, arguments: tuple, key, options: StackOptions, read: Read | None = None):
    """Apply stacked layers one after the other to `x [R, T, D]`, each by `layer(x, *arguments, key=..., read=...)`.

    Returns the last hidden states of the tokens that are read `[S, D]`, of all `[R, T, D]` where `read` is None, or
    with `every_layer` those of every layer, the input first: `[L + 1, R, T, D]`.
    """
    graphdef, state = nnx.split(layers)
    count = jax.tree.leaves(state)[0].shape[0]

    def step(x, layer, read=None):
        parameters, layer_key = layer
        parameters = options.whole(parameters) if options.whole else parameters
        y = nnx.merge(graphdef, parameters)(x, *arguments, key=layer_key, read=read)
        return y, y if options.every_layer else None

    if options.remat:
        step = jax.checkpoint(step)
    elif options.whole:
        step = jax.checkpoint(step, policy=jax.checkpoint_policies.save_anything_except_these_names(GATHERED))
    keys = None if key is None else jax.random.split(key, count)
    if read is not None:
        before, last = (jax.tree.map(operator.itemgetter(part), (state, keys)) for part in (slice(count - 1), -1))
        x = jax.lax.scan(step, x, before)[0] if count > 1 else x
        return step(x, last, read)[0][:, 0]
    last, outputs = jax.lax.scan(step, x, (state, keys), unroll=count <= UNROLLED)
    return jnp.concatenate([x[None], outputs]) if options.every_layer else last
