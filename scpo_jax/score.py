"""Scoring texts with a reward model: every distinct text once, packed in rows of a few fixed shapes."""

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from scpo_jax import distributed, sharding
from scpo_jax.data import packing
from scpo_jax.data.encoding import Prompt, Text
from scpo_jax.data.packing import Batch
from scpo_jax.data.preferences import as_text
from scpo_jax.errors import InputError
from scpo_jax.models import lora, module
from scpo_jax.models.module import RewardModel, TextBatch

TOKENS_PER_BATCH = 8192  # R * T of a scoring batch; bounds memory, large enough to keep matrix units busy
SHARED_FROM = 2**31  # bytes of parameters from which on several devices hold shares of them, and not each the whole
STANDARDISED_ON = 512  # training texts whose scores give a model's mean and standard deviation
VALUES_IN_CACHE = 2**21  # of a hidden state; DeBERTa-base scores 15 % more tokens a second at 2048 a batch than at 8192


def text_key(prompt: Prompt, response: str) -> str:
    """Name of a text in score files: 32 hex digits of the SHA-256 of prompt and response."""
    prompt = as_text(prompt)
    digest = hashlib.sha256(f"{len(prompt)}:{prompt}{response}".encode())
    return digest.hexdigest()[:32]


def distinct_texts(*columns: tuple[Sequence[Prompt], Sequence[str]]) -> dict[str, tuple[Prompt, str]]:
    """text key -> (prompt, response) of every distinct text of (prompts, responses) columns, in order of appearance."""
    return {text_key(p, r): (p, r) for prompts, responses in columns for p, r in zip(prompts, responses, strict=True)}


class ScoreFunction(NamedTuple):
    """The scores of a model: a function compiled once per shape, and the width that its batches are planned for.

    With several devices `compiled` takes batches `[N, ...]`, one for each of the N devices of `mesh`, and returns
    `[N, S]`. A model with heads gives `[S, C]` or `[N, S, C]`.
    """

    compiled: Callable  # (params, TextBatch) -> scores [S] float32, without dropout
    width: int
    mesh: Mesh | None  # the devices of this process; None for a single one
    params: dict  # shapes, types and places that `compiled` takes them in, see `place`
    of_text: tuple[int, ...] = ()  # shape of what a text gets: () or (C,)

    def place(self, params: dict) -> dict:
        """Parameters as `compiled` takes them."""

        def put(leaf, like):
            return jax.device_put(leaf if leaf.dtype == like.dtype else leaf.astype(like.dtype), like.sharding)

        return jax.tree.map(put, params, self.params)


def shapes_of(model: RewardModel, dtype: str) -> dict:
    """The parameters in the narrowest types that leave the scores as they are."""
    return lora.narrowed(module.abstract_params(model), jnp.dtype(dtype), model.reads == "last")


def is_shared(shapes: dict) -> bool:
    """Whether parameters are so large that several devices share them."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)) >= SHARED_FROM


def score_function(model: RewardModel, dtype: str, devices: Sequence | None = None) -> ScoreFunction:
    """The score function of a model that computes in `dtype`, on all devices of this process or on those given.

    Models of one structure get the same one: whatever a process scores with them, a shape is compiled once.
    """
    return _score_function(model, dtype, tuple(devices or jax.local_devices()), is_shared(shapes_of(model, dtype)))


@functools.cache
def _score_function(model: RewardModel, dtype: str, devices: tuple, shared: bool) -> ScoreFunction:
    shapes = shapes_of(model, dtype)
    of_text = (len(model.heads),) if model.heads else ()

    def scores(params, batch: TextBatch):
        gather = sharding.gather if shared and len(devices) > 1 else None
        return model.score(params, batch, dtype=dtype, gather=gather)

    def scores_of_device(params, batches: TextBatch):
        return scores(params, jax.tree.map(lambda leaf: leaf[0], batches))[None]

    if len(devices) == 1:  # which is named: parameters that have come to it in another way would be compiled for anew
        place = SingleDeviceSharding(devices[0])
        places = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes)
        return ScoreFunction(jax.jit(scores), model.width, None, places, of_text)
    mesh = Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))
    specs = sharding.specs_of_one(shapes, mesh, ("data",) if shared else ())
    places = jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)),
        shapes, specs,
    )  # fmt: skip
    function = jax.shard_map(
        scores_of_device, mesh=mesh, in_specs=(specs, P("data")), out_specs=P("data"), check_vma=False
    )
    return ScoreFunction(jax.jit(function), model.width, mesh, places, of_text)


def score_batches(
    function: ScoreFunction, params: dict, texts: Sequence[Text], tokens_per_batch: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (indices into `texts`, their scores float32) step by step, the longest texts first.

    Each device computes a batch a step. Of several processes each yields a part of the texts, without waiting for the
    others. One step is always in flight: the devices compute while the host builds the next. `tokens_per_batch` is
    at most R * T; None takes `most_tokens`.
    """
    tokens_per_batch = tokens_per_batch or most_tokens(function.width, jax.local_devices()[0].platform)
    devices = function.mesh.size if function.mesh else 1
    lengths = [len(text.input_ids) for text in texts]
    tokens = tokens_of_batch(sum(lengths), devices * distributed.count(), tokens_per_batch)
    steps = in_steps(packing.plan_batches(lengths, function.width, tokens), devices)
    yield from score_steps(function, function.place(params), texts, steps[distributed.index() :: distributed.count()])


def score_steps(
    function: ScoreFunction, params: dict, texts: Sequence[Text], steps: Sequence[Sequence[Batch]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (indices into `texts`, their scores float32) of planned steps; one is always in flight.

    `params` are placed (`ScoreFunction.place`).
    """
    pending = None
    for step in steps:
        running = step, start(function, params, texts, step)
        if pending is not None:
            yield finish(*pending)
        pending = running
    if pending is not None:
        yield finish(*pending)


def most_tokens(width: int, platform: str) -> int:
    """Tokens of the largest batch, a power of two: on CPUs its hidden states of `width` have to stay in the cache."""
    return (
        min(TOKENS_PER_BATCH, 1 << (VALUES_IN_CACHE // width).bit_length() - 1)
        if platform == "cpu"
        else TOKENS_PER_BATCH
    )


def tokens_of_batch(tokens: int, devices: int, most: int) -> int:
    """Tokens of a batch: `most`, or a power of two that gives every one of several devices something to do."""
    return most if devices == 1 else min(most, 1 << (-(-tokens // devices)).bit_length())


def in_steps(batches: Sequence[Batch], devices: int) -> list[list[Batch]]:
    """Batches of one row length, one for each device and all of one shape; where there are too few, empty ones."""
    steps = []
    for length, same in itertools.groupby(batches, key=lambda batch: batch.shape[1]):
        same = list(same)
        for first in range(0, len(same), devices):
            step = same[first : first + devices]
            shape, slots = (max(b.shape[0] for b in step), length), max(b.slots for b in step)
            step += [Batch([], [], [], shape, slots)] * (devices - len(step))
            steps.append([batch._replace(shape=shape, slots=slots) for batch in step])
    return steps


def start(function: ScoreFunction, params: dict, texts: Sequence[Text], step: Sequence[Batch]) -> jax.Array:
    """The scores of a step, under way."""
    batches = [packing.lay_out([texts[i] for i in indices], *places, slots) for indices, *places, slots in step]
    if function.mesh is None:
        return function.compiled(params, batches[0])
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    return function.compiled(params, jax.device_put(stacked, NamedSharding(function.mesh, P("data"))))


def finish(step: Sequence[Batch], scores: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """(indices of the texts of a step, their scores); waits for the devices."""
    rows = np.asarray(scores) if len(step) > 1 else np.asarray(scores)[None]
    values = [row[: len(batch.indices)] for batch, row in zip(step, rows, strict=True)]
    return np.concatenate([np.array(batch.indices, int) for batch in step]), np.concatenate(values)


def score_texts(function: ScoreFunction, params: dict, texts: Sequence[Text]) -> np.ndarray:
    """Scores `[N]`, with heads `[N, C]`, float32 of texts, in order; every process calls this and gets the same."""
    scores = np.zeros((len(texts), *function.of_text), np.float32)
    for indices, values in score_batches(function, params, texts):
        scores[indices] = values
    return distributed.summed(scores)


def check_length(texts: Sequence[Text], model: RewardModel) -> None:
    """Refuses texts longer than the model has positions for, and tokens that it has no embedding of."""
    longest = max((len(text.input_ids) for text in texts), default=0)
    if model.max_positions is not None and longest > model.max_positions:
        raise InputError(
            f"a text has {longest} tokens but the model takes {model.max_positions}: "
            "lower config.model.max_length, or use config.model.encoding=pair, which cuts texts"
        )
    words = model.shapes["embeddings"]["word"]["embedding"].shape[0]
    highest = max((int(text.input_ids.max(initial=0)) for text in texts), default=0)
    if highest >= words:
        raise InputError(
            f"the tokenizer gives a text the token {highest}, and the vocabulary of the model ends at {words - 1}: "
            "they are not of the same model"
        )
