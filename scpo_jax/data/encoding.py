"""From (prompt, response) to token ids."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ENCODINGS = ("pair", "reference")
RESPONSE_TOKENS = 64  # what the prompt leaves to the response and the special tokens when a text is too long


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
