"""Scoring: every distinct text once; a text's score is its own, whatever else is scored with it."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from scpo_jax import score, sharding
from scpo_jax.data.encoding import Text
from scpo_jax.errors import InputError
from scpo_jax.models import module
from tests import model_helpers


@pytest.fixture(scope="module")
def model():
    model, params = model_helpers.make("bert")
    return model, params, score.score_function(model, "float32")


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    lengths = [1, 7, 16, 17, 40, 64, 7, 30, 100, 3]
    ids = [rng.integers(1, model_helpers.VOCABULARY, n).astype(np.int32) for n in lengths]
    return [Text(i, (np.arange(len(i)) > len(i) // 2).astype(np.int32), 0) for i in ids]


def scores(model, texts, tokens_per_batch=None):
    found = np.full(len(texts), np.nan, np.float32)
    for indices, values in score.score_batches(model[2], model[1], texts, tokens_per_batch):
        found[indices] = values
    return found


def test_scores_are_of_the_text_alone(model, texts):
    alone = np.concatenate([scores(model, [text]) for text in texts])
    assert alone.std() > 0.3
    order = np.random.default_rng(1).permutation(len(texts))
    for tokens in (1, 3 * 64, 64 * 64, score.TOKENS_PER_BATCH):
        np.testing.assert_allclose(scores(model, texts, tokens), alone, rtol=0, atol=1e-5)
        np.testing.assert_allclose(scores(model, [texts[i] for i in order], tokens), alone[order], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(score.score_texts(model[2], model[1], texts), scores(model, texts))


def test_no_text_no_score(model):
    assert score.score_texts(model[2], model[1], []).shape == (0,)


def test_a_shape_is_compiled_once_for_all_models_of_one_structure(model, texts):
    again, other = (module.build(model_helpers.CONFIGS[name]) for name in ("bert", "v3"))
    assert again is not model[0] and score.score_function(again, "float32") is model[2]
    assert score.score_function(again, "bfloat16") is not model[2]
    assert score.score_function(other, "float32") is not model[2]
    scores(model, texts)
    compiled = model[2].compiled._cache_size()
    score.score_texts(score.score_function(again, "float32"), model[1], texts)
    assert model[2].compiled._cache_size() == compiled > 0
    everywhere = NamedSharding(sharding.make_mesh(1, 1, 1, jax.devices()[:1]), PartitionSpec())
    for params in (jax.tree.map(np.asarray, model[1]), jax.device_put(model[1], everywhere)):
        score.score_texts(model[2], params, texts)
    assert model[2].compiled._cache_size() == compiled


def test_keys_tell_texts_apart():
    keys = [score.text_key(*text) for text in (("a", "b"), ("ab", ""), ("", "ab"), ("a", "b "), ("1:a", "b"))]
    assert len(set(keys)) == 5 and all(len(key) == 32 for key in keys)


def test_distinct_texts_in_order():
    columns = (["p", "q", "p"], ["a", "b", "a"]), (["p", "q"], ["b", "b"])
    assert list(score.distinct_texts(*columns).values()) == [("p", "a"), ("q", "b"), ("p", "b")]


def test_texts_beyond_the_positions_are_refused(model):
    text = Text(np.ones(513, np.int32), np.zeros(513, np.int32), 1)
    with pytest.raises(InputError, match="a text has 513 tokens but the model takes 512"):
        score.check_length([text], model[0])
    score.check_length([], model[0])
