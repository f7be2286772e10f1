"""Trains a language model on packed texts by next-token loss.

Dimensions: K steps, N shares of a step's texts (one for each device of the data axis), b texts in a share.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scpo_jax import language_model, optimizer, sharding, skipping
from scpo_jax.data import order, packing
from scpo_jax.data.batches import NO_TEXT
from scpo_jax.data.encoding import Text
from scpo_jax.models import module
from scpo_jax.models.module import RewardModel, TextBatch
from scpo_jax.train_reward import platform_of
from scpo_jax.training_state import TrainingState


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything that decides what a training does, apart from the texts and the initial parameters."""

    max_steps: int
    batch_size: int  # texts a step
    learning_rate: float  # at its peak; from there a linear decay to 0
    warmup_steps: int
    max_grad_norm: float
    seed: int
    dtype: str


class Program(NamedTuple):
    """A compiled training step, and where its arrays live."""

    mesh: Mesh
    width: int  # of the model
    step: Callable  # (params, opt_state, batch, rate, k) -> (params, opt_state, metrics)
    init: Callable  # params -> opt_state
    specs: dict  # of the parameters


def make_program(model: RewardModel, mesh: Mesh, options: Options, axes: tuple[str, ...]) -> Program:
    """The training step: the loss is the mean over all response tokens of the step.

    The rows of a batch are shared out over data, parameters over `axes` of the mesh; the compiler splits the work.
    A step whose loss or gradient norm is not finite changes nothing; the metric `skipped` counts such steps so far.
    """
    transform, shapes = optimizer.adamw(0.0), module.abstract_params(model)
    specs = sharding.specs_of_one((shapes, jax.eval_shape(transform.init, shapes)), mesh, axes)
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), (*specs, P("data"), P()))

    def loss_of(params, batch: TextBatch):
        total, count = language_model.next_token_loss(model, params, batch, options.dtype)
        return total / jnp.maximum(count, 1), count

    def step(params, opt_state, batch: TextBatch, rate, k):
        (loss, count), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, batch)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)))
        clipped = optimizer.clip(gradients, norm, options.max_grad_norm)
        updates, new_state = transform.update(clipped, opt_state, params)
        new = optimizer.descend(params, updates, rate), new_state
        keep = functools.partial(jnp.where, jnp.isfinite(loss) & jnp.isfinite(norm))
        params, opt_state = jax.tree.map(keep, new, (params, opt_state))
        skipped = (k + 1 - optimizer.updates_made(opt_state)).astype(jnp.float32)
        return params, opt_state, {"loss": loss, "grad_norm": norm, "tokens": count, "skipped": skipped}

    compiled = jax.jit(
        step, donate_argnums=(0, 1), in_shardings=(*places, places[3]), out_shardings=(*places[:2], places[3])
    )
    return Program(mesh, model.width, compiled, jax.jit(transform.init, out_shardings=places[1]), specs[0])


class Plan(NamedTuple):
    """What every step learns from: a pure function of texts, options and mesh."""

    texts: np.ndarray  # [K, N, b] index of each text of a share, -1 for none
    shapes: np.ndarray  # [K, 2] rows of each share, and their tokens
    rows: np.ndarray  # [K, N, b] row of each text in its share


def make_plan(texts: Sequence[Text], options: Options, program: Program) -> Plan:
    """Every step's texts, dealt to the shares of the data axis and packed in a few shapes."""
    lengths, platform = np.array([len(text.input_ids) for text in texts]), platform_of(program.mesh)
    drawn = order.shuffled(lengths, options.batch_size, options.seed, options.max_steps)
    dealt = packing.deal(drawn, lengths, program.mesh.shape["data"])
    tokens = np.where(dealt >= 0, lengths[dealt], 0)
    shapes = packing.choose_shapes([tokens], program.width, platform)
    assigned = packing.assign(tokens, shapes, program.width, platform)
    return Plan(dealt, assigned, packing.rows_of(tokens, assigned))


def batch_at(texts: Sequence[Text], plan: Plan, step: int) -> TextBatch:
    """The packed texts of a step, the rows of one share after those of the other."""
    shares = [[texts[i] if i >= 0 else NO_TEXT for i in share] for share in plan.texts[step]]
    packed = [packing.pack(share, rows, plan.shapes[step]) for share, rows in zip(shares, plan.rows[step], strict=True)]
    return TextBatch(*(np.concatenate(fields) for fields in zip(*packed, strict=True)))


def train(
    program: Program,
    params: dict,
    texts: Sequence[Text],
    options: Options,
    log: Callable[[int, dict], None],
    *,
    ids: Sequence[str] = (),
    state: TrainingState | None = None,
    max_skipped: int = 10,
) -> dict:
    """Trains from `params`, or goes on where `state` stands; returns whole parameters on the host.

    Args:
      log: called with (steps finished, metrics as floats, those that are finite).
      ids: what the pairs of the texts are called; () for the numbers of the texts.
      state: saves that of the training.
      max_skipped: skipped steps in a row that end it with an InputError.
    """
    plan, placed = make_plan(texts, options, program), sharding.place(params, program.mesh, program.specs)
    live = {"params": placed, "opt_state": program.init(placed)}
    first, live = state.restore(live) if state else (0, live)
    watch = skipping.Watch(["sft"], [ids], plan.texts[:, None], max_skipped, "config.policy.sft.learning_rate")
    for k in range(first, options.max_steps):
        rate = optimizer.learning_rate_at(k, "linear", options.learning_rate, options.max_steps, options.warmup_steps)
        live["params"], live["opt_state"], metrics = program.step(
            live["params"], live["opt_state"], batch_at(texts, plan, k), np.float32(rate), np.int32(k)
        )
        found = {name: float(value) for name, value in jax.device_get(metrics).items()} | {"learning_rate": rate}
        log(k + 1, {name: value for name, value in found.items() if math.isfinite(value)})
        watch.see(k + 1, 0, found["loss"], found["grad_norm"])
        if state and state.is_due(k + 1):
            state.save(k + 1, live)
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(program.mesh, P()))(live["params"])
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), whole)
