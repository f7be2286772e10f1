"""A byte-level tokenizer made from the training texts, for language models trained from scratch: it loses nothing."""

import collections
from collections.abc import Iterable

import tokenizers
import transformers

SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_LIMIT = 2**31 - 1  # of the characters of a word


def make_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> transformers.PreTrainedTokenizerBase:
    """A tokenizer of the most frequent words, each with the space before it; any other falls apart into bytes.

    It loses nothing: the tokens of any text give the very text again. Conversations end with `<|end|>` after the
    assistant's turn. The vocabulary is a pure function of the texts: ties are in alphabetical order.
    """
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab={"<|pad|>": 0}, unk_token="<|pad|>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = collections.Counter()
    for text, times in collections.Counter(texts).items():
        for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text):
            words[piece] += times
    frequent = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    entries = [*SPECIAL, *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    entries += frequent[: max(vocab_size - len(entries), 0)]
    backend.model = tokenizers.models.WordPiece(
        vocab={entry: i for i, entry in enumerate(entries)}, unk_token="<|pad|>", continuing_subword_prefix="",
        max_input_chars_per_word=NO_LIMIT,
    )  # fmt: skip
    backend.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=max_length, model_input_names=["input_ids", "attention_mask"],
        pad_token="<|pad|>", eos_token="<|end|>", additional_special_tokens=list(SPECIAL[2:]),
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer
