"""LoRA: adapters that do nothing at first, merge exactly, and leave the base alone; seven groups on one shared base."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scpo_jax.errors import InputError
from scpo_jax.models import lora, module
from scpo_jax.models.lora import Lora
from tests import model_helpers as helpers

pytestmark = pytest.mark.filterwarnings("error:::(jax|flax|scpo_jax|tests).*")
ALL = Lora(4, 8.0, ("all-linear",))


def adapted(name, options=ALL, seed=1):
    """A tiny model with informative adapters and its parameters, and those of its base."""
    model, base = helpers.make(name)
    own, params = module.adapt(model, base, options, jax.random.key(0))
    informative = helpers.informative_params(own, seed)
    return own, lora.join(lora.split(informative)[0], params), base


def batch():
    return helpers.pack(helpers.texts([9, 12] * 4), 4, 24, [(row, column) for row in range(4) for column in (0, 12)])


@pytest.mark.parametrize(("name", "dtype"), [("llama31", "float32"), ("qwen3", "bfloat16"), ("bert", "bfloat16")])
def test_fresh_adapters_are_the_base_exactly(name, dtype):
    """Also where the base is kept in the type of the products.

    Operation by operation: XLA may fuse the sums of what is compiled, a layer as well, otherwise, and round otherwise.
    """
    model, base = helpers.make(name)
    own, params = module.adapt(model, base, ALL, jax.random.key(0))
    trained, frozen = lora.split(params)
    narrowed = lora.narrowed(frozen, jnp.dtype(dtype), model.reads == "last")
    frozen = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), frozen, narrowed)
    with jax.disable_jit():
        before, after = (
            m.score(p, batch(), dtype=dtype) for m, p in ((model, base), (own, lora.join(trained, frozen)))
        )
    np.testing.assert_array_equal(after, before)
    narrow = {leaf.dtype for leaf in jax.tree.leaves(narrowed)}
    assert (np.dtype(jnp.bfloat16) in narrow) == (dtype == "bfloat16")
    assert narrowed["layers"]["attention"]["query"]["kernel"].dtype == dtype


@pytest.mark.parametrize("name", ["llama31", "llama-biases", "qwen3", "bert", "v3"])
def test_merged_is_unmerged(name):
    own, params, base = adapted(name)
    before, after = (np.asarray(jax.jit(own.score)(p, batch())) for p in (lora.join(base, params), params))
    assert np.abs(after - before).max() > 0.1
    plain, merged = module.merge(own, params)
    assert plain.lora is None and jax.tree.structure(merged) == jax.tree.structure(base)
    np.testing.assert_allclose(jax.jit(plain.score)(merged, batch()), after, rtol=0, atol=1e-5 * max(1, np.std(after)))


def test_what_the_targets_name():
    shapes = adapted("llama31", Lora(2, 4.0, ("q_proj", "v_proj", "mlp.down_proj")))[0].shapes["layers"]
    have = {f"{part}/{name}" for part, own in shapes.items() for name, leaves in own.items() if "lora_a" in leaves}
    assert have == {"attention/query", "attention/value", "feed_forward/output"}
    assert shapes["attention"]["value"]["lora_a"].shape == (2, 32, 2)
    assert shapes["attention"]["value"]["lora_b"].shape == (2, 2, 32)
    every = adapted("bert")[0].shapes
    assert "lora_a" in every["pooler"] and every["score"].keys() == {"kernel", "bias"}


@pytest.mark.parametrize("targets", [("q_proj", "c_attn"), ("score",), ("proj",), ()])
def test_targets_that_the_model_does_not_have(targets):
    with pytest.raises(InputError, match="the model has all-linear, k_proj, o_proj, q_proj, v_proj, gate_proj"):
        adapted("llama31", Lora(2, 4.0, targets))


def test_dropout_is_of_the_adapters_alone():
    options = ALL._replace(dropout=0.5)
    own, params, base = adapted("qwen3", options)
    score = jax.jit(own.score)
    fresh = lora.join(base, module.adapt(*helpers.make("qwen3"), options, jax.random.key(0))[1])
    np.testing.assert_array_equal(score(fresh, batch(), jax.random.key(1)), score(fresh, batch()))
    one, same, other = (score(params, batch(), jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).min() > 1e-3 and np.abs(one - score(params, batch())).min() > 1e-3
    with pytest.raises(InputError, match="LoRA dropout is for causal models"):
        adapted("bert", options)


def test_where_adapters_start():
    own, params, _ = adapted("llama")
    fresh = lora.init(own.shapes, jax.random.key(3))["layers"]["attention"]["query"]
    assert not fresh["lora_b"].any() and 0.9 < np.abs(fresh["lora_a"]).max() * np.sqrt(32) <= 1
    trained, frozen = lora.split(params)
    assert set(trained) == {"layers", "score"} and "score" not in frozen
    jax.tree.map(np.testing.assert_array_equal, lora.join(trained, frozen), params)
    assert lora.split(helpers.make("llama")[1])[1] == {}
