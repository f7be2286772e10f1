"""Costs read off HLO text: on texts made by hand, and against programs with their loops written out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scpo_jax import hlo
from tests import tpu_helpers

pytestmark = pytest.mark.filterwarnings("error:::(jax|flax|scpo_jax|tests).*")

LOOPS = """HloModule jit_step, is_scheduled=true

%fused (p.0: f32[8,4], p.1: f32[4,16]) -> f32[8,16] {
  %p.0 = f32[8,4]{1,0} parameter(0)
  %p.1 = f32[4,16]{1,0} parameter(1)
  ROOT %dot.1 = f32[8,16]{1,0} dot(%p.0, %p.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%inner_body (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %arg = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)S(1)}) parameter(0)
  %x = f32[8,4]{1,0:T(8,128)S(1)} get-tuple-element(%arg), index=1
  %scaled = f32[8,4]{1,0} negate(%x), config={"estimated_cycles":"7"}
  ROOT %out = (s32[]{:T(128)}, /*index=1*/f32[8,4]{1,0:T(8,128)S(1)}) tuple(%x, %scaled)
}

%cond (arg.1: (s32[], f32[8,4])) -> pred[] {
  %arg.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

%outer_body (arg.2: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %arg.2 = (s32[], f32[8,4]{1,0}) parameter(0)
  %w = f32[4,16]{1,0} constant({...})
  %y = f32[8,4]{1,0} get-tuple-element(%arg.2), index=1
  %product = f32[8,16]{1,0} fusion(%y, %w), kind=kOutput, calls=%fused, config={"estimated_cycles":"100"}
  %reduced = f32[8,16]{1,0} all-reduce(%product), replica_groups={{0,1}}, to_apply=%add
  ROOT %inner = (s32[], f32[8,4]{1,0}) while(%arg.2), condition=%cond, body=%inner_body, \
metadata={op_name="step/while/body/while"}
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b), backend_config={"note":"runs as part of the all-reduce"}
}

ENTRY %main (param: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %param = (s32[], f32[8,4]{1,0}) parameter(0)
  %v = f32[8,4]{1,0} get-tuple-element(%param), index=1
  %gather = (f32[8,4]{1,0}, f32[16,4]{1,0}) all-gather-start(%v), dimensions={0}
  %gathered = f32[16,4]{1,0} all-gather-done(%gather)
  %permute = (bf16[6]{0}, bf16[6]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%narrow), channel_id=1
  %narrow = bf16[6]{0} convert(%v)
  %permuted = bf16[6]{0} collective-permute-done(%permute)
  %scatter = f32[4,4]{1,0} reduce-scatter(%v), dimensions={0}, to_apply=%add
  %copy = f32[8,4]{1,0} copy(%v), config={"estimated_cycles":"5"}
  ROOT %outer = (s32[], f32[8,4]{1,0}) while(%param), condition=%cond, body=%outer_body, \
metadata={op_name="step/while" stack_frame_id=1}
}
"""
TRIPS = {r"body/while$": 3, "step/while$": 5}
KERNEL = """HloModule k

ENTRY %main (p: bf16[8]) -> bf16[8] {
  %p = bf16[8]{0} parameter(0)
  ROOT %call = bf16[8]{0} custom-call(%p), custom_call_target="tpu_custom_call", metadata={op_name="f/forward"}, \
config={"cost_estimate":{"flops":"640","bytes_accessed":"32"}}
}
"""


def test_cycles_count_a_loop_as_often_as_it_runs():
    assert hlo.cycles(hlo.parse(LOOPS), TRIPS) == 5 + 5 * (100 + 3 * 7)
    assert hlo.cycles(hlo.parse(LOOPS), {"": 1}) == 5 + 100 + 7


def test_a_loop_without_a_count_is_an_error():
    with pytest.raises(ValueError, match="inner.*body/while"):
        hlo.cycles(hlo.parse(LOOPS), {"step/while$": 5})


def test_a_count_in_the_text_holds():
    text = LOOPS.replace("body=%inner_body", 'body=%inner_body, config={"known_trip_count":{"n":"2"}}')
    assert hlo.cycles(hlo.parse(text), TRIPS) == 5 + 5 * (100 + 2 * 7)


def test_bytes_of_collectives():
    assert hlo.collective_bytes(hlo.parse(LOOPS), TRIPS) == {
        "all-reduce": 5 * 8 * 16 * 4,
        "all-gather": 16 * 4 * 4,  # the output; its done is not counted again
        "collective-permute": 6 * 2,
        "reduce-scatter": 8 * 4 * 4,  # the input
    }


def test_a_collective_beside_other_work_counts_once():
    """TPUs repeat it in the fusion that starts it, in those it runs beside and in the one that waits for it."""
    names = ("start", "beside", "done")
    fused = [
        f"%fused_{name} (p: f32[2]) -> f32[4] {{\n  %p = f32[2]{{0}} parameter(0)\n"
        f"  ROOT %gather_{name} = f32[4]{{0}} all-gather(%p), channel_id=1, dimensions={{0}}\n}}\n"
        for name in names
    ]
    calls = "\n".join(f"  %{name} = f32[4]{{0}} fusion(%q), kind=kCustom, calls=%fused_{name}" for name in names)
    text = "".join(fused) + f"ENTRY %main (q: f32[2]) -> f32[4] {{\n  %q = f32[2]{{0}} parameter(0)\n{calls}\n}}\n"
    assert hlo.collective_bytes(hlo.parse(text), {}) == {"all-gather": 16}
    assert hlo.collective_bytes(hlo.parse(text.replace("channel_id=1, ", "")), {}) == {"all-gather": 48}


def test_flops_of_a_product_inside_a_fusion():
    assert hlo.product_flops(hlo.parse(LOOPS), TRIPS) == 5 * 2 * 8 * 16 * 4


def test_a_kernel_is_never_free():
    module = hlo.parse(KERNEL)
    with pytest.raises(ValueError, match="call"):
        hlo.cycles(module, {})
    assert hlo.cycles(module, {}, {"f/forward": 70}) == 70
    assert hlo.product_flops(module, {}) == 640


def test_what_kernels_state_of_themselves():
    assert list(hlo.kernels(hlo.parse(KERNEL), {})) == [(640, 32, 1)]
    with pytest.raises(ValueError, match="call"):
        list(hlo.kernels(hlo.parse(KERNEL.replace("cost_estimate", "note")), {}))


def test_the_compiler_s_own_softmax_is_not_free():
    text = """HloModule s

ENTRY %main (p: f32[3,2,8,8], v: f32[3,2,8,4]) -> f32[3,2,8,4] {
  %p = f32[3,2,8,8]{3,2,1,0} parameter(0)
  %v = f32[3,2,8,4]{3,2,1,0} parameter(1)
  ROOT %online-softmax.1 = f32[3,2,8,4]{3,2,1,0} custom-call(%p, %v), custom_call_target="tpu_custom_call"
}
"""
    operations, moved = 2 * 3 * 2 * 8 * 8 * 4, 4 * 3 * 2 * 8 * (8 + 4 + 4)
    assert list(hlo.kernels(hlo.parse(text), {})) == [(operations, moved, 1)]
    assert hlo.product_flops(hlo.parse(text), {}) == operations


def test_text_without_a_program_is_an_error():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("nothing")


@pytest.mark.parametrize("kind, bytes_", [("pred", 12), ("bf16", 24), ("f32", 48), ("s4", 6), ("f8e4m3fn", 12)])
def test_bytes_of_arrays(kind, bytes_):
    assert hlo.array_bytes(f"({kind}[3,4]{{1,0:T(8,128)S(1)}}, u32[])") == [bytes_, 4]


def test_flops_of_convolutions_that_stand_for_batched_products():
    """As TPUs write `[3, 8, 4] @ [3, 4, 16]`: the batch is an axis of the window, which meets its input once a step."""
    line = (
        "  %c = f32[3,8,16]{2,1,0} convolution(%a, %b), window={size=3 stride=2 pad=0_0 lhs_dilate=3}, "
        "dim_labels=0bf_0io->0bf"
    )
    computation = {name: hlo.parse_instruction(f"  %{name} = {shape} parameter(0)") for name, shape in
                   (("a", "f32[3,8,4]{2,1,0}"), ("b", "f32[3,4,16]{2,1,0}"))}  # fmt: skip
    assert hlo.flops(computation, hlo.parse_instruction(line)) == 2 * 3 * 8 * 4 * 16
    whole = "  %c = f32[8,16]{1,0} convolution(%a, %b), dim_labels=bf_io->bf"
    computation = {"a": hlo.parse_instruction("  %a = f32[8,4] parameter(0)"),
                   "b": hlo.parse_instruction("  %b = f32[4,16] parameter(1)")}  # fmt: skip
    assert hlo.flops(computation, hlo.parse_instruction(whole)) == 2 * 8 * 4 * 16


def loss(w, x, unrolled: bool):
    """A stack of layers, by a loop or written out, whose matrices' columns are shared by the devices of an axis."""

    def layer(x, w):
        scores = jnp.tanh(jnp.einsum("rtd,rsd->rts", x, x) / 8)
        mixed = jnp.einsum("rts,rsd->rtd", scores, x) @ w
        return jnp.tanh(jax.lax.all_gather(mixed, "model", axis=2, tiled=True)), None

    if unrolled:
        for one in w:
            x, _ = layer(x, one)
    else:
        x, _ = jax.lax.scan(layer, x, w)
    return jnp.mean(x**2)


def compiled_step(devices, unrolled: bool):
    """The gradient for w and x of two layers, averaged over the devices that share the rows."""

    def step(w, x):
        d_w, d_x = jax.grad(loss, argnums=(0, 1))(w, x, unrolled)
        return jax.lax.pmean(d_w, "data"), d_x

    mesh = jax.sharding.Mesh(np.asarray(devices).reshape(min(len(devices), 2), -1), ("data", "model"))
    specs = jax.P(None, None, "model"), jax.P("data")
    shapes = (2, 256, 256), (8, 128, 256)
    arguments = (
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    )
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False)
    return jax.jit(mapped).lower(*arguments).compile()


def loop_and_written_out(devices):
    """The step compiled in both ways; its products are checked to cost the same."""
    loop, unrolled = (hlo.parse(compiled_step(devices, unrolled).as_text()) for unrolled in (False, True))
    flops = hlo.product_flops(unrolled, {})
    assert math.isclose(hlo.product_flops(loop, {"": 2}), flops, rel_tol=0.02)
    return loop, unrolled, flops


def test_a_loop_costs_what_its_layers_cost():
    _, _, flops = loop_and_written_out(jax.devices()[:1])
    # forward two products of [128, 256] with [128, 256] and one with [256, 256] for each of 8 rows; backward twice that
    assert flops == 2 * 8 * 3 * 2 * (2 * 128 * 128 * 256 + 128 * 256 * 256)


@pytest.mark.parametrize("topology", ["v5e:2x2"])
def test_a_loop_costs_what_its_layers_cost_on_a_tpu(topology):
    loop, unrolled, flops = loop_and_written_out(tpu_helpers.devices_or_skip(topology)[:4])
    assert hlo.product_flops(loop, {"": 1}) < 0.6 * flops  # what XLA itself says
    moved, wanted = hlo.collective_bytes(loop, {"": 2}), hlo.collective_bytes(unrolled, {})
    assert wanted and sum(moved.values()) == pytest.approx(sum(wanted.values()), rel=0.02), (moved, wanted)
    # so small a loop takes longer than its layers written out, which stay in fast memory: 8e4 cycles against 4e4
    assert hlo.cycles(loop, {"": 2}) >= hlo.cycles(unrolled, {}) > 0
