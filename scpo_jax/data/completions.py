"""Prompts and responses as a language model reads and writes them: from text to token ids and back.

A prompt ends where the response begins, with what the chat template has there ("<|assistant|>"); the response ends with
the end token. The two are tokenized apart, so that in training a response begins as in generation.
"""

from collections.abc import Sequence

import numpy as np

from scpo_jax.data import chat
from scpo_jax.data.encoding import Prompt, Text
from scpo_jax.errors import InputError


def encode_prompts(tokenizer, prompts: Sequence[Prompt], max_length: int) -> list[np.ndarray]:
    """Token ids int32 of prompts; of longer ones the last `max_length` tokens. Raises InputError.

    They begin with the BOS token if the tokenizer puts one before texts, also where they are cut.
    """
    texts = [chat.opening(tokenizer, prompt) for prompt in prompts]
    begin = [tokenizer.bos_token_id] if chat.begins(tokenizer) else []
    encoded = []
    for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        ids = ids[1:] if begin and ids[:1] == begin else ids
        encoded.append(np.array(begin + ids[max(len(ids) - max_length + len(begin), 0) :], np.int32))
    return encoded


def encode(
    tokenizer, prompts: Sequence[Prompt], responses: Sequence[str], max_prompt: int, max_response: int
) -> list[Text]:
    """Prompts and their responses to learn from, token type 1 on what is learnt: the response and the end token.

    A response of more than `max_response` tokens loses its last ones, and the end token with them. Raises InputError.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end token (eos_token): name one in tokenizer_config.json")
    asked = encode_prompts(tokenizer, prompts, max_prompt)
    answers = tokenizer(list(responses), add_special_tokens=False, verbose=False)["input_ids"]
    texts = []
    for prompt, answer in zip(asked, answers, strict=True):
        whole = np.array([*answer, tokenizer.eos_token_id], np.int32)
        kept = whole[:max_response]
        ids, types = np.concatenate([prompt, kept]), np.repeat(np.arange(2, dtype=np.int32), [len(prompt), len(kept)])
        texts.append(Text(ids, types, len(whole) - len(kept)))
    return texts


def decode(tokenizer, tokens: np.ndarray, lengths: np.ndarray, ended: np.ndarray) -> list[str]:
    """The texts of responses `tokens [B, N]` of `lengths [B]`, without the token that `ended [B]` them."""
    kept = [row[: length - end] for row, length, end in zip(tokens, lengths, ended, strict=True)]
    return tokenizer.batch_decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
