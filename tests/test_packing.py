"""Packing: every text once and whole, few shapes, little padding, and the model cannot tell."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scpo_jax.data import batches, order, packing
from scpo_jax.data.encoding import Text
from scpo_jax.models import module
from tests.test_train_reward import CONFIG

sizes_of_a_set = st.lists(st.integers(0, 200), min_size=1, max_size=40)


def texts_of(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [Text(rng.integers(1, 40, n).astype(np.int32), rng.integers(0, 2, n).astype(np.int32), 0) for n in sizes]


def plan(lengths, width):
    return packing.assign(lengths, packing.choose_shapes([lengths], width, "cpu"), width, "cpu")


def packed(texts, width=64):
    sizes = np.array([[[len(text.input_ids) for text in texts]]])
    shapes = plan(sizes, width)
    return packing.pack(texts, packing.rows_of(sizes, shapes)[0, 0], shapes[0])


@given(sizes_of_a_set)
def test_every_text_stands_whole_at_its_place(sizes):
    texts = texts_of(sizes)
    batch = packed(texts)
    assert batch.input_ids.shape[1] >= max(sizes) and np.sum(batch.segment_ids > 0) == sum(sizes)
    for text, row, column in zip(texts, batch.rows, batch.columns, strict=True):
        place = row, slice(column, column + len(text.input_ids))
        np.testing.assert_array_equal(batch.input_ids[place], text.input_ids)
        np.testing.assert_array_equal(batch.token_type_ids[place], text.token_type_ids)
        np.testing.assert_array_equal(batch.positions[place], np.arange(len(text.input_ids)))
        if len(text.input_ids):
            assert np.sum(batch.segment_ids[row] == batch.segment_ids[row, column]) == len(text.input_ids)


def one_by_one(sizes, rows):
    """Largest differencing, a set at a time: the longest row."""
    parts = [[size] + [0] * (rows - 1) for size in sizes]
    while len(parts) > 1:
        parts.sort(key=lambda loads: loads[-1] - loads[0])
        first, second = parts[:2]
        parts[:2] = [sorted((a + b for a, b in zip(first, second[::-1], strict=True)), reverse=True)]
    return parts[0][0]


# no two differences are equal at first, so that the order in which solutions are joined is one only
sets_of_texts = st.lists(st.lists(st.integers(1, 200), min_size=9, max_size=9, unique=True), min_size=1, max_size=5)


@given(sets_of_texts, st.integers(1, 5))
def test_rows_are_balanced_as_one_set_alone_is(sets, rows):
    lengths = np.array(sets)
    placed = packing.balance(lengths, rows)
    loads = np.stack([np.where(placed == row, lengths, 0).sum(1) for row in range(rows)], axis=1)
    assert np.array_equal(loads.sum(1), lengths.sum(1))
    for m in range(len(sets)):
        np.testing.assert_array_equal(placed[m], packing.balance(lengths[m : m + 1], rows)[0])
        assert loads[m].max() <= -(-lengths[m].sum() // rows) + lengths[m].max()


@pytest.mark.parametrize("rows", [3, 12])
def test_the_order_of_texts_does_not_matter(rows):
    """A step is planned and packed in different orders."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(15, 60, (2000, 1, 32))
    ours, theirs = (packing.longest_rows(own, rows) for own in (lengths, rng.permuted(lengths, axis=2)))
    np.testing.assert_array_equal(ours, theirs)


def test_balanced_rows_are_nearly_equal():
    lengths = lengths_like_prism(400, 0).reshape(50, 16)
    longest = packing.longest_rows(lengths[:, None], 4)
    np.testing.assert_array_equal(longest, [one_by_one(own, 4) for own in lengths.tolist()])
    assert np.mean(longest / (lengths.sum(1) / 4)) < 1.02


def lengths_like_prism(n, seed):
    """Pairs of texts of 126 tokens on average, 99 % of them under 313."""
    return np.minimum(np.random.default_rng(seed).gamma(2.8, 45.0, (n, 2)).astype(int) + 8, 512)


def steps_of(groups, steps=1024, batch=8):
    """Lengths of the texts of every step `[K, G, S]` and their plan."""
    pairs = [lengths_like_prism(400, seed) for seed in range(groups)]
    orders = [order.shuffled(own.sum(1), batch, seed, steps) for seed, own in enumerate(pairs)]
    lengths = np.stack([own[order].reshape(steps, -1) for own, order in zip(pairs, orders, strict=True)], axis=1)
    return lengths, plan(lengths, 768)


@pytest.mark.parametrize("groups", [1, 7])
def test_few_shapes_and_little_padding(groups):
    lengths, shapes = steps_of(groups)
    assert len(np.unique(shapes, axis=0)) <= 6
    assert lengths.sum() / (shapes.prod(1).sum() * groups) >= 0.87


def test_where_compiling_takes_longer_there_are_fewer_shapes():
    lengths, _ = steps_of(7)
    cpu, tpu = (packing.choose_shapes([lengths], 768, platform) for platform in ("cpu", "tpu"))
    assert len(tpu) < len(cpu) and len(packing.assign(lengths, tpu, 768, "tpu")) == len(lengths)


def test_one_long_text_does_not_limit_the_rows_of_other_steps():
    lengths = np.full((50, 1, 16), 60)
    lengths[0, 0, 0] = 480  # this step fills three rows at most, the others sixteen
    assert max(packing.rows_worth_trying(lengths.max(2)[:, 0], lengths.sum(2)[:, 0], 64, "cpu")) > 3


def test_rows_on_a_cpu_stay_in_its_cache():
    lengths = np.full((50, 1, 16), 126)
    assert (packing.assign(lengths, np.array([[4, 512], [6, 384]]), 768, "cpu") == [6, 384]).all()
    assert (packing.assign(lengths, np.array([[4, 512], [6, 384]]), 768, "tpu") == [4, 512]).all()


def test_trainings_share_their_shapes():
    lengths, alone = steps_of(3)
    parts = [lengths[:400, :2], lengths[400:]]
    shapes = packing.choose_shapes(parts, 768, "cpu")
    assert len(shapes) <= 6
    planned = np.concatenate([packing.assign(part, shapes, 768, "cpu") for part in parts])
    assert {tuple(shape) for shape in planned} <= {tuple(shape) for shape in shapes}
    assert planned.prod(1).sum() < 1.05 * alone.prod(1).sum()


@pytest.mark.parametrize("groups", [1, 7])
def test_every_step_fits_its_shape(groups):
    lengths, shapes = steps_of(groups, steps=60)
    for own, (rows, row_length) in zip(lengths, shapes, strict=True):
        assert packing.longest_rows(own[None], rows)[0] <= row_length


def test_a_group_that_has_ended_needs_no_row():
    lengths, shapes = steps_of(2, steps=40)
    alone = plan(np.concatenate([lengths[:, :1], 0 * lengths[:, 1:]], axis=1), 768)
    np.testing.assert_array_equal(alone, plan(lengths[:, :1], 768))
    assert plan(np.zeros((3, 2, 4), int), 768).shape == (3, 2)


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 100))
def test_dealing_gives_each_pair_to_one_share(shares, batch, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(10, 900, 50)
    pairs = np.stack([rng.permutation(50)[:batch] for _ in range(3)])
    pairs[2, batch // 2 :] = -1
    dealt = packing.deal(pairs, lengths, shares)
    assert dealt.shape == (3, shares, -(-batch // shares))
    for before, after in zip(pairs, dealt, strict=True):
        assert sorted(after[after >= 0]) == sorted(before[before >= 0])


def test_shares_are_about_equally_long():
    lengths = lengths_like_prism(64, 0).sum(1)
    dealt = packing.deal(np.arange(64)[None], lengths, 4)
    totals = lengths[dealt[0]].sum(1)
    assert totals.max() < 1.05 * totals.min()


def test_packed_scores_are_padded_scores():
    model = module.build(CONFIG | {"hidden_dropout_prob": 0.0})
    params = module.init(model, jax.random.key(1))
    texts = texts_of([3, 30, 17, 8, 31, 1, 22, 5])
    padded = model.score(params, packing.lay_out(texts, range(8), [0] * 8, (8, 32)))
    batch = packed(texts, width=16)
    assert len(batch.input_ids) < len(texts)
    np.testing.assert_allclose(model.score(params, batch), padded, rtol=0, atol=1e-5)
    assert np.std(padded) > 0.05


@given(st.lists(st.integers(1, 700), max_size=60), st.sampled_from([48, 384]), st.sampled_from([1, 512, 8192]))
def test_scoring_takes_every_text_once(lengths, width, tokens):
    batches = packing.plan_batches(lengths, width, tokens)
    assert sorted(i for batch in batches for i in batch.indices) == list(range(len(lengths)))
    for batch in batches:
        taken = np.zeros(batch.shape, int)
        for i, row, column in zip(batch.indices, batch.rows, batch.columns, strict=True):
            assert column + lengths[i] <= batch.shape[1]
            taken[row, column : column + lengths[i]] += 1
        assert taken.max() == 1 and batch.shape[0] <= max(tokens // batch.shape[1], 1)
        assert len(batch.indices) <= batch.slots
    row_lengths = [batch.shape[1] for batch in batches]
    assert row_lengths == sorted(row_lengths, reverse=True)


@pytest.mark.parametrize("width", [384, 768])
def test_scoring_computes_little_padding_in_few_shapes(width):
    lengths = lengths_like_prism(4000, 0).reshape(-1)
    batches = packing.plan_batches(lengths, width, 8192)
    assert lengths.sum() / sum(np.prod(batch.shape) for batch in batches) >= 0.95
    assert len({(batch.shape, batch.slots) for batch in batches}) <= 6


@given(st.integers(0, 300), st.sampled_from([1, 3, 4, 64, 100]))
def test_batches_of_few_sizes_are_at_least_half_full(rows, most):
    parts = packing.parts_of(range(rows), most)
    assert [row for _, part in parts for row in part] == list(range(rows))
    assert all(size == 1 or size <= 2 * len(part) <= 2 * size for size, part in parts)
    assert {size for size, _ in parts} <= {most, max(most // 8, 1), max(most // 64, 1)}


def test_scores_beyond_the_texts_are_thrown_away():
    batch = packing.lay_out(texts_of([3, 5]), [0, 0], [0, 3], (1, 8), slots=4)
    assert batch.rows.tolist() == [0, 0, 0, 0] and batch.columns.tolist() == [0, 3, 0, 0]


@pytest.mark.parametrize("shares", [1, 3])
def test_every_step_of_a_plan_is_packed(shares):
    """Short texts of few lengths, so that many ties are to be broken."""
    rng = np.random.default_rng(0)
    pairs, orders = [], []
    for seed, size in enumerate((50, 30)):
        sides = (texts_of(rng.integers(5, 60, size), seed) for _ in range(2))
        pairs.append(batches.Pairs(*sides, np.ones(size, np.float32), np.zeros(size, np.float32)))
        orders.append(order.shuffled(batches.lengths_of(pairs[-1]).sum(1), 16, seed, 200 - 50 * seed))
    dealt = batches.deal(pairs, orders, 3, shares)
    plan = batches.plan(dealt, 48, packing.choose_shapes([dealt.lengths], 48, "cpu"), "cpu")
    for step, group, share in np.ndindex(plan.pairs.shape[:3]):
        batch = batches.batch_at(pairs, plan, step, group, share)
        assert np.sum(batch.texts.segment_ids > 0) == dealt.lengths[step].reshape(3, shares, -1)[group, share].sum()
