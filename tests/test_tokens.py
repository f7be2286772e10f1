"""Texts on disk as tokens: what is read is what was encoded."""

import ml_collections
import numpy as np
import pytest

from scpo_jax import tokens
from scpo_jax.data import vocabulary
from scpo_jax.workdir import Workdir

ROWS = [
    {"prompt": "user: how are you?", "chosen": "well, thank you", "rejected": ""},
    {"prompt": "user: ¿qué tal? 你好", "chosen": "well, thank you", "rejected": "word " * 60},
    {"prompt": "user: how are you?", "chosen": "well, thank you", "rejected": "bad"},
]


@pytest.mark.parametrize("encoding", ["pair", "reference"])
def test_what_is_read_is_what_was_encoded(encoding, tmp_path):
    config = ml_collections.ConfigDict({"model": {"max_length": 32, "encoding": encoding}})
    tokenizer = vocabulary.make_tokenizer([text for row in ROWS for text in row.values()], 200, 32)
    workdir, texts = Workdir(tmp_path), tokens.texts_of(ROWS)
    assert len(texts) == 5  # one comes twice
    tokens.write(workdir, tokens.encode_all(config, tokenizer, "first", ROWS))
    files = {"pair": ["tokens.parquet"], "reference": ["tokens.parquet", "tokens_scored.parquet"]}[encoding]
    assert sorted(path.name for path in workdir.data.iterdir()) == files
    for training in (True, False):
        wanted = tokens.encode(config, tokenizer, "first", texts, training)
        read = tokens.read(config, workdir, list(texts)[::-1], training)
        assert list(read) == list(texts)[::-1]
        for key, text in wanted.items():
            for name in ("input_ids", "token_type_ids"):
                np.testing.assert_array_equal(getattr(read[key], name), getattr(text, name))
                assert getattr(read[key], name).dtype == np.int32
            assert read[key].cut == text.cut
    assert max(text.cut for text in tokens.read(config, workdir, texts, training=True).values()) > 0
