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
    for step, batch in enumerate(batches):
        np.testing.assert_array_equal(order.reference_batch_at(n, 8, step), batch)


@pytest.mark.parametrize(("n", "size"), [(5, 8), (16, 4), (23, 8), (1, 3)])
def test_every_pair_once_an_epoch(n, size):
    steps = 3 * n  # exactly 3 * size epochs
    drawn = np.concatenate([order.batch_at(n, size, 7, step) for step in range(steps)])
    epochs = drawn.reshape(-1, n)
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs.tolist())
    if n > 4:
        assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1


def test_a_pure_function_of_seed_and_step():
    np.testing.assert_array_equal(order.batch_at(100, 8, 3, 57), order.batch_at(100, 8, 3, 57))
    assert not np.array_equal(order.batch_at(100, 8, 3, 57), order.batch_at(100, 8, 4, 57))
