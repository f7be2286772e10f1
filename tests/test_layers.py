"""Dropout draws what `jax.random.bernoulli` draws, only faster."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scpo_jax.models import layers


@pytest.mark.parametrize("rate", [0.1, 0.25, 1e-4])
@pytest.mark.parametrize("shape", [(7,), (2, 3, 50, 40)])
def test_what_dropout_keeps_is_what_bernoulli_draws(rate, shape):
    for seed in range(3):
        key = jax.random.fold_in(jax.random.key(seed), 7)
        kept = jax.jit(layers.kept, static_argnums=(1, 2))(key, rate, shape)
        np.testing.assert_array_equal(kept, jax.random.bernoulli(key, 1 - rate, shape))


def test_of_groups_each_draws_by_its_own_key():
    keys = jax.random.split(jax.random.key(0), 3)
    kept = jax.vmap(lambda key: layers.kept(key, 0.5, (40,)))(keys)
    drawn = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (40,)))(keys)
    np.testing.assert_array_equal(kept, drawn)


def test_dropout_scales_what_it_keeps():
    key, x = jax.random.key(1), jnp.full((20, 30), 3.0)
    y = np.asarray(layers.dropout(x, 0.25, key))
    np.testing.assert_allclose(y, np.where(layers.kept(key, 0.25, x.shape), 4.0, 0.0))
    assert layers.dropout(x, 0.25, None) is x
