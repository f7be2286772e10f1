"""From (prompt, response) to token ids."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scpo_jax.data import chat
from scpo_jax.data.preferences import as_text
from scpo_jax.errors import InputError

Prompt = str | list[dict]  # text, or messages with role and content
ENCODINGS = ("pair", "reference")
RESPONSE_TOKENS = 64  # what the prompt leaves to the response and the special tokens when a text is too long


class Text(NamedTuple):
    """One encoded text."""

    input_ids: np.ndarray  # [T] int32
    token_type_ids: np.ndarray  # [T] int32
    cut: int  # tokens lost to max_length


def form(reads: str, encoding: str) -> str:
    """How texts are encoded for a model that `reads` a text's "first" or "last" token.

    `encoding` is config.model.encoding; causal models read conversations ("chat"). Raises InputError.
    """
    if reads == "first":
        return encoding
    if encoding == "reference":
        raise InputError("config.model.encoding=reference: the authors' formats are those of encoders; use pair")
    return "chat"


def encode_for_scoring(
    tokenizer, prompts: Sequence[Prompt], responses: Sequence[str], max_length: int, encoding: str
) -> list[Text]:
    """Encodes texts as they are scored.

    encoding="pair": the text pair of prompt and response, cut to `max_length` (see `_cut`). "chat": the conversation,
    cut by the same rule. "reference": the authors' pair encoding, not cut at all. Raises InputError.
    """
    if encoding == "chat":
        return _conversations(tokenizer, prompts, responses, max_length)
    prompts = [as_text(prompt) for prompt in prompts]
    options = {"return_token_type_ids": True, "return_attention_mask": False, "verbose": False}
    output = tokenizer(prompts, list(responses), truncation=False, **options)
    texts = []
    for i, (ids, types) in enumerate(zip(output["input_ids"], output["token_type_ids"], strict=True)):
        text = Text(np.array(ids, np.int32), np.array(types, np.int32), 0)
        if encoding == "pair" and len(ids) > max_length:
            kept = _cut(output.sequence_ids(i), max_length)
            text = Text(text.input_ids[kept], text.token_type_ids[kept], len(ids) - len(kept))
        texts.append(text)
    return texts


def encode_for_training(
    tokenizer, prompts: Sequence[Prompt], responses: Sequence[str], max_length: int, encoding: str
) -> list[Text]:
    """Encodes texts as they are trained on.

    encoding="reference": the authors' single text `prompt + " [SEP] " + response`, cut on the right to `max_length`,
    without token types. Any other: the very encoding in which they are scored.
    """
    if encoding != "reference":
        return encode_for_scoring(tokenizer, prompts, responses, max_length, encoding)
    joined = [f"{as_text(prompt)} [SEP] {response}" for prompt, response in zip(prompts, responses, strict=True)]
    whole = tokenizer(joined, truncation=False, verbose=False)["input_ids"]
    cut = tokenizer(joined, truncation=True, max_length=max_length, verbose=False)["input_ids"]
    return [
        Text(np.asarray(ids, np.int32), np.zeros(len(ids), np.int32), len(full) - len(ids))
        for ids, full in zip(cut, whole, strict=True)
    ]


def _conversations(tokenizer, prompts: Sequence[Prompt], responses: Sequence[str], max_length: int) -> list[Text]:
    """Conversations with one BOS token if the tokenizer has it begin texts, and an end token after the response.

    Where a text is cut these two stay, and what else the template writes after the response; the prompt loses first
    what the template writes before it.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end token (eos_token): name one in tokenizer_config.json")
    rendered = [chat.render(tokenizer, *pair) for pair in zip(prompts, responses, strict=True)]
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    output = tokenizer([text for text, _, _ in rendered], **options)
    special, begins, texts = chat.special_ids(tokenizer), chat.begins(tokenizer), []
    for ids, offsets, (_, start, end) in zip(output["input_ids"], output["offset_mapping"], rendered, strict=True):
        parts = [None if first >= end else int(first >= start) for first, _ in offsets]
        if special.isdisjoint(number for number, part in zip(ids, parts, strict=True) if part is None):
            ids, parts = ids + [tokenizer.eos_token_id], parts + [None]
        if ids[0] == tokenizer.bos_token_id:
            parts[0] = None
        elif begins:
            ids, parts = [tokenizer.bos_token_id, *ids], [None, *parts]
        kept = _cut(parts, max_length) if len(ids) > max_length else np.arange(len(ids))
        texts.append(Text(np.asarray(ids, np.int32)[kept], np.zeros(len(kept), np.int32), len(ids) - len(kept)))
    return texts


def _cut(sequence_ids: Sequence[int | None], max_length: int) -> np.ndarray:
    """Positions of the tokens that stay: special ones, the prompt's last and the response's first.

    `sequence_ids` are 0 for the prompt, 1 for the response, None for special tokens. The prompt keeps at most
    max_length - 64 tokens (a quarter of max_length where that is more), the response what is left. This depends on
    prompt and response alone, so that chosen and rejected lose by the same rule.
    """
    sequence = np.array([-1 if s is None else s for s in sequence_ids])
    special, prompt, response = (np.flatnonzero(sequence == s) for s in (-1, 0, 1))
    prompt_budget = min(max(max_length - RESPONSE_TOKENS, max_length // 4), max_length - len(special))
    prompt = prompt[max(len(prompt) - prompt_budget, 0) :]
    response = response[: max(max_length - len(special) - len(prompt), 0)]
    return np.sort(np.concatenate([special, prompt, response]))
