"""Batches of fixed shapes: they hold every text once, in programs that are known before."""

import numpy as np
import pytest

from scpo_jax import serve_shapes
from scpo_jax.data import packing
from scpo_jax.data.encoding import Text

SHAPES = serve_shapes.choose(width=48, max_length=100, tokens=512)


def test_what_is_compiled():
    assert SHAPES == ({16: [32, 8, 2, 1], 32: [16, 4, 1], 64: [8, 2, 1], 128: [4, 1]}, 16)
    assert SHAPES.longest == 128 and len(SHAPES.every()) == len(set(SHAPES.every())) == 16
    assert ((32, 16), 64) in SHAPES.every() and ((32, 16), 32) in SHAPES.every() and ((4, 128), 64) in SHAPES.every()
    assert serve_shapes.choose(width=16, max_length=8, tokens=512).longest == 16


@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("texts", [0, 1, 2, 5, 40, 300])
@pytest.mark.parametrize("longest", [3, 40, 100])
def test_every_text_has_its_place(devices, texts, longest):
    rng = np.random.default_rng(texts + longest)
    lengths = rng.integers(1, longest + 1, texts).tolist()
    steps = serve_shapes.plan_steps(lengths, SHAPES, devices)
    assert all(len(step) == devices for step in steps)
    assert all(len({(batch.shape, batch.slots) for batch in step}) == 1 for step in steps)
    assert {(batch.shape, batch.slots) for step in steps for batch in step} <= set(SHAPES.every())
    assert sorted(i for step in steps for batch in step for i in batch.indices) == list(range(texts))
    for batch in (batch for step in steps for batch in step):
        own = [Text(np.full(lengths[i], i + 1, np.int32), np.zeros(lengths[i], np.int32), 0) for i in batch.indices]
        laid = packing.lay_out(own, batch.rows, batch.columns, batch.shape, batch.slots)
        assert len(laid.rows) == batch.slots >= len(own)
        for segment, i in enumerate(batch.indices, start=1):
            np.testing.assert_array_equal(laid.input_ids[laid.segment_ids == segment], [i + 1] * lengths[i])


def test_much_that_waits_leaves_little_padding():
    lengths = np.random.default_rng(0).integers(20, 100, 1000).tolist()
    steps = serve_shapes.plan_steps(lengths, SHAPES, 1)
    computed = sum(np.prod(batch.shape) for step in steps for batch in step)
    assert computed < 1.2 * sum(lengths)


def test_a_batch_is_three_quarters_full():
    assert [serve_shapes._size(rows, [32, 8, 2]) for rows in (100, 32, 25, 24, 9, 8, 7, 6, 3, 2, 1)] == [
        32, 32, 32, 8, 8, 8, 8, 2, 2, 2, 2,
    ]  # fmt: skip
