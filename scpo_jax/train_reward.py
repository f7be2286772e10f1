"""Trains reward models on weighted preference pairs: several groups' from the global one, or the global one itself."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scpo_jax import optimizer, score, sharding, skipping, train_step
from scpo_jax.data import batches, order, packing
from scpo_jax.data.batches import Pairs
from scpo_jax.models import lora
from scpo_jax.score import ScoreFunction
from scpo_jax.training_state import TrainingState


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything that decides what a training does, apart from the data and the initial parameters."""

    max_steps: int
    learning_rate: float
    batch_size: int
    warmup_steps: int
    schedule: str
    weight_decay: float
    max_grad_norm: float
    center_rewards_coefficient: float
    eval_every: int
    batch_order: str
    seed: int
    dtype: str


def options_from(config, group: str) -> Options:
    """The options of a group's training: `config.train` with the overrides of `config.per_group`."""
    train = {
        field.name: config.train[field.name] for field in dataclasses.fields(Options) if field.name in config.train
    }
    overrides = {key: value for name, key, value in config.per_group if name == group and key in train}
    return Options(**{**train, **overrides}, seed=derived_seed(config.seed, group), dtype=config.model.dtype)


def global_options_from(config) -> Options:
    """The options of the global RM's own training: `config.train` but for rate, steps and batch size."""
    own = {key: config.global_rm[key] for key in ("max_steps", "learning_rate", "batch_size")}
    return dataclasses.replace(
        options_from(config, ""), **own, eval_every=0, batch_order="shuffled", seed=derived_seed(config.seed, "global")
    )


def derived_seed(seed: int, name: str) -> int:
    """A seed for the thing called `name`; it does not depend on which other things there are."""
    return zlib.crc32(f"{seed}/{name}".encode())


class Training(NamedTuple):
    """One of the RMs that are trained at once; their options differ in steps, rate and seed only."""

    name: str
    pairs: Pairs
    options: Options
    held_out: Pairs | None = None  # to choose the step by; None takes the last


def order_of(pairs: Pairs, options: Options) -> np.ndarray:
    """Indices `[K, B]` of the pairs of every step, -1 for none: a pure function of the pairs and the options."""
    if options.batch_order == "reference":
        return order.reference(len(pairs.weights), options.batch_size, options.max_steps)
    lengths = batches.lengths_of(pairs).sum(1)
    return order.shuffled(lengths, options.batch_size, options.seed, options.max_steps)


def deal(trainings: Sequence[Training], mesh: Mesh) -> batches.Dealt:
    """The pairs of every step of trainings that run at once, dealt to the groups and shares of a mesh."""
    orders = [order_of(training.pairs, training.options) for training in trainings]
    return batches.deal([t.pairs for t in trainings], orders, padded(len(trainings), mesh), mesh.shape["data"])


def choose_shapes(at_once: Sequence[Sequence[Training]], mesh: Mesh, width: int) -> np.ndarray:
    """The shapes `[n, 2]` that the steps of trainings, run one lot after the other, are packed in."""
    lengths = [deal(trainings, mesh).lengths for trainings in at_once]
    return packing.choose_shapes(lengths, width, platform_of(mesh))


def platform_of(mesh: Mesh) -> str:
    """Of the devices of a mesh: "cpu", "tpu", "gpu" or another."""
    return mesh.devices.flat[0].platform


def padded(groups: int, mesh: Mesh) -> int:
    """G: the groups and the inert ones beside them, so that the group axis divides their number."""
    return -(-groups // mesh.shape["group"]) * mesh.shape["group"]


class Validation(NamedTuple):
    """Held-out pairs and the compiled score function to judge a step by."""

    score: ScoreFunction
    pairs: Pairs
    frozen: dict  # the parameters that are not trained

    def correct(self, trained) -> np.ndarray:
        """1.0 for every held-out pair that the parameters get strictly right, `[N]`.

        Unlike a loss this does not mind the scale of the rewards, which weights change.
        """
        params = lora.join(trained, self.frozen)
        scores = score.score_texts(self.score, params, [*self.pairs.chosen, *self.pairs.rejected])
        chosen, rejected = np.split(batches.own_scores(scores, self.pairs.columns), 2)
        return (chosen > rejected).astype(np.float32)


def clearly_better(correct: np.ndarray, best: np.ndarray) -> bool:
    """Whether the mean of `correct` `[N]` exceeds that of `best` by more than one standard error of their difference.

    The one-standard-error rule, paired: few held-out pairs make the best of several steps look better than it is.
    """
    difference = correct - best
    return bool(difference.mean() > difference.std() / np.sqrt(len(difference)))


class Trained(NamedTuple):
    """What a training gives: the parameters of its best step by validation, of the last one without."""

    params: dict
    step: int


def train(
    program: train_step.Program,
    params: dict,
    trainings: Sequence[Training],
    *,
    log: Callable[[int, int, dict], None],
    score_function: ScoreFunction,
    shapes: np.ndarray | None = None,
    state: TrainingState | None = None,
    max_skipped: int = 10,
) -> list[Trained]:
    """Trains one RM from `params` for each of `trainings`, all at once, or goes on where `state` stands.

    Args:
      params: initial parameters of one RM; left as they are. With adapters these and the score head are trained.
      log: called with (which training, steps finished, metrics as floats), in the order of the steps.
      score_function: compiled, judges held-out pairs before the first step, then every `options.eval_every` steps.
      shapes: that steps are packed in, as `choose_shapes` chose them; None chooses for these trainings alone.
      state: saves that of the training.
      max_skipped: skipped steps in a row, of one training, that end all with an InputError.
    """
    groups, pairs = padded(len(trainings), program.mesh), [t.pairs for t in trainings]
    shapes = choose_shapes([trainings], program.mesh, program.width) if shapes is None else shapes
    plan = batches.plan(deal(trainings, program.mesh), program.width, shapes, platform_of(program.mesh))
    rates, seeds = rates_of(trainings, groups), np.resize([t.options.seed for t in trainings], groups).astype(np.uint32)
    initial, base = lora.split(params)
    judges = [Validation(score_function, t.held_out, base) if t.held_out else None for t in trainings]
    live, frozen = start(program, initial, groups, judges), place_frozen(program, base)
    first, live = state.restore(live) if state else (0, live)
    if not first:
        for g, correct in live["best_correct"].items():
            log(int(g), 0, validation_metrics(correct, correct))
    watch = skipping.Watch([t.name for t in trainings], [own.ids for own in pairs], plan.pairs, max_skipped)
    pending = None
    for k in range(first, len(plan.pairs)):
        batch = sharding.shares_of(functools.partial(batches.batch_at, pairs, plan, k), program.mesh, groups)
        numbers = (plan.pairs[k] >= 0).sum((1, 2), dtype=np.int32), rates[k], seeds, np.int32(k)
        numbers = sharding.place(numbers, program.mesh, (*[P("group")] * 3, P()))
        with jax.transfer_guard("disallow"):  # all that a step reads is on the devices by now
            live["params"], live["opt_state"], metrics = program.step(
                live["params"], live["opt_state"], batch, *numbers, frozen
            )
        if pending:  # one step late, so that the host prepares the next batch while the device computes
            log_step(log, watch, *pending)
        pending = k + 1, metrics, rates[k, : len(trainings)], {}
        for g, judge in enumerate(judges):
            options = trainings[g].options
            if judge and k < options.max_steps and ((k + 1) % options.eval_every == 0 or k + 1 == options.max_steps):
                pending[-1][g] = keep_best(live, g, k + 1, judge, program.mesh)
        if state and state.is_due(k + 1):
            log_step(log, watch, *pending)
            pending = None
            state.save(k + 1, live)
    if pending:
        log_step(log, watch, *pending)
    kept = [("best", int(live["best_step"][g])) if judge else ("params", None) for g, judge in enumerate(judges)]
    return [
        Trained(lora.join(group_of(live[which], g, program.mesh), base), t.options.max_steps if step is None else step)
        for g, (t, (which, step)) in enumerate(zip(trainings, kept, strict=True))
    ]


def start(program: train_step.Program, params: dict, groups: int, judges: Sequence[Validation | None]) -> dict:
    """The state of trainings before their first step."""
    stacked = jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf), (groups, *leaf.shape)), params)
    stacked = sharding.place(stacked, program.mesh, program.specs)
    correct = {str(g): judge.correct(params) for g, judge in enumerate(judges) if judge}
    best = jax.tree.map(jnp.copy, stacked) if correct else {}
    live = {"params": stacked, "opt_state": program.init(stacked), "best": best}
    return live | {"best_step": np.zeros(groups, np.int32), "best_correct": correct, "first_correct": correct}


def place_frozen(program: train_step.Program, base: dict) -> dict:
    """The parameters that are not trained, as the program reads them."""
    narrowed = jax.tree.map(lambda leaf, like: np.asarray(leaf).astype(like.dtype), base, program.frozen)
    return sharding.place(narrowed, program.mesh, jax.tree.map(lambda like: like.sharding.spec, program.frozen))


def bytes_held(program: train_step.Program, params: dict, trainings: Sequence[Training]) -> int:
    """Bytes on each device that do not grow with the batch; activations come on top."""
    groups = padded(len(trainings), program.mesh) // program.mesh.shape["group"]
    copies = 4 + any(training.held_out for training in trainings)  # itself, gradient, AdamW's two moments; the best

    def own(leaf, spec) -> int:
        return leaf.nbytes // math.prod(program.mesh.shape[axis] for axis in spec[1:] if axis)

    trained = jax.tree.map(own, lora.split(params)[0], program.specs)
    frozen = (math.prod(s.sharding.shard_shape(s.shape)) * s.dtype.itemsize for s in jax.tree.leaves(program.frozen))
    return groups * copies * sum(jax.tree.leaves(trained)) + sum(frozen)


def rates_of(trainings: Sequence[Training], groups: int) -> np.ndarray:
    """The learning rate of every step and group, `[K, G]`; -1 where a group has ended or is inert."""
    rates = np.full((max(t.options.max_steps for t in trainings), groups), -1, np.float32)
    for g, (_, _, options, _) in enumerate(trainings):
        rates[: options.max_steps, g] = [
            optimizer.learning_rate_at(
                k, options.schedule, options.learning_rate, options.max_steps, options.warmup_steps
            )
            for k in range(options.max_steps)
        ]
    return rates


def group_of(params: dict, group: int, mesh: Mesh) -> dict:
    """The parameters of one group of `[G, ...]`, brought together on a device of this process."""
    whole = _picker(mesh)(params, sharding.place(np.int32(group), mesh, P()))
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)


@functools.cache
def _picker(mesh: Mesh) -> Callable:
    """The compiled function (params `[G, ...]`, group) -> params of that group, whole on every device."""

    def pick(leaf, group):
        if mesh.shape["group"] == 1:
            return leaf[group]
        # as a sum, else devices would first be sent all groups
        return jnp.sum(jnp.where(of_group(leaf, group), leaf, 0), 0, dtype=leaf.dtype)

    def pick_all(params, group):
        return jax.tree.map(lambda leaf: pick(leaf, group), params)

    return jax.jit(pick_all, out_shardings=NamedSharding(mesh, P()))


def of_group(leaf, group: jax.Array) -> jax.Array:
    """Mask `[G, 1, ...]` of a group's part of `[G, ...]`."""
    return (jnp.arange(len(leaf)) == group).reshape(-1, *[1] * (leaf.ndim - 1))


@functools.partial(jax.jit, donate_argnums=0)
def _replaced(best: dict, new: dict, group: jax.Array) -> dict:
    """`best` `[G, ...]` with one group's parameters of `new`; each device changes its share."""
    return jax.tree.map(lambda old, new: jnp.where(of_group(old, group), new, old), best, new)


def log_step(
    log: Callable, watch: skipping.Watch, step: int, metrics: dict, rates: np.ndarray, validation: dict[int, dict]
) -> None:
    """Logs what is finite of a step of every group in training; waits for the device. Raises InputError, see Watch."""
    metrics = jax.device_get(metrics)
    for g in map(int, np.flatnonzero(rates >= 0)):
        own = {name: float(values[g]) for name, values in metrics.items()} | {"learning_rate": float(rates[g])}
        log(g, step, {name: value for name, value in own.items() if math.isfinite(value)} | validation.get(g, {}))
        watch.see(step, g, own["loss"], own["grad_norm"])


def keep_best(live: dict, group: int, step: int, judge: Validation, mesh: Mesh) -> dict:
    """Judges a group's parameters after `step` steps, keeps them if clearly better than its best; their metrics.

    Every process gets the same scores and so decides the same.
    """
    correct = judge.correct(group_of(live["params"], group, mesh))
    if clearly_better(correct, live["best_correct"][str(group)]):
        live["best"] = _replaced(live["best"], live["params"], sharding.place(np.int32(group), mesh, P()))
        live["best_step"] = np.where(np.arange(len(live["best_step"])) == group, np.int32(step), live["best_step"])
        live["best_correct"] = live["best_correct"] | {str(group): correct}
    return validation_metrics(correct, live["first_correct"][str(group)])


def validation_metrics(correct: np.ndarray, first: np.ndarray) -> dict[str, float]:
    """Accuracy on held-out pairs: on all, on those that were right before the first step, and on the others.

    Trainings start from the global RM, so these are the agreed pairs and the edited ones (with ties).

    Args:
      correct, first: of `Validation.correct`, now and before the first step, `[N]`.
    """
    parts = {"accuracy": correct, "agreed": correct[first > 0], "edited": correct[first == 0]}
    return {f"validation_{name}": float(own.mean()) for name, own in parts.items() if len(own)}
