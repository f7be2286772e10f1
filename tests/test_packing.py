"""Packing: every text once and whole, and the model cannot tell."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scpo_jax.data import encoding, packing
from scpo_jax.data.encoding import Text
from scpo_jax.models import module
from tests.test_train_reward import CONFIG

lengths = st.lists(st.integers(1, 200), min_size=1, max_size=40)


def texts_of(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [Text(rng.integers(1, 40, n).astype(np.int32), rng.integers(0, 2, n).astype(np.int32), 0) for n in sizes]


@given(lengths)
def test_every_text_stands_whole_at_its_place(sizes):
    texts = texts_of(sizes)
    batch = packing.pack_batch(texts)
    assert batch.input_ids.shape[1] >= max(128, *sizes) and np.sum(batch.segment_ids > 0) == sum(sizes)
    for text, row, column in zip(texts, batch.rows, batch.columns, strict=True):
        place = row, slice(column, column + len(text.input_ids))
        np.testing.assert_array_equal(batch.input_ids[place], text.input_ids)
        np.testing.assert_array_equal(batch.token_type_ids[place], text.token_type_ids)
        np.testing.assert_array_equal(batch.positions[place], np.arange(len(text.input_ids)))
        segment = batch.segment_ids[row, column]
        assert np.sum(batch.segment_ids[row] == segment) == len(text.input_ids)


@given(lengths)
def test_rows_are_filled_like_first_fit_decreasing_promises(sizes):
    rows = packing.fill_rows(sizes, 256)
    assert sorted(s for row in rows for s in row) == list(range(len(sizes)))
    assert all(sum(sizes[s] for s in row) <= 256 for row in rows)
    assert len(rows) <= 11 / 9 * np.ceil(sum(sizes) / 256) + 1 or len(rows) <= 2 * sum(sizes) / 256 + 1


def test_packed_scores_are_padded_scores():
    model = module.build(CONFIG | {"hidden_dropout_prob": 0.0})
    params = module.init(model, jax.random.key(1))
    texts = texts_of([3, 30, 17, 8, 31, 1, 22, 5])
    padded = model.score(params, encoding.pad_batch(texts, len(texts), 32))
    packed = packing.pack_batch(texts)
    assert len(packed.input_ids) < len(texts)
    np.testing.assert_allclose(model.score(params, packed), padded, rtol=0, atol=1e-5)
    assert np.std(padded) > 0.05
