"""The compiled training step: G groups' reward models at once, on a mesh of devices.

Dimensions: G groups, N shares of a step's pairs (one for each device of the data axis), b pairs in a share.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scpo_jax import losses, optimizer, sharding
from scpo_jax.data import batches
from scpo_jax.data.batches import PairBatch
from scpo_jax.models import lora, module
from scpo_jax.models.module import RewardModel, TextBatch


class Program(NamedTuple):
    """A compiled training step of G groups, and where its arrays live."""

    mesh: Mesh
    width: int  # of the model
    step: Callable  # (params, opt_state, batch, count, rates, seeds, k, frozen) -> (params, opt_state, metrics)
    init: Callable  # params -> opt_state
    specs: dict  # of the parameters that are trained
    state_specs: tuple  # of opt_state
    frozen: dict  # the parameters that are not, which all groups share: shapes and places; {} without adapters


@functools.cache
def make_program(
    model: RewardModel,
    mesh: Mesh,
    *,
    dtype: str,
    weight_decay: float,
    max_grad_norm: float,
    center_rewards_coefficient: float,
    remat: bool = False,
    shard_parameters: bool = True,
) -> Program:
    """The training step of G groups' RMs; rates, seeds and lengths are arguments of the step.

    Parameters and optimizer state are `[G, ...]`, shared out by `sharding.RULES`; each device computes its groups'
    losses on its share of the pairs. Of a model with adapters these are the adapters and the score head: the base is
    an argument of its own without G, in `dtype` where that changes no score. What the axes group and data do is written
    out here; products shared over the axis model are the compiler's work. A group with rate -1 has ended and does not
    change. Neither does one whose loss or gradient norm is not finite; the metric `skipped` counts such steps so far.
    The same arguments give the same program: what a process trains with it, a shape is compiled once.

    Args:
      dtype: of the model's products, "float32" or "bfloat16".
      weight_decay, max_grad_norm: of AdamW; see `optimizer`.
      center_rewards_coefficient: of the loss; unless above 0 the score head's bias has no gradient and stays.
      remat: compute each layer again in the backward pass instead of keeping its inner values.
      shard_parameters: over data too, gathered layer by layer; else each share of the data has them whole.
    """
    transform = optimizer.adamw(weight_decay)
    one, base = lora.split(module.abstract_params(model))
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((mesh.shape["group"], *leaf.shape), leaf.dtype), one)
    axes = sharding.AXES if shard_parameters else ("group", "model")
    specs, frozen_specs = sharding.specs(stacked, mesh, axes), sharding.specs_of_one(base, mesh, axes)
    state_specs = sharding.specs(jax.eval_shape(jax.vmap(transform.init), stacked), mesh, axes)
    shared = jax.tree.map(lambda spec: "data" in spec, specs)

    def loss_of(params, frozen, batch: PairBatch, count, key):
        whole = lora.join(params, frozen)
        scores = model.score(whole, batch.texts, key=key, dtype=dtype, remat=remat, gather=sharding.gather)
        chosen, rejected = jnp.split(batches.own_scores(scores, batch.columns), 2)
        loss = losses.weighted_bradley_terry(
            chosen, rejected, batch.weights, margin=batch.margins, mask=batch.mask, count=count,
            center_rewards_coefficient=center_rewards_coefficient,
        )  # fmt: skip
        return loss, {
            "accuracy": losses.masked_mean((chosen > rejected).astype(jnp.float32), batch.mask, count),
            "rewards/chosen": losses.masked_mean(chosen, batch.mask, count),
            "rewards/rejected": losses.masked_mean(rejected, batch.mask, count),
        }

    def step_of_group(params, opt_state, batch: PairBatch, count, rate, seed, k, frozen):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), k), jax.lax.axis_index("data"))
        (loss, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, frozen, batch, count, key)
        metrics = jax.lax.psum({"loss": loss, **metrics}, "data")
        # the gradient of a parameter that was gathered is scattered and summed already
        gradients = jax.tree.map(lambda g, done: g if done else jax.lax.psum(g, "data"), gradients, shared)
        if not center_rewards_coefficient:
            gradients = optimizer.freeze_score_bias(gradients)
        norm = sharding.global_norm(gradients, shared)
        clipped = optimizer.clip(gradients, norm, max_grad_norm)
        updates, new_state = transform.update(clipped, opt_state, params)
        new = optimizer.descend(params, updates, rate), new_state
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        keep = functools.partial(jnp.where, (rate >= 0) & finite)
        params, opt_state = jax.tree.map(keep, new, (params, opt_state))
        skipped = (k + 1 - optimizer.updates_made(opt_state)).astype(jnp.float32)
        return params, opt_state, {**metrics, "grad_norm": norm, "skipped": skipped}

    def step_of_device(params, opt_state, batch, count, rates, seeds, k, frozen):
        batch = jax.tree.map(lambda leaf: leaf[:, 0], batch)
        return jax.vmap(step_of_group, in_axes=(0, 0, 0, 0, 0, 0, None, None))(
            params, opt_state, batch, count, rates, seeds, k, frozen
        )

    ours = ("group", "data") if mesh.shape["model"] > 1 else sharding.AXES
    groups, state = P("group"), sharding.over(ours, (specs, state_specs))
    given = (*state, P("group", "data"), groups, groups, groups, P(), sharding.over(ours, frozen_specs))
    step = jax.shard_map(
        step_of_device, mesh=mesh, in_specs=given, out_specs=(*state, groups), axis_names=set(ours), check_vma=False
    )
    # said once more for jit: else it would simplify the places of results, and compile the second step anew for them
    # metrics of all groups are everywhere: every process logs or follows them
    places = jax.tree.map(functools.partial(NamedSharding, mesh), (specs, state_specs, P()))
    compiled = jax.jit(step, donate_argnums=(0, 1), out_shardings=places)
    init = jax.jit(jax.vmap(transform.init), out_shardings=places[1])
    frozen = jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)),
        lora.narrowed(base, jnp.dtype(dtype), model.reads == "last"), frozen_specs,
    )  # fmt: skip
    return Program(mesh, model.width, compiled, init, specs, state_specs, frozen)


def step_arguments(program: Program, model: RewardModel, groups: int, pairs: int, shape: tuple[int, int]) -> tuple:
    """The arguments of `program.step` as shapes on its mesh, to compile it without any data.

    `groups` is a multiple of the group axis, `pairs` is b, of a share, and `shape` (R, T) that of its packed texts.
    """
    mesh = program.mesh

    def array(spec, dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def stacked(tree, specs):
        return jax.tree.map(lambda leaf, spec: array(spec, leaf.dtype, groups, *leaf.shape), tree, specs)

    def shares(dtype, *shape):
        return array(P("group", "data"), dtype, groups, mesh.shape["data"], *shape)

    one, _ = lora.split(module.abstract_params(model))
    state = stacked(jax.eval_shape(optimizer.adamw(0.0).init, one), program.state_specs)
    texts = TextBatch(*[shares(jnp.int32, *shape)] * 4, *[shares(jnp.int32, 2 * pairs)] * 2)
    columns = shares(jnp.int32, pairs) if model.heads else None
    batch = PairBatch(texts, *(shares(dtype, pairs) for dtype in (jnp.float32, jnp.float32, jnp.bool)), columns)
    numbers = (array(P("group"), dtype, groups) for dtype in (jnp.int32, jnp.float32, jnp.uint32))
    return stacked(one, program.specs), state, batch, *numbers, array(P(), jnp.int32), program.frozen
