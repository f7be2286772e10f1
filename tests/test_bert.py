"""BERT: equal to transformers in every submodule, and a fault in any part moves the scores far more than that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scpo_jax.models import hf, layers
from tests import model_helpers as helpers

pytestmark = pytest.mark.filterwarnings("error:::(jax|flax|scpo_jax|tests).*")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(transformers' model, our model, our parameters) of the same weights."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("bert")
    reference = helpers.torch_model(helpers.BERT)
    reference.save_pretrained(folder)
    return reference, *hf.load(folder)


@pytest.mark.parity
@pytest.mark.parametrize(
    "lengths, length", [([1], None), ([7] * 16, None), ([512] * 2, None), ([7, 1, 20, 40] * 4, 48)]
)
def test_every_submodule_is_as_in_transformers(pair, lengths, length):
    reference, model, params = pair
    scores = helpers.check_parity(model, params, reference, lengths, length)
    assert len(scores) < 16 or scores.std() >= 0.3  # else the comparison would say little


@pytest.mark.parity
def test_packed_texts_are_as_in_transformers_alone(pair):
    reference, model, params = pair
    helpers.check_packed_parity(model, params, reference)


@pytest.mark.parity
def test_hidden_states_of_the_real_minilm(minilm):
    pytest.importorskip("torch")
    import transformers

    model, params = hf.load(minilm, fresh_head_key=jax.random.key(0))
    tokenizer = hf.load_tokenizer(minilm)
    sentences = ["The cat sat.", "¿Qué opina usted de la inmigración en su país?", "A longer text. " * 15]
    encoded = [tokenizer(sentence, "yes.") for sentence in sentences]
    pairs = [(np.asarray(e["input_ids"]), np.asarray(e["token_type_ids"])) for e in encoded]
    reference = transformers.AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    batch = helpers.one_per_row(pairs)
    where = helpers.real(batch)
    ours, theirs = np.asarray(model.hidden_states(params, batch)), helpers.torch_hidden(reference, batch)
    np.testing.assert_allclose(ours[:, where], theirs[:, where], rtol=0, atol=1e-4)


def test_without_biases_scores_move():
    model, params, batch, scores = helpers.scored("bert")
    assert helpers.change_of_scores(model, helpers.without_biases(params), batch, scores) > 1e-3


def test_without_token_types_scores_move():
    model, params, batch, scores = helpers.scored("bert")
    ignored = batch._replace(token_type_ids=jnp.zeros_like(batch.token_type_ids))
    assert helpers.change_of_scores(model, params, ignored, scores) > 1e-3


def test_without_positions_scores_move():
    model, params, batch, scores = helpers.scored("bert")
    ignored = batch._replace(positions=jnp.zeros_like(batch.positions))
    assert helpers.change_of_scores(model, params, ignored, scores) > 1e-3


def test_without_segment_mask_scores_move(monkeypatch):
    model, params, batch, scores = helpers.scored("bert")
    monkeypatch.setattr(layers, "same_segment", lambda ids: jnp.ones(ids.shape + ids.shape[-1:], bool))
    assert helpers.change_of_scores(model, params, batch, scores) > 1e-3


def test_with_uniform_attention_scores_move(monkeypatch):
    model, params, batch, scores = helpers.scored("bert")
    attend = layers.attend
    monkeypatch.setattr(layers, "attend", lambda scores, *rest: attend(0 * scores, *rest))
    assert helpers.change_of_scores(model, params, batch, scores) > 1e-3


def test_no_more_positions_than_the_table_has():
    model, params = helpers.make("bert")
    assert model.max_positions == 512
    batch = helpers.one_per_row(helpers.texts([5]))
    assert np.isnan(jax.jit(model.score)(params, batch._replace(positions=batch.positions + 510))).all()
