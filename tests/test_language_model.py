"""A language model in training: next-token loss, and what it says of given responses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scpo_jax import language_model, sampling
from scpo_jax.models import hf, language
from tests import language_helpers
from tests import model_helpers as helpers

pytestmark = pytest.mark.filterwarnings("error:::(jax|flax|scpo_jax|tests).*")


def log_softmax(logits):
    wide = logits.astype(float) - logits.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def alone(model, params, ids):
    """Log-probabilities of every token after each token of a text, `[T, V]`."""
    batch = helpers.one_per_row([(ids, np.zeros(len(ids), int))], 24)  # all of one shape
    return log_softmax(np.asarray(_logits(model, params, batch))[0, : len(ids)])


_logits = jax.jit(language.logits, static_argnums=0)


def test_the_loss_is_that_of_the_responses_whatever_stands_beside_them():
    """Texts packed in rows, the second half of each is learnt: the sum over texts alone, by numpy."""
    model, params = language_helpers.make("llama31")
    texts = helpers.texts([6, 11, 3])
    wanted = sum(
        -alone(model, params, ids)[t - 1, ids[t]] for ids, types in texts for t in range(1, len(ids)) if types[t] == 1
    )
    batch = helpers.pack(texts, 2, 20, [(0, 1), (0, 8), (1, 0)])
    loss = jax.jit(functools.partial(language_model.next_token_loss, model))
    total, count = loss(params, batch)
    assert total == pytest.approx(wanted, rel=1e-5) and count == sum(types.sum() for _, types in texts)
    whole = batch._replace(token_type_ids=(batch.segment_ids > 0).astype(jnp.int32))
    assert loss(params, whole)[1] == 6 + 11 + 3 - 3  # a text's first token has nothing before it


def test_what_a_model_says_of_responses():
    """Ragged prompts and responses, one of them empty: log-probabilities, entropies and values by numpy."""
    model, params = language_helpers.make("qwen3")
    prompts, lengths = language_helpers.PROMPTS[:4], np.array([5, 0, 7, 1])
    tokens = np.random.default_rng(0).integers(1, helpers.VOCABULARY, (4, 7)).astype(np.int32)
    batch = sampling.left_pad(prompts, range(4), (4, 16), 0)
    found = jax.jit(language_model.outputs, static_argnums=0)(model, params, batch, tokens, lengths)
    scores = jax.jit(model.score)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        text = np.concatenate([prompt, tokens[row, :length]])
        logprobs = alone(model, params, text)[len(prompt) - 1 : len(text) - 1]
        wanted = np.zeros((3, 7))
        wanted[0, :length] = logprobs[np.arange(length), tokens[row, :length]]
        wanted[1, :length] = -(np.exp(logprobs) * logprobs).sum(-1)
        for t in range(length):
            before = text[: len(prompt) + t]
            wanted[2, t] = scores(params, helpers.one_per_row([(before, 0 * before)], 24))[0]
        np.testing.assert_allclose([leaf[row] for leaf in found], wanted, rtol=0, atol=1e-4)
        assert not np.array(found)[:, row, length:].any()


@pytest.mark.parity
@pytest.mark.parametrize("form", ["llama31", "qwen2"])
def test_an_exported_language_model_is_one_for_transformers(form, tmp_path):
    """Head of its own, or tied; the value head is not among the weights."""
    torch = pytest.importorskip("torch")
    import transformers

    model, params = language_helpers.make(form)
    hf.save(model, params, tmp_path)
    reference, said = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not any(said[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(reference).__name__.endswith("ForCausalLM") and reference.config.num_labels == 2  # the default
    ids = helpers.texts([17])[0][0]
    with torch.no_grad():
        theirs = reference(torch.tensor(ids)[None]).logits[0].numpy()
    batch = helpers.one_per_row([(ids, 0 * ids)], 24)
    np.testing.assert_allclose(_logits(model, params, batch)[0, :17], theirs, rtol=0, atol=1e-5)
    loaded = hf.load_language_model(tmp_path)[1]
    jax.tree.map(np.testing.assert_array_equal, loaded | {"score": 0}, params | {"score": 0})
