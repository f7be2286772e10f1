"""From (prompt, response) to token ids, and from token ids to padded batches of a few fixed shapes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scpo_jax.models.module import TextBatch

ENCODINGS = ("pair", "reference")
RESPONSE_TOKENS = 64  # what the prompt leaves to the response and the special tokens when a text is too long

LADDER = (16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512)


class Text(NamedTuple):
    """One encoded text."""

    input_ids: np.ndarray  # [T] int32
    token_type_ids: np.ndarray  # [T] int32
    cut: int  # tokens lost to max_length


def encode_for_scoring(tokenizer, prompts: Sequence[str], responses: Sequence[str], max_length: int, encoding: str):
    """Encodes texts as they are scored; a list of `Text`.

    encoding="pair": the text pair of prompt and response, cut to `max_length` (see `_cut_pair`). encoding="reference":
    the authors' pair encoding, not cut at all.
    """
    output = tokenizer(list(prompts), list(responses), truncation=False, return_token_type_ids=True, verbose=False)
    texts = []
    for i, (ids, types) in enumerate(zip(output["input_ids"], output["token_type_ids"], strict=True)):
        kept = np.arange(len(ids))
        if encoding == "pair" and len(ids) > max_length:
            kept = _cut_pair(output.sequence_ids(i), max_length)
        texts.append(Text(np.asarray(ids, np.int32)[kept], np.asarray(types, np.int32)[kept], len(ids) - len(kept)))
    return texts


def encode_for_training(tokenizer, prompts: Sequence[str], responses: Sequence[str], max_length: int, encoding: str):
    """Encodes texts as they are trained on; a list of `Text`.

    encoding="pair": the very encoding in which they are scored. encoding="reference": the authors' single text
    `prompt + " [SEP] " + response`, cut on the right to `max_length`, without token types.
    """
    if encoding == "pair":
        return encode_for_scoring(tokenizer, prompts, responses, max_length, encoding)
    joined = [f"{prompt} [SEP] {response}" for prompt, response in zip(prompts, responses, strict=True)]
    whole = tokenizer(joined, truncation=False, verbose=False)["input_ids"]
    cut = tokenizer(joined, truncation=True, max_length=max_length, verbose=False)["input_ids"]
    return [
        Text(np.asarray(ids, np.int32), np.zeros(len(ids), np.int32), len(full) - len(ids))
        for ids, full in zip(cut, whole, strict=True)
    ]


def _cut_pair(sequence_ids: Sequence[int | None], max_length: int) -> np.ndarray:
    """Positions of the tokens that stay: special ones, the prompt's last and the response's first.

    The prompt keeps at most max_length - 64 tokens (a quarter of max_length where that is more), the response what
    is left. This depends on prompt and response alone, so that chosen and rejected lose by the same rule.
    """
    sequence = np.array([-1 if s is None else s for s in sequence_ids])
    special, prompt, response = (np.flatnonzero(sequence == s) for s in (-1, 0, 1))
    prompt_budget = max(max_length - RESPONSE_TOKENS, max_length // 4)
    prompt = prompt[max(len(prompt) - prompt_budget, 0) :]
    response = response[: max(max_length - len(special) - len(prompt), 0)]
    return np.sort(np.concatenate([special, prompt, response]))


def ladder_length(length: int) -> int:
    """The smallest row length of the ladder that holds `length` tokens; beyond it the next multiple of 128."""
    return next((step for step in LADDER if step >= length), -(-length // 128) * 128)


def pad_batch(texts: Sequence[Text], size: int, length: int) -> TextBatch:
    """Texts as a batch of `[size, length]`, one text a row; rows beyond the last text are copies of the first.

    A copy rather than an empty row: every row then has a token to attend to, and its score is thrown away.
    """
    input_ids, token_type_ids, segment_ids = (np.zeros((size, length), np.int32) for _ in range(3))
    for row in range(size):
        text = texts[row] if row < len(texts) else texts[0]
        input_ids[row, : len(text.input_ids)] = text.input_ids
        token_type_ids[row, : len(text.input_ids)] = text.token_type_ids
        segment_ids[row, : len(text.input_ids)] = 1
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (size, length)) * segment_ids
    rows = np.arange(size, dtype=np.int32)
    return TextBatch(input_ids, token_type_ids, segment_ids, positions, rows, np.zeros(size, np.int32))


class Plan(NamedTuple):
    """One batch of `plan_batches`."""

    indices: np.ndarray  # [S] which texts, longest first
    size: int  # R, rows of the batch; at least S
    length: int  # T


def plan_batches(lengths: Sequence[int], tokens_per_batch: int) -> list[Plan]:
    """Batches of texts of similar lengths, longest first, for scoring.

    The number of rows depends on the row length alone (but for the last batch, whose rows are the next power of two),
    so a few compiled programs serve all texts. Longest first: if memory does not suffice, it is known at once.
    """
    lengths = np.asarray(lengths, np.int64)
    order = np.argsort(-lengths, kind="stable")
    plan, start = [], 0
    while start < len(order):
        length = ladder_length(int(lengths[order[start]]))
        size = max(tokens_per_batch // length, 1)
        size = min(size, 1 << (len(order) - start - 1).bit_length())
        plan.append(Plan(order[start : start + size], size, length))
        start += size
    return plan
