"""Generation: greedy as in transformers, samples as the model's probabilities say, each row for itself."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from scpo_jax import cores, language_model, sampling, sharding
from scpo_jax.models import hf, language, layers, module
from scpo_jax.models.lora import Lora
from scpo_jax.sampling import Sampling
from tests import language_helpers
from tests import model_helpers as helpers
from tests.language_helpers import PROMPTS
from tests.run_helpers import with_devices

pytestmark = pytest.mark.filterwarnings("error:::(jax|flax|scpo_jax|tests).*")
GREEDY = Sampling(end_ids=(), pad_id=0, temperature=0.0)
FREE = Sampling(end_ids=(7, 50), pad_id=0, temperature=0.8, top_k=60, top_p=0.95)
outputs = jax.jit(language_model.outputs, static_argnums=0)


def one_device():
    return sharding.make_mesh(1, 1, 1, jax.devices()[:1])


@functools.cache
def sampler_of(form, settings):
    return sampling.make_sampler(language_helpers.make(form)[0], one_device(), settings, "float32", "float32")


def generate(model, params, settings, prompts, new_tokens, rows=8):
    """What `sampling.generate` gives on one device in float32."""
    sampler = sampling.make_sampler(model, one_device(), settings, "float32", "float32")
    return sampling.generate(sampler, params, prompts, 0, rows=rows, new_tokens=new_tokens, pad_id=settings.pad_id)


def check_logprobs(model, params, prompts, responses):
    """A pass over prompts and responses without a cache gives the same log-probabilities."""
    shape = len(prompts), max(map(len, prompts))
    batch = sampling.left_pad(prompts, range(len(prompts)), shape, 0)
    whole = outputs(model, params, batch, responses.tokens, responses.lengths)
    np.testing.assert_allclose(responses.logprobs, whole.logprobs, rtol=0, atol=1e-4)
    assert (responses.logprobs[np.arange(responses.tokens.shape[1]) < responses.lengths[:, None]] < 0).all()


def check_greedy(model, params, reference, prompts, new_tokens, end, rows):
    """Tokens are those of transformers, and end where theirs do; returns what was generated."""
    theirs = language_helpers.torch_greedy(reference, prompts, new_tokens, eos_token_id=end)
    ours = generate(model, params, GREEDY._replace(end_ids=(end,)), prompts, new_tokens, rows)
    for tokens, length, ended, expected in zip(ours.tokens, ours.lengths, ours.ended, theirs, strict=True):
        assert tokens[:length].tolist() == expected.tolist() and not tokens[length:].any()
        assert ended == (expected[-1] == end)
    return ours


@pytest.mark.parity
@pytest.mark.parametrize("form", ["llama", "llama31", "qwen2", "qwen3"])
def test_greedy_tokens_are_those_of_transformers(form, tmp_path):
    pytest.importorskip("torch")
    reference = language_helpers.torch_model(form)
    reference.save_pretrained(tmp_path)
    end = language_helpers.torch_greedy(reference, PROMPTS[:1], 6)[0][4]
    found = check_greedy(*hf.load_language_model(tmp_path), reference, PROMPTS, 20, int(end), rows=8)
    assert 0 < found.ended.sum() < len(PROMPTS)


@pytest.mark.parity
def test_greedy_tokens_of_a_real_language_model(shared):
    """stories260k; it ends a story with the token that begins the next one."""
    folder = shared / "data/stories260k"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("no stories260k in the shared data")
    pytest.importorskip("torch")
    import transformers

    reference, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(folder), hf.load_tokenizer(folder)
    texts = ["Once upon a time", "Tom and Ben had a big red ball. They", "The end. They lived happily ever after."]
    prompts = [np.array(tokenizer(text)["input_ids"]) for text in ["", *texts]]
    model, params = hf.load_language_model(folder)
    found = check_greedy(model, params, reference, prompts, 60, tokenizer.bos_token_id, rows=4)
    check_logprobs(model, params, prompts, found)


def expected(logits, temperature, top_k, top_p):
    """Probabilities of a row of logits, by sorting."""
    order = np.argsort(-logits, kind="stable")
    scaled = np.exp((logits - logits.max()).astype(float) / temperature)[order]
    scaled[top_k or len(logits) :] = 0
    scaled /= scaled.sum()
    scaled[np.cumsum(scaled) - scaled >= top_p] = 0
    found = np.zeros(len(logits))
    found[order] = scaled / scaled.sum()
    return found


def check_frequencies(counts, probabilities):
    """A chi-square test; rare tokens count together, and those of probability 0 never occur."""
    assert not counts[probabilities == 0].any()
    rare = probabilities * counts.sum() < 10
    merged = [np.append(values[~rare], values[rare].sum()) for values in (counts, probabilities * counts.sum())]
    observed, wanted = (values[merged[1] > 0] for values in merged)
    assert len(wanted) > 3 and scipy.stats.chisquare(observed, wanted).pvalue > 1e-3


@pytest.mark.parametrize(
    "temperature, top_k, top_p", [(1, 0, 1), (0.6, 0, 1), (1.7, 0, 1), (1, 5, 1), (1, 0, 0.8), (1.3, 8, 0.9)]
)
def test_draws_follow_the_truncated_distribution(temperature, top_k, top_p):
    logits = np.random.default_rng(1).normal(0, 1.5, 20).astype(np.float32)
    settings = GREEDY._replace(temperature=float(temperature), top_k=top_k, top_p=top_p)
    keys = jax.random.split(jax.random.key(2), 20_000)
    tokens = jax.jit(sampling.draw, static_argnums=2)(jnp.tile(logits, (len(keys), 1)), keys, settings)
    check_frequencies(np.bincount(tokens, minlength=20), expected(logits, temperature, top_k, top_p))


def test_the_nucleus_is_that_of_a_sort():
    logits = np.random.default_rng(0).normal(0, 2, (64, 50))
    probabilities = jax.nn.softmax(jnp.asarray(logits, jnp.float32))
    for top_p in (1e-6, 0.3, 0.9, 0.999):
        kept = np.asarray(sampling.nucleus(probabilities, top_p)) > 0
        wanted = np.stack([expected(row, 1, 0, top_p) > 0 for row in logits])
        np.testing.assert_array_equal(kept, wanted)
    ties = jnp.array([[0.25, 0.25, 0.4, 0.1]])
    np.testing.assert_array_equal(sampling.nucleus(ties, 0.5) > 0, [[True, True, True, False]])


def test_samples_follow_the_model_s_probabilities():
    """The first token given the prompt, and the second one given what each row drew first."""
    model, params = language_helpers.make("llama31")
    prompt, settings = PROMPTS[0], GREEDY._replace(temperature=0.8, top_p=0.9)
    drawn = generate(model, params, settings, [prompt] * 2048, 2, rows=2048)
    firsts = np.unique(drawn.tokens[:, 0])
    batch = helpers.one_per_row([(np.append(prompt, first), np.zeros(4, int)) for first in firsts])
    logits = np.asarray(jax.jit(language.logits, static_argnums=0)(model, params, batch))
    check_frequencies(np.bincount(drawn.tokens[:, 0], minlength=120), expected(logits[0, 2], 0.8, 0, 0.9))
    after = {first: expected(row[3], 0.8, 0, 0.9) for first, row in zip(firsts, logits, strict=True)}
    second = np.mean([after[first] for first in drawn.tokens[:, 0]], axis=0)
    check_frequencies(np.bincount(drawn.tokens[:, 1], minlength=120), second)


def test_a_row_depends_on_its_prompt_and_number_alone_and_shapes_compile_once():
    sampler, (_, params) = sampler_of("llama31", FREE), language_helpers.make("llama31")

    def run(which, shape, seed=3):
        batch = sampling.left_pad([PROMPTS[i] for i in which], [10 + i for i in which], shape, 0)
        found = sampler(params, batch, np.uint32(seed), 12)
        return {i: (found.tokens[row].tolist(), int(found.lengths[row])) for row, i in enumerate(which)}, found

    together, found = run([0, 1, 2, 3, 4], (8, 16))
    assert sampler._cache_size() == 1
    assert not found.lengths[5:].any() and not found.tokens[5:].any()  # rows without a prompt
    assert len({tuple(tokens) for tokens, _ in together.values()}) == 5
    assert run([4, 2], (8, 16))[0] == {i: together[i] for i in (4, 2)}
    assert run([0, 1, 2, 3, 4], (8, 16), seed=4)[0] != together
    assert sampler._cache_size() == 1
    assert run([3, 0, 1], (4, 24))[0] == {i: together[i] for i in (3, 0, 1)}
    assert sampler._cache_size() == 2
    same = sampling.left_pad([PROMPTS[0]] * 8, range(8), (8, 16), 0)
    assert len(np.unique(sampler(params, same, np.uint32(3), 12).tokens, axis=0)) == 8


def test_it_ends_when_all_rows_have_and_not_before_enough_tokens(monkeypatch):
    """Any of half of the tokens ends a response: all rows end soon, and then the model is not asked again."""
    model, params = language_helpers.make("qwen3")
    asked, extend = [], language.extend

    def counted(*arguments, **options):
        jax.debug.callback(lambda: asked.append(1))
        return extend(*arguments, **options)

    monkeypatch.setattr(language, "extend", counted)
    monkeypatch.setattr(cores, "of_one_device", lambda: 1)
    settings = FREE._replace(end_ids=tuple(range(60)), min_new_tokens=3)
    found = generate(model, params, settings, PROMPTS, 60)
    jax.effects_barrier()
    assert found.ended.all() and len(asked) == found.lengths.max() < 30
    assert found.lengths.min() == 4 and (found.tokens[:, :3] >= 60).all()
    assert [tokens[length - 1] < 60 for tokens, length in zip(found.tokens, found.lengths, strict=True)] == [True] * 5
    check_logprobs(model, params, PROMPTS, found)  # among all tokens, those not allowed too


def test_each_core_gets_some_of_the_rows(monkeypatch):
    model, params = language_helpers.make("qwen3")
    sampler = sampling.make_sampler(model, one_device(), FREE, "float32", "float32")
    batch = sampling.left_pad([np.array([5, 6, 7])] * 6, range(6), (6, 8), 0)
    found, shapes = {}, []

    def counted(params, prompts, *arguments):
        shapes.append(prompts.input_ids.shape)
        return sampler(params, prompts, *arguments)

    for count in (1, 2, 4):
        monkeypatch.setattr(cores, "of_one_device", lambda count=count: count)
        found[count] = sampling.respond(counted, params, batch, np.uint32(3), 12).tokens
    assert shapes == [(6, 8)] + [(3, 8)] * 2 + [(2, 8)] * 3
    assert len(np.unique(found[1], axis=0)) == 6
    np.testing.assert_array_equal(found[1], found[2])
    np.testing.assert_array_equal(found[1], found[4])


def test_a_loop_over_many_layers_gives_the_tokens_of_few(monkeypatch):
    model, params = language_helpers.make("qwen3")
    few = generate(model, params, FREE, PROMPTS, 12)
    monkeypatch.setattr(layers, "UNROLLED", 1)
    assert language.layers_apart(params) is params
    many = generate(model, params, FREE, PROMPTS, 12)
    np.testing.assert_array_equal(few.tokens, many.tokens)
    np.testing.assert_allclose(few.logprobs, many.logprobs, rtol=0, atol=1e-5)
    assert few.lengths.sum() > 30


def test_adapters_and_a_narrow_cache():
    """Adapters give the tokens of the merged model; a bfloat16 cache moves log-probabilities a little."""
    model, plain = language_helpers.make("llama31")
    adapted, params = module.adapt(model, plain, Lora(2, 8.0, ("all-linear",)), jax.random.key(0))
    params = jax.tree.map_with_path(lambda path, leaf: leaf + 0.1 * (path[-1].key == "lora_b"), params)
    ours = generate(adapted, params, FREE, PROMPTS, 12)
    merged = generate(*module.merge(adapted, params), FREE, PROMPTS, 12)
    np.testing.assert_array_equal(ours.tokens, merged.tokens)
    np.testing.assert_allclose(ours.logprobs, merged.logprobs, rtol=0, atol=1e-4)
    batch = sampling.left_pad(PROMPTS, range(5), (8, 16), 0)
    wide = sampler_of("llama31", FREE)(plain, batch, np.uint32(0), 12)
    assert np.abs(ours.logprobs - wide.logprobs[:5]).max() > 0.1  # the adapters do something
    sampler = sampling.make_sampler(model, one_device(), FREE, "float32", "bfloat16")
    narrow = sampler(plain, batch, np.uint32(0), 12)
    same = np.asarray(narrow.tokens == wide.tokens)[:5, :2].all(1)
    moved = np.abs(narrow.logprobs - wide.logprobs)[:5, 1][same]  # the first token is drawn before the cache is read
    assert len(moved) > 2 and 1e-5 < moved.max() < 0.1


EIGHT = """
import functools, jax, numpy as np
from scpo_jax import sampling, sharding
from tests import language_helpers, test_sft
from tests.test_sampling import FREE, PROMPTS
assert jax.device_count() == 8
model, params = language_helpers.make("llama31")
found = []
for devices in (1, 8):
    mesh = sharding.make_mesh(1, devices, 1, jax.devices()[:devices])
    sampler = sampling.make_sampler(model, mesh, FREE, "float32", "float32")
    found.append(sampling.generate(sampler, params, PROMPTS, 3, rows=8, new_tokens=12, pad_id=0))
np.testing.assert_array_equal(found[0].tokens, found[1].tokens)
np.testing.assert_allclose(found[0].logprobs, found[1].logprobs, rtol=0, atol=1e-5)
assert found[0].lengths.sum() > 30
(losses, params), (others, shared) = (test_sft.train(*reversed(test_sft.make(devices))) for devices in (1, 8))
np.testing.assert_allclose(losses, others, rtol=0, atol=1e-5)
jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-4), params, shared)
"""


def test_eight_devices_give_the_tokens_of_one_and_train_as_one():
    done = subprocess.run([sys.executable, "-c", EIGHT], env=with_devices(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
