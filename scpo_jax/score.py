"""Scoring texts with a reward model: every distinct text once, packed in rows of a few fixed shapes."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from scpo_jax.data import packing
from scpo_jax.data.encoding import Text
from scpo_jax.errors import InputError
from scpo_jax.models.module import RewardModel

TOKENS_PER_BATCH = 8192  # R * T of a scoring batch; bounds memory, large enough to keep matrix units busy


def text_key(prompt: str, response: str) -> str:
    """Name of a text in score files: 32 hex digits of the SHA-256 of prompt and response."""
    digest = hashlib.sha256(f"{len(prompt)}:{prompt}{response}".encode())
    return digest.hexdigest()[:32]


def distinct_texts(*columns: tuple[Sequence[str], Sequence[str]]) -> dict[str, tuple[str, str]]:
    """text key -> (prompt, response) of every distinct text of (prompts, responses) columns, in order of appearance."""
    return {text_key(p, r): (p, r) for prompts, responses in columns for p, r in zip(prompts, responses, strict=True)}


class ScoreFunction(NamedTuple):
    """The scores of a model: a function compiled once per shape, and the width that its batches are planned for."""

    compiled: Callable  # (params, TextBatch) -> scores [S] float32, without dropout
    width: int


def score_function(model: RewardModel, dtype: str) -> ScoreFunction:
    """The score function of a model that computes in `dtype`."""
    return ScoreFunction(jax.jit(lambda params, batch: model.score(params, batch, dtype=dtype)), model.width)


def score_batches(
    function: ScoreFunction, params: dict, texts: Sequence[Text], tokens_per_batch: int = TOKENS_PER_BATCH
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (indices into `texts`, their scores float32) batch by batch, the longest texts first.

    One batch is always in flight: the device computes while the host builds the next.
    """
    pending = None
    lengths = [len(text.input_ids) for text in texts]
    for indices, *places, slots in packing.plan_batches(lengths, function.width, tokens_per_batch):
        batch = packing.lay_out([texts[i] for i in indices], *places, slots)
        running = np.array(indices), function.compiled(params, batch)
        if pending is not None:
            yield pending[0], np.asarray(pending[1])[: len(pending[0])]
        pending = running
    if pending is not None:
        yield pending[0], np.asarray(pending[1])[: len(pending[0])]


def score_texts(function: ScoreFunction, params: dict, texts: Sequence[Text]) -> np.ndarray:
    """Scores `[N]` float32 of texts, in their order."""
    scores = np.zeros(len(texts), np.float32)
    for indices, values in score_batches(function, params, texts):
        scores[indices] = values
    return scores


def check_length(texts: Sequence[Text], model: RewardModel) -> None:
    """Refuses texts longer than the model has positions for."""
    longest = max((len(text.input_ids) for text in texts), default=0)
    if model.max_positions is not None and longest > model.max_positions:
        raise InputError(
            f"a text has {longest} tokens but the model takes {model.max_positions}: "
            "lower config.model.max_length, or use config.model.encoding=pair, which cuts texts"
        )
