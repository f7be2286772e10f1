"""The forms of DeBERTa's attention are one function: the fused kernel, interpreted, against the plain form."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from scpo_jax.models import disentangled, layers, relative
from tests import tpu_helpers
from tests.bench import attention_cost

pytestmark = pytest.mark.filterwarnings("error:::(jax|flax|scpo_jax|tests).*")
ROWS, HEADS, SIZE = 2, 2, 8
TERMS = {"both": (True, True), "c2p": (True, False), "p2c": (False, True)}


PLAIN_ROLL = pltpu.roll


def quick_roll(x, shift, axis, *, stride, stride_axis):
    """`pltpu.roll` in few operations: interpreted, that of 128 rows becomes thousands and takes half a minute."""
    assert (axis, stride_axis) == (1, 0)
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) for axis in (0, 1))
    return jnp.take_along_axis(x, (columns - shift - stride * rows) % x.shape[1], axis=1)


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels are interpreted in seconds."""
    monkeypatch.setattr(pltpu, "roll", quick_roll)


def test_the_quick_roll_is_the_roll():
    x = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)
    for shift in (0, 1):
        roll, quick = (
            jax.jit(functools.partial(form, shift=shift, axis=1, stride=1, stride_axis=0))
            for form in (PLAIN_ROLL, quick_roll)
        )
        np.testing.assert_array_equal(quick(x), roll(x))


def arguments(length: int, buckets: int = 16, terms: str = "both", segments: int = 1, seed: int = 0):
    """The arrays of an attention, all of std 1: the five to differentiate by, then index and mask."""
    generator = np.random.default_rng(seed)
    query, keys, value = generator.standard_normal((3, ROWS, length, HEADS, SIZE)).astype(np.float32)
    first, end, index = relative.table_rows(length, 40, buckets, 600)
    tables = generator.standard_normal((2, end - first, HEADS, SIZE)).astype(np.float32)
    position_key, position_query = (x if used else None for x, used in zip(tables, TERMS[terms], strict=True))
    ids = np.sort(generator.integers(1, segments + 1, (ROWS, length)), axis=1)
    ids[-1, length - length // 5 :] = 0  # padding
    mask = layers.same_segment(jnp.asarray(ids))
    return (query, keys, value, position_key, position_query), index, mask


def compiled_form(form):
    """The form's result and its gradients for the five arrays, given what the result is weighted with."""

    def weighed(arrays, weight, index, mask, rate, key):
        mixed = form(*arrays, index, mask, SIZE**-0.5, rate, key)
        return jnp.vdot(mixed.astype(jnp.float32), weight), mixed

    return jax.jit(jax.value_and_grad(weighed, has_aux=True), static_argnums=4)


PLAIN = compiled_form(relative.plain_attention)
FUSED = compiled_form(functools.partial(disentangled.attend, interpret=True))


def difference(arrays, index, mask, rate=0.0, key=None, fused_index=None):
    """The largest difference of the forms' results, and of their gradients as a share of the largest gradient."""
    weight = np.random.default_rng(1).standard_normal((*mask.shape[:2], HEADS * SIZE)).astype(np.float32)
    (_, ours), our_grads = FUSED(arrays, weight, index if fused_index is None else fused_index, mask, rate, key)
    (_, theirs), their_grads = PLAIN(arrays, weight, index, mask, rate, key)
    assert jnp.std(theirs) > 0.1
    pairs = zip(jax.tree.leaves(our_grads), jax.tree.leaves(their_grads), strict=True)
    return float(jnp.max(jnp.abs(ours - theirs))), float(max(relative_gap(a, b) for a, b in pairs))


def relative_gap(ours, theirs):
    """The largest difference as a share of the largest value."""
    return jnp.max(jnp.abs(ours - theirs)) / jnp.max(jnp.abs(theirs))


@pytest.mark.parametrize("terms, buckets", [("both", 16), ("both", -1), ("c2p", 16), ("p2c", 16)])
def test_the_kernel_is_the_plain_form(interpreted, terms, buckets):
    assert max(difference(*arguments(200, buckets, terms))) < 1e-5


@pytest.mark.parametrize("length, segments", [(40, 1), (128, 3), (300, 5)])
def test_the_kernel_is_the_plain_form_at_any_length(interpreted, length, segments):
    assert max(difference(*arguments(length, segments=segments))) < 1e-5


def test_the_kernel_drops_the_weights_that_the_plain_form_drops(interpreted):
    case, key = arguments(128, segments=3), jax.random.key(0)
    assert max(difference(*case, 0.25, key)) < 1e-5
    kept, _ = FUSED(*case[:1], np.ones((ROWS, 128, HEADS * SIZE), np.float32), *case[1:], 0.0, None)
    dropped, _ = FUSED(*case[:1], np.ones((ROWS, 128, HEADS * SIZE), np.float32), *case[1:], 0.25, key)
    assert jnp.max(jnp.abs(kept[1] - dropped[1])) > 0.1


def test_with_a_reversed_index_the_forms_differ(interpreted):
    arrays, index, mask = arguments(128, segments=3)
    assert min(difference(arrays, index, mask, fused_index=index.T)) > 0.1


def test_in_bfloat16_the_kernel_is_as_exact_as_the_plain_form(interpreted):
    arrays, index, mask = arguments(128, segments=3)
    weight = np.random.default_rng(1).standard_normal((ROWS, 128, HEADS * SIZE)).astype(np.float32)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), arrays)
    exact = PLAIN(jax.tree.map(lambda x: x.astype(np.float32), narrow), weight, index, mask, 0.0, None)
    gaps = {}
    for name, form in (("fused", FUSED), ("plain", PLAIN)):
        (_, mixed), grads = form(narrow, weight, index, mask, 0.0, None)
        assert mixed.dtype == jnp.bfloat16 and {x.dtype for x in grads} == {jnp.dtype(jnp.bfloat16)}
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), (mixed, grads))
        gaps[name] = [
            relative_gap(a, b) for a, b in zip(*map(jax.tree.leaves, (wide, (exact[0][1], exact[1]))), strict=True)
        ]
    assert max(gaps["fused"]) < 0.02
    assert all(ours < 2 * theirs for ours, theirs in zip(gaps["fused"], gaps["plain"], strict=True))


def grouped_step(form, mesh, remat):
    """Gradients of a stack of attentions for several groups at once, on devices that share groups and rows.

    As a training step has them: `shard_map` by hand, `vmap` over groups, `scan` over layers, recomputed if `remat`.
    """

    def loss(tables, x, index, mask, key):
        def layer(x, layer):
            table, layer_key = layer
            heads = x.reshape(*x.shape[:2], HEADS, SIZE)
            mixed = form(heads, heads, heads, table, table, index, mask, SIZE**-0.5, 0.2, layer_key)
            return x + mixed, None

        keys = jax.random.split(key, tables.shape[0])
        x, _ = jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, (tables, keys))
        return jnp.mean(x**2)

    def step(tables, x, index, mask, keys):
        grads = jax.vmap(jax.grad(loss), in_axes=(0, 0, None, 0, 0))(tables, x, index, mask, keys)
        return jax.lax.pmean(grads, "data")

    group, rows = jax.P("group"), jax.P("group", "data")
    return jax.jit(
        jax.shard_map(
            step, mesh=mesh, in_specs=(group, rows, jax.P(), rows, group), out_specs=group, check_vma=False
        )
    )  # fmt: skip


def grouped_arguments():
    """Two groups' tables of two layers, rows, index, mask and keys."""
    (query, _, _, table, _), index, mask = arguments(128, segments=3)
    generator = np.random.default_rng(2)
    tables = generator.standard_normal((2, 2, *table.shape)).astype(np.float32)
    x = generator.standard_normal((2, *query.shape[:2], HEADS * SIZE)).astype(np.float32)
    return tables, x, index, jnp.stack([mask, mask[::-1]]), jax.random.split(jax.random.key(3), 2)


def test_the_kernel_works_inside_a_training_step_of_groups(interpreted):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("group", "data"))
    case = grouped_arguments()
    fused = grouped_step(functools.partial(disentangled.attend, interpret=True), mesh, True)(*case)
    plain = grouped_step(relative.plain_attention, mesh, True)(*case)
    assert jnp.max(jnp.abs(plain[0] - plain[1])) > 0.1 * jnp.max(jnp.abs(plain))
    assert relative_gap(fused, plain) < 1e-5


@pytest.mark.parametrize("platform, length, fused", [("tpu", 128, True), ("tpu", 2048, False), ("cpu", 128, False)])
def test_tpus_get_the_kernel_and_others_the_plain_form(platform, length, fused):
    arrays, index, mask = jax.eval_shape(lambda: arguments(length))
    attend = jax.jit(lambda arrays, index, mask: relative.attention(*arrays, index, mask, 0.3, 0.0, None))
    text = attend.trace(arrays, index, mask).lower(lowering_platforms=(platform,)).as_text()
    assert ("tpu_custom_call" in text) == fused
    assert ("gather" in text) != fused


def test_old_tpus_get_the_plain_form(monkeypatch):
    assert disentangled.supported(128)
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(device_kind="TPU v4")])
    assert not disentangled.supported(128)


@pytest.mark.parametrize("kind, fused", [("TPU v4", False), ("TPU v5", True)])
def test_the_mesh_that_is_compiled_for_decides(kind, fused):
    described = jax.sharding.AbstractDevice(device_kind=kind, num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=described)
    with jax.sharding.use_abstract_mesh(mesh):
        assert disentangled.supported(128) == fused


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_a_training_step_of_groups_compiles_for_a_tpu(topology):
    mesh = jax.sharding.Mesh(np.asarray(tpu_helpers.devices_or_skip(topology)[:4]).reshape(2, 2), ("group", "data"))
    place = jax.NamedSharding(mesh, jax.P())
    case = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), grouped_arguments())
    text = grouped_step(relative.attention, mesh, False).lower(*case).compile().as_text()
    assert "backward_kernel" in text
    # between the passes no scores are kept, not even those that the form not taken would keep
    kept = [line.split(" while(")[0] for line in text.splitlines() if " while(" in line]
    assert len(kept) == 2 and not re.search(r"f32\[[\d,]*128,128\]", "".join(kept))


@pytest.mark.parametrize("form", [attention_cost.skewed_bias, attention_cost.one_hot_bias])
def test_the_forms_that_the_bench_compares_are_one_function(form):
    (query, keys, _, position_key, position_query), index, _ = arguments(50)
    case = (query, keys, position_key, position_query, index)
    np.testing.assert_allclose(form(*case), relative.attention_bias(*case), rtol=0, atol=1e-5)
