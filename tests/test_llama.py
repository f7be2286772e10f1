"""Llama, Qwen2 and Qwen3: equal to transformers in every submodule, and a fault in any part moves the scores."""

import dataclasses
import functools
import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from scpo_jax.errors import InputError
from scpo_jax.models import hf, language, layers, llama, module, rotary
from tests import model_helpers as helpers

pytestmark = pytest.mark.filterwarnings("error:::(jax|flax|scpo_jax|tests).*")
FORMS = [name for name, config in helpers.CONFIGS.items() if config["model_type"] in ("llama", "qwen2", "qwen3")]
MIXED = ([7, 1, 20, 40] * 4, 48)  # lengths, and what they are padded to
ALONE = [([1], None), ([512] * 2, None)]
# What transformers gave for `texts([6, 11, 3])` and the `informative_params` of each form.
GOLDEN = {
    "llama31": [0.491411, -0.851153, -0.373076],
    "qwen2": [0.225026, -1.397424, 0.552133],
    "qwen3": [-1.15815, -3.286328, 0.14087],
}


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
@pytest.mark.parametrize("form, case", [(form, MIXED) for form in FORMS] + [("llama31", case) for case in ALONE])
def test_every_submodule_is_as_in_transformers(pairs, form, case):
    reference, model, params = pairs(form)
    scores = helpers.check_parity(model, params, reference, *case)
    assert len(scores) < 16 or scores.std() >= 0.3  # else the comparison would say little


@pytest.mark.parity
@pytest.mark.parametrize("form", ["llama31", "qwen3"])
def test_packed_texts_are_as_in_transformers_alone(pairs, form):
    reference, model, params = pairs(form)
    helpers.check_packed_parity(model, params, reference)


@pytest.mark.parametrize("form", GOLDEN)
def test_scores_of_transformers(form):
    """Without torch: the packed scores are those that transformers gave once."""
    model, params = helpers.make(form)
    batch = helpers.pack(helpers.texts([6, 11, 3]), 2, 20, [(0, 1), (0, 8), (1, 0)])
    np.testing.assert_allclose(jax.jit(model.score)(params, batch), GOLDEN[form], rtol=0, atol=1e-5)


@pytest.mark.parity
def test_frequencies_of_llama_3_1():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 8192}
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](transformers.LlamaConfig(rope_theta=5e5, rope_scaling=scaling), "cpu")
    ours = rotary.frequencies(128, rotary.parameters(5e5, scaling, None, 131072))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)
    unscaled = rotary.frequencies(128, rotary.parameters(5e5, None, None, 131072))
    assert ours[:20] == unscaled[:20] and ours[-1] == pytest.approx(unscaled[-1] / 8)


def rebuilt(form, change):
    """A model of another config."""
    return module.build(helpers.CONFIGS[form] | change)


def without_head_norms(params):
    """Qwen3's parameters as a Llama has them."""
    flat = flax.traverse_util.flatten_dict(params)
    return flax.traverse_util.unflatten_dict({k: v for k, v in flat.items() if k[-2] not in ("query_norm", "key_norm")})


FAULTS = {
    "no rope scaling": ("llama31", lambda m, p: (rebuilt("llama31", {"rope_scaling": None}), p)),
    "another theta": ("qwen3", lambda m, p: (rebuilt("qwen3", {"rope_theta": 1e4}), p)),
    "no norm of heads": ("qwen3", lambda m, p: (rebuilt("qwen3", {"model_type": "llama"}), without_head_norms(p))),
    "no biases": ("qwen2", lambda m, p: (m, helpers.without_biases(p))),
    "read at the first token": ("llama31", lambda m, p: (dataclasses.replace(m, reads="first"), p)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_with_a_fault_scores_move(fault):
    form, plant = FAULTS[fault]
    model, params, batch, scores = helpers.scored(form)
    assert helpers.change_of_scores(*plant(model, params), batch, scores) > 1e-3


def heads_in_turns(query, keys, value, mask):
    """Attention in which head h of the queries has head h modulo H' of the keys."""
    times = query.shape[2] // keys.shape[2]
    return jax.nn.dot_product_attention(query, jnp.tile(keys, (1, 1, times, 1)), jnp.tile(value, (1, 1, times, 1)),
                                        mask=mask[:, None])  # fmt: skip


@pytest.mark.parametrize(
    "owner, name, faulty",
    [
        (llama, "attend", heads_in_turns),
        (layers, "earlier_in_segment", layers.same_segment),
        (rotary, "rotate", lambda x, cosines, sines: x),
        (rotary, "tables", lambda positions, own: rotary_tables(jnp.ones_like(positions), own)),
    ],
)
def test_with_a_fault_in_attention_scores_move(monkeypatch, owner, name, faulty):
    model, params, batch, scores = helpers.scored("llama31")
    monkeypatch.setattr(owner, name, faulty)
    assert helpers.change_of_scores(model, params, batch, scores) > 1e-3


rotary_tables = rotary.tables


def test_without_segment_mask_the_second_text_of_a_row_moves(monkeypatch):
    model, params, batch, scores = helpers.scored("llama31")
    monkeypatch.setattr(layers, "same_segment", lambda ids: jnp.ones(ids.shape + ids.shape[-1:], bool))
    faulty = np.abs(np.asarray(jax.jit(lambda params, batch: model.score(params, batch))(params, batch)) - scores)
    assert faulty[1::2].min() > 1e-3 and faulty[::2].max() < 1e-5  # the first one sees no later columns


def test_the_last_token_is_found_by_its_segment():
    """Whatever ids a text has, and also where it is not the last one in its row."""
    batch = helpers.pack(helpers.texts([6, 11, 3]), 2, 20, [(0, 1), (0, 8), (1, 0)])
    batch = batch._replace(input_ids=jnp.zeros_like(batch.input_ids))
    places = helpers.make("llama")[0].places(batch)
    assert places.rows.tolist() == [0, 0, 1] and places.columns.tolist() == [6, 18, 2]


def test_a_text_does_not_see_what_comes_later():
    model, params = helpers.make("qwen3")
    batch = helpers.one_per_row(helpers.texts([12]))
    other = batch._replace(input_ids=batch.input_ids.at[:, 8:].set(batch.input_ids[:, 8:] % 119 + 1))
    hidden = [np.asarray(model.hidden_states(params, b)) for b in (batch, other)]
    np.testing.assert_array_equal(hidden[0][:, :, :8], hidden[1][:, :, :8])
    assert np.abs(hidden[0] - hidden[1])[1:, :, 8:].max(-1).min() > 1e-3


@pytest.mark.parametrize("version", [4, 5])
def test_rope_parameters_are_read_and_written_in_both_forms(version, tmp_path):
    scaling = helpers.LLAMA31["rope_scaling"]
    both = {"rope_theta": 5e5, "rope_scaling": scaling}, {"rope_parameters": scaling | {"rope_theta": 5e5}}
    stated = both[version - 4]
    config = {name: value for name, value in helpers.LLAMA31.items() if not name.startswith("rope")} | stated
    model = module.build(config)
    hf.save(model, helpers.make("llama31")[1], tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_theta"] == 5e5 and written["rope_scaling"] == scaling
    assert written["rope_parameters"] == scaling | {"rope_theta": 5e5}
    assert module.read_settings(written, "").rope == module.read_settings(config, "").rope
    transformers = pytest.importorskip("transformers")
    assert transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters == written["rope_parameters"]


def read(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def test_checkpoints_of_language_models_and_bare_ones(tmp_path):
    """A head is needed or asked for; the language model's head and buffers are ignored, prefixes may be missing."""
    _, params = helpers.make("qwen2")
    hf.save(*helpers.make("qwen2"), tmp_path)
    tensors = read(tmp_path)
    head = tensors.pop("score.weight")
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    more = ("lm_head.weight", "model.rotary_emb.inv_freq", "layers.0.self_attn.rotary_emb.inv_freq")
    tensors |= dict.fromkeys(more, np.ones((2, 2), np.float32))
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="missing: score.weight; it has no score head"):
        hf.load(tmp_path)
    loaded = hf.load(tmp_path, fresh_head_key=jax.random.key(0))[1]
    drawn = loaded["score"]["kernel"]
    assert set(loaded["score"]) == {"kernel"} and drawn.shape == (32, 1) and 0.01 < drawn.std() < 0.03
    jax.tree.map(np.testing.assert_array_equal, loaded | {"score": 0}, params | {"score": 0})
    safetensors.numpy.save_file(tensors | {"score.weight": np.repeat(head, 2, 0)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"one label, not num_labels 1 and score.weight \[2, 32\]"):
        hf.load(tmp_path)


def test_a_language_model_needs_its_head(tmp_path):
    hf.save(*helpers.make("llama"), tmp_path)
    with pytest.raises(InputError, match=r"missing: lm_head.weight"):
        hf.load_language_model(tmp_path)
    table = np.random.default_rng(0).standard_normal((120, 32)).astype(np.float32)
    safetensors.numpy.save_file(read(tmp_path) | {"lm_head.weight": table}, tmp_path / "model.safetensors")
    model, params = hf.load_language_model(tmp_path)
    np.testing.assert_array_equal(params["lm_head"]["embedding"], table)
    assert not params["score"]["kernel"].any()
    batch = helpers.one_per_row(helpers.texts([5, 9]))
    assert language.logits(model, params, batch).shape == (2, 9, 120)
    hf.save(*helpers.make("bert"), tmp_path / "bert")
    with pytest.raises(InputError, match="a bert is no language model"):
        hf.load_language_model(tmp_path / "bert")


@pytest.mark.parity
def test_logits_of_a_real_language_model(shared):
    """stories260k: TinyStories by llama2.c, 5 layers, grouped queries, tied embeddings."""
    folder = shared / "data/stories260k"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("no stories260k in the shared data")
    torch = pytest.importorskip("torch")
    import transformers

    model, params = hf.load_language_model(folder)
    tokenizer = hf.load_tokenizer(folder)
    texts = ["Once upon a time, there was a little girl named Lily.", "Tom and Ben had a big red ball. " * 12]
    encoded = [np.asarray(tokenizer(text)["input_ids"]) for text in texts]
    assert "lm_head" not in params and all(ids[0] == tokenizer.bos_token_id for ids in encoded)
    packed = helpers.pack([(ids, 0 * ids) for ids in encoded], 1, 512, [(0, 3), (0, 3 + len(encoded[0]))])
    ours = np.asarray(jax.jit(language.logits, static_argnums=0)(model, params, packed))[0]
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    start = 3
    for ids in encoded:
        with torch.no_grad():
            theirs = reference(torch.tensor(ids)[None]).logits[0].numpy()
        np.testing.assert_allclose(ours[start : start + len(ids)], theirs, rtol=0, atol=1e-4)
        assert np.mean(theirs[:-1].argmax(-1) == ids[1:]) > 0.4  # it is a language model of such texts
        start += len(ids)


def test_bfloat16_on_a_gpu_takes_the_kernel_of_cudnn(monkeypatch):
    """As far as it can be told without a GPU: the program for one has cuDNN's attention, forward and backward."""
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    model, params = helpers.make("llama31")
    batch = helpers.pack(helpers.texts([9, 12] * 4), 4, 32, [(row, column) for row in range(4) for column in (0, 12)])
    for dtype, wanted in (("bfloat16", True), ("float32", False)):
        gradient = jax.grad(lambda params, dtype=dtype: model.score(params, batch, dtype=dtype).sum())
        lowered = jax.jit(gradient).trace(params).lower(lowering_platforms=("cuda",)).as_text()
        assert ("fmha" in lowered) == wanted and ("fmhaScaleBiasSoftmaxBackward" in lowered) == wanted
