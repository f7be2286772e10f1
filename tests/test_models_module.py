"""What holds for every family: a score depends on its text alone, dropout on the key alone, init, types, axes."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_jax.errors import InputError
from scpo_jax.models import layers, module
from tests import model_helpers as helpers

pytestmark = pytest.mark.filterwarnings("error:::(jax|flax|scpo_jax|tests).*")
families = pytest.mark.parametrize("name", ["bert", "v3", "llama31"])


@functools.cache
def jitted(name):
    return jax.jit(helpers.make(name)[0].score)


def score(name, batch, params=None):
    return np.asarray(jitted(name)(helpers.make(name)[1] if params is None else params, batch))


@families
def test_score_depends_on_its_text_alone(name):
    texts = helpers.texts(np.random.default_rng(0).integers(1, 33, 64))
    together = score(name, helpers.one_per_row(texts, 32))
    assert together.std() >= 0.3
    order = np.random.default_rng(1).permutation(64)
    shuffled = score(name, helpers.one_per_row([texts[i] for i in order], 32))
    threes = [score(name, helpers.one_per_row(texts[i : i + 3], 32)) for i in range(0, 30, 3)]
    ones = [score(name, helpers.one_per_row(texts[i : i + 1], 48)) for i in range(10)]
    np.testing.assert_allclose(shuffled, together[order], rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(threes), together[:30], rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(ones), together[:10], rtol=0, atol=1e-5)


@families
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_score_does_not_depend_on_packing(name, data):
    """Texts anywhere in 4 rows, with gaps, beside others."""
    texts = helpers.texts(np.arange(1, 9) * 2, seed=3)
    places, free = [None] * 8, [0] * 4
    for text in data.draw(st.permutations(range(8))):
        length = len(texts[text][0])
        row = data.draw(st.sampled_from([row for row in range(4) if free[row] + length <= 48]))
        column = data.draw(st.integers(free[row], min(free[row] + 3, 48 - length)))
        places[text], free[row] = (row, column), column + length
    packed = helpers.pack([texts[i] for i in by_column(places)], 4, 48, [places[i] for i in by_column(places)])
    alone = score(name, helpers.one_per_row(texts, 16))
    np.testing.assert_allclose(score(name, packed), alone[by_column(places)], rtol=0, atol=1e-5)


def by_column(places):
    return sorted(range(len(places)), key=lambda i: places[i])


@families
def test_padding_reaches_no_gradient(name):
    """Also with a row of nothing but padding, gradients are finite, whatever stands in the padding."""
    model, params = helpers.make(name)
    clean = helpers.pack(helpers.texts([5, 9]), 3, 12, [(0, 0), (1, 0)])
    ids = np.random.default_rng(0).integers(1, helpers.VOCABULARY, clean.input_ids.shape)
    dirty = clean._replace(input_ids=jnp.where(helpers.real(clean), clean.input_ids, ids))
    gradient = jax.jit(jax.grad(lambda params, batch: model.score(params, batch).sum()))
    ours, others = gradient(params, clean), gradient(params, dirty)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ours))
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(ours["layers"]["feed_forward"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), ours, others)


def test_remat_changes_no_gradient():
    model, params = helpers.make("bert")
    batch = helpers.one_per_row(helpers.texts([5, 9]))
    gradients = [
        jax.jit(jax.grad(lambda params, remat=remat: model.score(params, batch, remat=remat).sum()))(params)
        for remat in (False, True)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), *gradients)


@families
def test_remat_recomputes_the_layers(name):
    model, params = helpers.make(name)
    batch = helpers.one_per_row(helpers.texts([5, 9]))
    for remat in (False, True):
        gradient = jax.grad(lambda params, remat=remat: model.score(params, batch, remat=remat).sum())
        assert ("remat" in str(jax.make_jaxpr(gradient)(params))) == remat


@families
def test_the_last_layer_computes_what_is_read(name):
    """The score is that of the whole hidden states; a model of one layer needs less than half of their products."""
    texts = helpers.texts([5, 9, 7, 12])
    batch = helpers.pack(texts, 2, 32, [(0, 1), (0, 8), (1, 0), (1, 20)])
    model, params = helpers.make(name)
    network = nnx.merge(model.graphdef, params)
    hidden = model.hidden_states(params, batch)[-1]
    whole = network.score(network.pool(hidden[tuple(model.places(batch))]))[:, 0]
    np.testing.assert_allclose(score(name, batch), whole, rtol=0, atol=1e-5)
    model = module.build(helpers.CONFIGS[name] | {"num_hidden_layers": 1})
    params = module.init(model, jax.random.key(0))
    flops, all_flops = (
        jax.jit(function).lower(params, batch).compile().cost_analysis()["flops"]
        for function in (model.score, model.hidden_states)
    )
    assert flops < 0.5 * all_flops


@families
def test_models_are_stacked_by_vmap(name):
    model, params = helpers.make(name)
    others = helpers.informative_params(model, seed=1)
    batches = [helpers.one_per_row(helpers.texts([5, 9], seed)) for seed in (0, 1)]
    stacked_params, stacked_batches = (
        jax.tree.map(lambda *x: jnp.stack(x), *two) for two in ((params, others), batches)
    )
    both = jax.jit(jax.vmap(model.score))(stacked_params, stacked_batches)
    for group, (own, batch) in enumerate(zip((params, others), batches, strict=True)):
        np.testing.assert_allclose(both[group], score(name, batch, own), rtol=0, atol=1e-5)


@families
def test_scores_are_float32_in_bfloat16_too(name):
    model, params = helpers.make(name)
    batch = helpers.one_per_row(helpers.texts([8] * 16))
    narrow = jax.jit(functools.partial(model.score, dtype="bfloat16"))(params, batch)
    assert narrow.dtype == jnp.float32 and narrow.shape == (16,)
    hidden = jax.eval_shape(lambda params: model.hidden_states(params, batch, "bfloat16"), params)
    assert hidden.dtype == jnp.bfloat16 and hidden.shape == (3, 16, 8, model.width)
    difference = np.abs(narrow - score(name, batch))
    assert 0 < difference.max() < 0.2


SITES = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
    "v2": ("hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout", "cls_dropout"),
}


@pytest.mark.parametrize("name, site", [(name, site) for name, sites in SITES.items() for site in sites])
def test_dropout_follows_its_key_alone(name, site):
    config = helpers.CONFIGS[name] | dict.fromkeys(SITES[name], 0.0) | {site: 0.3}
    model, params = module.build(config), helpers.make(name)[1]
    batch = helpers.one_per_row(helpers.texts([8, 8]))
    draw = jax.jit(model.score)
    keyed = [np.asarray(draw(params, batch, jax.random.key(seed))) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(keyed[0], keyed[1])
    assert (np.abs(keyed[0] - keyed[2]) > 1e-3).all()


@pytest.mark.parametrize("name", SITES)
def test_without_a_key_there_is_no_dropout(name):
    config = helpers.CONFIGS[name] | dict.fromkeys(SITES[name], 0.0)
    batch = helpers.one_per_row(helpers.texts([8, 8]))
    no_rates = jax.jit(module.build(config).score)(helpers.make(name)[1], batch, jax.random.key(0))
    np.testing.assert_allclose(score(name, batch), no_rates, rtol=0, atol=1e-5)


def test_dropout_keeps_the_mean():
    dropped = layers.dropout(jnp.ones(100_000), 0.3, jax.random.key(0))
    np.testing.assert_allclose([dropped.mean(), (dropped == 0).mean()], [1, 0.3], atol=0.01)
    np.testing.assert_allclose(dropped.max(), 1 / 0.7, rtol=1e-6)


@pytest.mark.parametrize("name", ["v3"])
def test_init_draws_as_transformers(name):
    model, _ = helpers.make(name)
    params = module.init(model, jax.random.key(0))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(
        lambda a: (a.shape, a.dtype), module.abstract_params(model)
    )
    kernel = params["layers"]["attention"]["query"]["kernel"]
    assert kernel.shape == (2, 64, 64) and not np.allclose(kernel[0], kernel[1])
    assert not np.allclose(kernel, params["layers"]["attention"]["key"]["kernel"])
    np.testing.assert_allclose([kernel.mean(), kernel.std()], [0, 0.02], atol=1e-3)
    np.testing.assert_array_equal(params["embeddings"]["word"]["embedding"][0], 0)
    np.testing.assert_array_equal(params["layers"]["attention"]["norm"]["scale"], 1)
    np.testing.assert_array_equal(params["score"]["bias"], 0)
    assert params["score"]["kernel"].shape == (64, 1)


def test_building_allocates_nothing():
    giant = helpers.BERT | {"vocab_size": 2**24, "hidden_size": 2**18}  # 16 TB of embeddings
    assert module.abstract_params(module.build(giant))["embeddings"]["word"]["embedding"].shape == (2**24, 2**18)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("bert", {"model_type": "gpt2"}, "unknown model family 'gpt2'.*known: bert, deberta-v2"),
        ("bert", {"model_type": None}, "unknown model family None"),
        ("bert", {"model_type": ["bert"]}, "unknown model family"),
        ("bert", {"hidden_size": "64"}, "hidden_size is '64'"),
        ("bert", {"hidden_size": 66}, "not a multiple of num_attention_heads 4"),
        ("bert", {"num_hidden_layers": 0}, "num_hidden_layers 0"),
        ("bert", {"hidden_act": "mish"}, "hidden_act 'mish'"),
        ("bert", {"position_embedding_type": "relative_key"}, "relative_key"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("v3", {"conv_kernel_size": 3}, "conv_kernel_size 3"),
        ("v3", {"pos_att_type": "p2c|p2p"}, "p2p"),
        ("v3", {"norm_rel_ebd": "batch_norm"}, "batch_norm"),
        ("v3", {"position_buckets": 2000}, "position_buckets 2000"),
        ("v3", {"pooler_hidden_act": "mish"}, "pooler_hidden_act 'mish'"),
        ("llama31", {"num_key_value_heads": 3}, "4 heads of queries and 3 of keys"),
        ("llama31", {"head_dim": 15}, "head_dim 15"),
        ("llama31", {"attention_dropout": 0.1}, "attention_dropout 0.1"),
        ("llama31", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear'"),
        ("llama31", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor None"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differ between layers"),
        ("qwen2", {"use_sliding_window": True}, "sliding windows"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding windows"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_line(name, change, message):
    with pytest.raises(InputError, match=f"^here: .*{message}") as caught:
        module.build(helpers.CONFIGS[name] | change, "here")
    assert "\n" not in str(caught.value)


def test_omitted_keys_have_the_defaults_of_transformers():
    transformers = pytest.importorskip("transformers")
    for family, ours in module.FAMILIES.items():
        theirs = transformers.AutoConfig.for_model(family).to_dict()
        defaults = vars(ours.Settings())
        if hasattr(ours.Settings(), "rope"):  # theirs are derived already
            own = ours.Settings()
            derived = {"head_dim": own.head_size, "num_key_value_heads": own.key_heads, "rope_parameters": own.rope}
            defaults = defaults | derived | {"layer_types": ["full_attention"] * 32}
        shared = defaults.keys() & theirs.keys()
        assert len(shared) >= 14
        assert {name: defaults[name] for name in shared} == {name: theirs[name] for name in shared}


def test_nnx_tree_mode():
    """NNX is moving to trees: modules that keep random state or share parts would fail there."""
    script = (
        "import jax\nfrom scpo_jax.models import module\nfrom tests import model_helpers as helpers\n"
        "for name in ('bert', 'v3', 'qwen3'):\n"
        "    model, params = helpers.make(name)\n"
        "    run = lambda params: model.score(params, helpers.one_per_row(helpers.texts([7])), jax.random.key(0))\n"
        "    print(jax.eval_shape(jax.grad(lambda params: run(params).sum()), params)['score']['kernel'].shape)\n"
    )
    root = os.path.dirname(os.path.dirname(helpers.__file__))
    environment = os.environ | {"NNX_GRAPH_MODE": "false", "NNX_GRAPH_UPDATES": "false", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.split("\n")[:-1] == ["(64, 1)", "(64, 1)", "(32, 1)"], done.stderr
