"""The order of batches: the reference's, and ours as a pure function of seed and step."""

import numpy as np
import pytest

from scpo_jax.data import order
from tests.golden import COUNTRIES, ragged, reference


@pytest.mark.parametrize("c", range(len(COUNTRIES)), ids=COUNTRIES)
def test_the_order_of_the_reference(c):
    numbers = reference()
    n = len(numbers[f"{c}/edited_train"])
    batches = ragged(numbers[f"{c}/batches"], numbers[f"{c}/batch_lengths"])
    assert len(batches) == 30 and min(map(len, batches)) < 8 or n % 8 == 0
    for ours, batch in zip(order.reference(n, 8, 30), batches, strict=True):
        np.testing.assert_array_equal(ours[ours >= 0], batch)


@pytest.mark.parametrize(("n", "size"), [(5, 8), (16, 4), (23, 8), (1, 3), (700, 8)])
def test_every_pair_once_an_epoch(n, size):
    lengths = np.random.default_rng(0).integers(20, 600, n)
    epochs = order.shuffled(lengths, size, 7, 3 * n).reshape(-1, n)  # exactly 3 * size of them
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs.tolist())
    if n > size:
        assert len({frozenset(epoch[:size].tolist()) for epoch in epochs}) > 2


@pytest.mark.parametrize(("n", "steps"), [(100, 57), (700, 300), (3, 20)])
def test_a_pure_function_of_seed_and_step(n, steps):
    lengths = np.random.default_rng(0).integers(20, 600, n)
    drawn = order.shuffled(lengths, 8, 3, steps)
    np.testing.assert_array_equal(drawn, order.shuffled(lengths, 8, 3, 2 * steps)[:steps])
    assert drawn.shape == (steps, 8) and not np.array_equal(drawn, order.shuffled(lengths, 8, 4, steps))


@pytest.mark.parametrize("seed", range(3))
def test_steps_have_about_equally_many_tokens(seed):
    lengths = np.random.default_rng(0).gamma(3.0, 80.0, 512).astype(int)
    tokens = lengths[order.shuffled(lengths, 8, seed, 64)].sum(1)
    at_random = lengths[np.random.default_rng(seed).permutation(512)].reshape(64, 8).sum(1)
    assert tokens.max() < 1.2 * tokens.mean() < at_random.max()


def test_no_step_is_made_of_long_pairs_alone():
    lengths = np.random.default_rng(0).gamma(3.0, 80.0, 512).astype(int)
    ranks = np.argsort(np.argsort(lengths))[order.shuffled(lengths, 8, 3, 64)]
    assert np.all(ranks.min(1) < 256)
