"""DeBERTa v2 and v3: equal to transformers in every submodule, and a fault in any part moves the scores."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scpo_jax.models import hf, layers, relative
from scpo_jax.models.module import TextBatch
from tests import model_helpers as helpers

pytestmark = pytest.mark.filterwarnings("error:::(jax|flax|scpo_jax|tests).*")
MIXED = ([7, 1, 20, 40] * 4, 48)  # lengths, and what they are padded to
ALONE = [([1], None), ([7] * 16, None), ([512] * 2, None)]
FORMS = [name for name, config in helpers.CONFIGS.items() if config["model_type"] == "deberta-v2"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Name of a form -> (transformers' model, our model, our parameters) of the same weights, made when first asked."""
    pytest.importorskip("torch")

    @functools.cache
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        reference = helpers.torch_model(helpers.CONFIGS[name])
        reference.save_pretrained(folder)
        return reference, *hf.load(folder)

    return make


@pytest.mark.parity
@pytest.mark.parametrize(
    "form, case", [(form, MIXED) for form in FORMS] + [(form, case) for form in ("v2", "v3") for case in ALONE]
)
def test_every_submodule_is_as_in_transformers(pairs, form, case):
    reference, model, params = pairs(form)
    scores = helpers.check_parity(model, params, reference, *case)
    assert len(scores) < 16 or scores.std() >= 0.3  # else the comparison would say little


@pytest.mark.parity
@pytest.mark.parametrize("form", ["v2", "v3"])
def test_packed_texts_are_as_in_transformers_alone(pairs, form):
    reference, model, params = pairs(form)
    helpers.check_packed_parity(model, params, reference)


@pytest.mark.parity
@pytest.mark.parametrize("buckets, largest", [(16, 512), (256, 512), (32, 128), (64, 2048)])
def test_buckets_are_those_of_transformers(buckets, largest):
    torch = pytest.importorskip("torch")
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distance = np.arange(-3000, 3001)
    theirs = make_log_bucket_position(torch.from_numpy(distance), buckets, largest)
    np.testing.assert_array_equal(relative.bucket(distance, buckets, largest), theirs.numpy())


def test_buckets_are_those_of_the_reference(shared):
    expected = json.loads((shared / "reference/expected/rel_buckets.json").read_text())
    starts, buckets = np.transpose(expected["first_distance_and_bucket"])
    distance = np.arange(expected["largest_distance_listed"] + 1)
    wanted = buckets[np.searchsorted(starts, distance, side="right") - 1]
    found = relative.bucket(distance, expected["position_buckets"], expected["max_position"])
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(relative.bucket(-distance, 16, 512), -wanted)


@pytest.mark.parametrize("buckets", [-1, 8])
def test_relative_terms_against_plain_loops(buckets):
    """Equation 4 of arXiv 2006.03654, entry by entry, also for distances beyond the table."""
    length, span, heads, size = 12, 8, 2, 3
    generator = np.random.default_rng(0)
    query, keys = generator.standard_normal((2, 1, length, heads, size)).astype(np.float32)
    table_key, table_query = generator.standard_normal((2, 2 * span, heads, size)).astype(np.float32)
    first, end, index = relative.table_rows(length, span, buckets, 16)
    ours = relative.attention_bias(query, keys, table_key[first:end], table_query[first:end], index)
    for q in range(length):
        for k in range(length):
            distance = q - k if buckets < 0 else int(relative.bucket(np.array(q - k), buckets, 16))
            row = min(max(distance + span, 0), 2 * span - 1)
            expected = (query[0, q] * table_key[row]).sum(-1) + (keys[0, k] * table_query[row]).sum(-1)
            np.testing.assert_allclose(ours[0, :, q, k], expected, rtol=0, atol=1e-5)


def test_rewards_of_the_reference_model(shared):
    model, params = hf.load(shared / "reference/model")
    tokenizer = hf.load_tokenizer(shared / "reference/model")
    expected = json.loads((shared / "reference/expected/ref_rewards.json").read_text())
    with open(shared / "reference/prism_like/utterances.jsonl", encoding="utf-8") as file:
        rows = {row["utterance_id"]: row for row in map(json.loads, file)}
    chosen = [*list(expected["rewards"])[:16], *expected["overlong"]]
    encoded = [tokenizer(rows[name]["user_prompt"], rows[name]["model_response"])["input_ids"] for name in chosen]
    assert max(map(len, encoded)) > 512
    for names, ids in ((chosen[:16], encoded[:16]), (chosen[16:], encoded[16:])):
        batch = helpers.one_per_row([(np.asarray(i), np.zeros(len(i), int)) for i in ids])
        wanted = [expected["rewards"][name] for name in names]
        np.testing.assert_allclose(jax.jit(model.score)(params, batch), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["v2", "v3"])
@pytest.mark.parametrize("term", ["c2p", "p2c"])
def test_without_a_relative_term_scores_move(monkeypatch, name, term):
    model, params, batch, scores = helpers.scored(name)
    bias = relative.attention_bias
    dropped = (
        (lambda query, keys, position_key, position_query, index: bias(query, keys, None, position_query, index))
        if term == "c2p"
        else (lambda query, keys, position_key, position_query, index: bias(query, keys, position_key, None, index))
    )
    monkeypatch.setattr(relative, "attention_bias", dropped)
    assert helpers.change_of_scores(model, params, batch, scores) > 1e-3


def test_with_a_reversed_relative_table_scores_move():
    model, params, batch, scores = helpers.scored("v3")
    table = params["relative"]["embedding"]
    assert helpers.change_of_scores(model, params | {"relative": {"embedding": table[::-1]}}, batch, scores) > 1e-3


def test_with_uniform_attention_scores_move(monkeypatch):
    model, params, batch, scores = helpers.scored("v3")
    attend = layers.attend
    monkeypatch.setattr(layers, "attend", lambda scores, *rest: attend(0 * scores, *rest))
    assert helpers.change_of_scores(model, params, batch, scores) > 1e-3


def test_without_biases_scores_move():
    model, params, batch, scores = helpers.scored("v3")
    assert helpers.change_of_scores(model, helpers.without_biases(params), batch, scores) > 1e-3


def test_without_segment_mask_scores_move(monkeypatch):
    model, params, batch, scores = helpers.scored("v3")
    monkeypatch.setattr(layers, "same_segment", lambda ids: jnp.ones(ids.shape + ids.shape[-1:], bool))
    assert helpers.change_of_scores(model, params, batch, scores) > 1e-3


def test_without_token_types_scores_move():
    model, params, batch, scores = helpers.scored("v2")
    ignored = batch._replace(token_type_ids=jnp.zeros_like(batch.token_type_ids))
    assert helpers.change_of_scores(model, params, ignored, scores) > 1e-3


def test_token_types_mean_nothing_without_a_table_of_them():
    model, params, batch, scores = helpers.scored("v3")
    other = TextBatch(*batch)._replace(token_type_ids=1 - batch.token_type_ids)
    np.testing.assert_array_equal(jax.jit(model.score)(params, other), scores)


def test_only_biased_input_limits_the_length():
    assert helpers.make("v2")[0].max_positions == 512
    assert helpers.make("v3")[0].max_positions is None
