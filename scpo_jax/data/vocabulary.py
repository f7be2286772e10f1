"""A WordPiece tokenizer made from the training texts, for models trained from scratch."""

import collections
from collections.abc import Iterable

import tokenizers
import transformers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CAUSAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]", "[system]", "[user]", "[assistant]")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def make_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> transformers.PreTrainedTokenizerBase:
    """A lower-casing tokenizer of the most frequent words, for encoders; any other word falls apart into characters.

    The vocabulary is a pure function of the texts: counted words, ties in alphabetical order (a trained WordPiece or
    BPE vocabulary depends on hash order where counts tie).
    """
    backend = wordpiece(texts, vocab_size, SPECIAL)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    # without being told transformers leaves token types out, and an export would score differently there
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=max_length, model_input_names=inputs, **names_of(SPECIAL)
    )


def make_causal_tokenizer(
    texts: Iterable[str], vocab_size: int, max_length: int
) -> transformers.PreTrainedTokenizerBase:
    """As `make_tokenizer`, for causal models: a beginning, and a chat template whose turns end with the end token."""
    backend = wordpiece(texts, vocab_size, CAUSAL)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[BOS] $A", special_tokens=[("[BOS]", CAUSAL.index("[BOS]"))]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=max_length, model_input_names=["input_ids", "attention_mask"],
        additional_special_tokens=list(CAUSAL[4:]), **names_of(CAUSAL[:4]),
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def names_of(special: Iterable[str]) -> dict[str, str]:
    """Special tokens by their names in transformers, `pad_token`."""
    return {f"{token.strip('[]').lower()}_token": token for token in special}


def wordpiece(texts: Iterable[str], vocab_size: int, special: tuple[str, ...]) -> tokenizers.Tokenizer:
    """The tokenizer of words, without what it puts around a text."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab={"[UNK]": 0}, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    words = collections.Counter()
    for text, times in collections.Counter(texts).items():
        for piece, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)):
            words[piece] += times
    characters = sorted({character for word in words for character in word})
    entries = [*special, *characters, *(f"##{character}" for character in characters)]
    frequent = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    entries += frequent[: max(vocab_size - len(entries), 0)]
    backend.model = tokenizers.models.WordPiece(vocab={entry: i for i, entry in enumerate(entries)}, unk_token="[UNK]")
    backend.decoder = tokenizers.decoders.WordPiece()
    return backend
