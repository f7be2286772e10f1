"""Generation with a language model: prompts in, responses with the log-probabilities of their tokens out.

Prompts are padded on the left, so that every row's next token stands in the same column. A row's response depends on
its prompt, its number and the key alone: not on the other rows, the padding or the devices.
Legend of dimensions: B rows, P columns of the prompts, N columns of the responses, V vocabulary.
"""

import concurrent.futures
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scpo_jax import cores, sharding
from scpo_jax.models import language, layers, lora, module
from scpo_jax.models.module import RewardModel

ONE = np.float32(1).view(np.int32)


class Sampling(NamedTuple):
    """How tokens are chosen; names, meaning and order are those of transformers' GenerationConfig."""

    end_ids: tuple[int, ...]  # any of them ends a response
    pad_id: int  # stands after the end; a row of the embeddings
    temperature: float = 1.0  # 0: always the most probable token
    top_k: int = 0  # only the k most probable tokens; 0: all
    top_p: float = 1.0  # only the fewest most probable tokens of together so much probability
    min_new_tokens: int = 0  # none of `end_ids` before so many tokens


class Prompts(NamedTuple):
    """Prompts in rows, padded on the left."""

    input_ids: jax.Array  # [B, P] int32
    lengths: jax.Array  # [B] int32; 0 is a row without a prompt, which gets no response
    numbers: jax.Array  # [B] int32, what with the key decides a row's response


class Responses(NamedTuple):
    """What was generated."""

    tokens: jax.Array  # [B, N] int32; after the end `pad_id`
    lengths: jax.Array  # [B] int32, tokens with the one that ends the response
    logprobs: jax.Array  # [B, N] float32, log pi of each token at temperature 1 among all tokens; 0 after the end
    ended: jax.Array  # [B] bool; the others were cut off after N tokens


class State(NamedTuple):
    """Of a generation under way."""

    count: jax.Array  # [] int32, tokens generated of every row
    responses: Responses
    cache: tuple[dict, ...]


def sample(
    model: RewardModel,
    params: dict,
    prompts: Prompts,
    key: jax.Array,
    cache: dict,
    sampling: Sampling,
    dtype: str = "float32",
) -> Responses:
    """Responses of at most N tokens; ends when all rows have.

    Args:
      cache: empty, see `language.empty_cache`; of P + N - 1 columns: a last token is not read any more.
      dtype: of the model's products, see `RewardModel.score`.
    """
    rows, width = prompts.input_ids.shape
    columns = jnp.arange(cache[0]["keys"].shape[-1], dtype=jnp.int32)
    new_tokens = len(columns) - width + 1
    row_keys = jax.vmap(functools.partial(jax.random.fold_in, key))(prompts.numbers)
    first = width - prompts.lengths[:, None]  # the column of each row's first token
    read = functools.partial(language.extend, model, language.layers_apart(params), dtype=dtype)

    def choose(state: State, logits) -> State:
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys, state.count)
        allowed = logits if not sampling.min_new_tokens else without_end(logits, state.count, sampling)
        token = draw(allowed, keys, sampling)
        return state._replace(
            count=state.count + 1, responses=appended(state.responses, state.count, token, logits, sampling)
        )

    def step(state: State) -> State:
        column = width + state.count - 1
        token = jax.lax.dynamic_slice_in_dim(state.responses.tokens, state.count - 1, 1, axis=1)
        seen = (columns >= first) & (columns <= column)
        logits, cache = read(token, column - first, seen[:, None], state.cache, column)
        return choose(state._replace(cache=cache), logits)

    def unfinished(state: State):
        return (state.count < new_tokens) & ~state.responses.ended.all()

    positions = columns[:width] - first
    mask = layers.earlier_in_segment((positions >= 0).astype(jnp.int32))
    with jax.named_scope("prefill"):  # by which preflight tells its loop over layers
        logits, cache = read(prompts.input_ids, jnp.maximum(positions, 0), mask, cache, jnp.int32(0))
    nothing = Responses(
        jnp.full((rows, new_tokens), sampling.pad_id, jnp.int32), jnp.zeros(rows, jnp.int32),
        jnp.zeros((rows, new_tokens), jnp.float32), prompts.lengths == 0,
    )  # fmt: skip
    return jax.lax.while_loop(unfinished, step, choose(State(jnp.int32(0), nothing, cache), logits)).responses


def appended(responses: Responses, count, token, logits, sampling: Sampling) -> Responses:
    """Responses with one more token `[B]`, drawn after `count` of them, in the rows that have not ended."""
    live = ~responses.ended
    logprob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], 1)[:, 0]
    ends = functools.reduce(jnp.logical_or, [token == end for end in sampling.end_ids], jnp.zeros_like(live))
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=count, axis=1)
    return Responses(
        put(responses.tokens, jnp.where(live, token, sampling.pad_id)),
        responses.lengths + live,
        put(responses.logprobs, jnp.where(live, logprob, 0)),
        responses.ended | ends,
    )


def without_end(logits, count, sampling: Sampling):
    """Logits `[B, V]` with minus infinity for the end tokens while there are too few others."""
    closed = logits.at[:, np.array(sampling.end_ids, np.int32)].set(-jnp.inf)
    return jnp.where(count < sampling.min_new_tokens, closed, logits)


def draw(logits, keys, sampling: Sampling):
    """A token for each row `[B]` of logits `[B, V]`, with a key `[B]` of its own; the most probable at temperature 0.

    By inversion of the cumulative distribution: one random number a row, where Gumbel noise takes V.
    """
    if not sampling.temperature:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    probabilities = truncated(logits / sampling.temperature, sampling.top_k, sampling.top_p)
    # a parallel sum may fall by a rounding error: tokens of probability 0 are never above the threshold
    cumulative = jnp.where(probabilities > 0, jnp.cumsum(probabilities, axis=-1), 0)
    threshold = jax.vmap(jax.random.uniform)(keys) * cumulative.max(-1)
    return jnp.argmax(cumulative > threshold[:, None], axis=-1).astype(jnp.int32)


def truncated(logits, top_k: int, top_p: float):
    """Probabilities `[B, V]`: the softmax of the k best logits (0: all), of these the nucleus, which is not rescaled.

    Equally probable tokens stay or go together.
    """
    if 0 < top_k < logits.shape[-1]:
        logits = jnp.where(logits >= jax.lax.top_k(logits, top_k)[0][:, -1:], logits, -jnp.inf)
    probabilities = jax.nn.softmax(logits)
    return nucleus(probabilities, top_p) if top_p < 1 else probabilities


def nucleus(probabilities, top_p: float):
    """Probabilities `[B, V]` with 0 for all but the fewest most probable tokens of together at least `top_p`.

    The least probability that stays is found by bisection over the bits of float32 numbers, which are ordered as the
    numbers are: 30 masked sums instead of a sort (arXiv 1904.09751 defines the nucleus by one).
    """
    bits = jax.lax.bitcast_convert_type(probabilities, jnp.int32)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        enough = jnp.where(bits >= middle, probabilities, 0).sum(-1, keepdims=True) >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.zeros((len(bits), 1), jnp.int32)
    low, _ = jax.lax.fori_loop(0, 30, halve, (low, jnp.full_like(low, ONE + 1)))
    return jnp.where(bits >= low, probabilities, 0)


def make_sampler(
    model: RewardModel, mesh: Mesh, sampling: Sampling, dtype: str, cache_dtype: str, specs: dict | None = None
) -> Callable[..., Responses]:
    """The compiled (params, prompts, seed, new_tokens) -> responses, compiled once for each B, P and N.

    The rows are shared out over the axis data, which has to divide B; the responses are whole on every device.
    Parameters come with the PartitionSpecs `specs`, by default whole; those shared over data are made whole once.

    Args:
      dtype, cache_dtype: of the model's products, and of the keys and values that are kept.
    """
    specs = jax.tree.map(lambda _: P(), module.abstract_params(model)) if specs is None else specs
    given, kept = (
        jax.tree.map(functools.partial(NamedSharding, mesh), own) for own in (specs, sharding.over(("model",), specs))
    )
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    narrow = lora.narrowed(module.abstract_params(model), jnp.dtype(dtype), causal=True)

    def run(params, prompts: Prompts, seed, new_tokens: int) -> Responses:
        params = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, narrow)
        params = jax.lax.with_sharding_constraint(params, kept)
        rows, width = prompts.input_ids.shape
        cache = language.empty_cache(model, rows, width + new_tokens - 1, cache_dtype)
        shared = "model" if cache[0]["keys"].shape[-3] % mesh.shape["model"] == 0 else None
        places = jax.tree.map(lambda leaf: NamedSharding(mesh, P(*[None] * (leaf.ndim - 4), "data", shared)), cache)
        cache = jax.lax.with_sharding_constraint(cache, places)
        return sample(model, params, prompts, jax.random.key(seed), cache, sampling, dtype)

    return jax.jit(run, static_argnums=3, in_shardings=(given, rows, whole), out_shardings=whole)


def left_pad(prompts: Sequence[np.ndarray], numbers: Sequence[int], shape: tuple[int, int], pad_id: int) -> Prompts:
    """Prompts in rows of a batch of `shape` (B, P), in which they have to fit; the last rows may stay without one."""
    input_ids = np.full(shape, pad_id, np.int32)
    lengths, numbered = np.zeros((2, shape[0]), np.int32)
    for row, (prompt, number) in enumerate(zip(prompts, numbers, strict=True)):
        input_ids[row, shape[1] - len(prompt) :] = prompt
        lengths[row], numbered[row] = len(prompt), number
    return Prompts(input_ids, lengths, numbered)


def respond(sampler: Callable[..., Responses], params: dict, prompts: Prompts, seed, new_tokens: int) -> Responses:
    """The responses to prompts, in numpy. The one device of a CPU gets a part of the rows from each core at once.

    The products of a decoding step are too small for several threads.
    """
    count = max(n for n in range(1, cores.of_one_device() + 1) if len(prompts.lengths) % n == 0)
    parts = [Prompts(*leaves) for leaves in zip(*(np.split(np.asarray(leaf), count) for leaf in prompts), strict=True)]
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        done = pool.map(lambda part: jax.device_get(sampler(params, part, seed, new_tokens)), parts)
        return Responses(*map(np.concatenate, zip(*done, strict=True)))


def generate(
    sampler: Callable[..., Responses],
    params: dict,
    prompts: Sequence[np.ndarray],
    seed: int,
    *,
    rows: int,
    new_tokens: int,
    pad_id: int,
) -> Responses:
    """The response to every prompt, numbered as they come, in numpy; `rows` prompts of about one length at once.

    Batches have 16, 32, 64, ... columns, so that few programs are compiled.
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    order = np.argsort(-lengths, kind="stable")
    parts = [order[start : start + rows] for start in range(0, len(order), rows)]
    shapes = [(rows, max(16, 1 << int(lengths[part].max() - 1).bit_length())) for part in parts]
    padded = [left_pad([prompts[i] for i in p], p, shape, pad_id) for p, shape in zip(parts, shapes, strict=True)]
    running = [respond(sampler, params, batch, np.uint32(seed), new_tokens) for batch in padded]
    done = [
        np.concatenate([leaf[: len(p)] for leaf, p in zip(leaves, parts, strict=True)])
        for leaves in zip(*running, strict=True)
    ]
    return Responses(*(leaf[np.argsort(order)] for leaf in done))
