"""A WordPiece tokenizer made from the training texts, for encoders trained from scratch."""

import collections
from collections.abc import Iterable

import tokenizers
import transformers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> transformers.PreTrainedTokenizerBase:
    """A lower-casing tokenizer of the most frequent words; any other word falls apart into characters.

    The vocabulary is a pure function of the texts: counted words, ties in alphabetical order (a trained WordPiece or
    BPE vocabulary depends on hash order where counts tie).
    """
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab={"[UNK]": 0}, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    words = collections.Counter()
    for text, times in collections.Counter(texts).items():
        for piece, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)):
            words[piece] += times
    characters = sorted({character for word in words for character in word})
    entries = [*SPECIAL, *characters, *(f"##{character}" for character in characters)]
    frequent = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    entries += frequent[: max(vocab_size - len(entries), 0)]
    backend.model = tokenizers.models.WordPiece(vocab={entry: i for i, entry in enumerate(entries)}, unk_token="[UNK]")
    backend.decoder = tokenizers.decoders.WordPiece()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    names = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL}
    # without being told transformers leaves token types out, and an export would score differently there
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=max_length, model_input_names=inputs, **names
    )
