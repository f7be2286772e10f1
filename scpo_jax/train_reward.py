"""Trains reward models on weighted preference pairs, those of many groups at once in one compiled program.

G groups, B pairs a step of which each device of the data axis computes b.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scpo_jax import losses, optimizer, score, sharding
from scpo_jax.checkpoint import TrainingState
from scpo_jax.data import batches, order
from scpo_jax.data.batches import PairBatch, Pairs
from scpo_jax.models import module
from scpo_jax.models.module import RewardModel, TextBatch
from scpo_jax.score import ScoreFunction


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


class Program(NamedTuple):
    """A compiled training step of G groups, and where its arrays live."""

    mesh: Mesh
    width: int  # of the model
    step: Callable  # (params, opt_state, batch, count, rates, seeds, k) -> (params, opt_state, metrics)
    init: Callable  # params -> opt_state
    specs: dict  # of the parameters
    state_specs: tuple  # of opt_state


def make_program(model: RewardModel, options: Options, mesh: Mesh) -> Program:
    """The program of trainings with the same batch size, decay, clipping, centring and compute type.

    Parameters and optimizer state are `[G, ...]`, shared out by `sharding.RULES`; each device computes its groups'
    losses on its share of the pairs. A group with rate -1 has ended and does not change.
    """
    transform = optimizer.adamw(options.weight_decay)
    one = module.abstract_params(model)
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((mesh.shape["group"], *leaf.shape), leaf.dtype), one)
    specs = sharding.specs(stacked, mesh)
    state_specs = sharding.specs(jax.eval_shape(jax.vmap(transform.init), stacked), mesh)
    shared = jax.tree.map(lambda spec: "data" in spec, specs)

    def loss_of(params, batch: PairBatch, count, key):
        rewards = model.score(params, batch.texts, key=key, dtype=options.dtype, gather=sharding.gather)
        chosen, rejected = jnp.split(rewards, 2)
        loss = losses.weighted_bradley_terry(
            chosen, rejected, batch.weights, margin=batch.margins, mask=batch.mask, count=count,
            center_rewards_coefficient=options.center_rewards_coefficient,
        )  # fmt: skip
        return loss, {
            "accuracy": losses.masked_mean((chosen > rejected).astype(jnp.float32), batch.mask, count),
            "rewards/chosen": losses.masked_mean(chosen, batch.mask, count),
            "rewards/rejected": losses.masked_mean(rejected, batch.mask, count),
        }

    def step_of_group(params, opt_state, batch: PairBatch, count, rate, seed, k):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), k), jax.lax.axis_index("data"))
        (loss, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, batch, count, key)
        metrics = jax.lax.psum({"loss": loss, **metrics}, "data")
        # the gradient of a parameter that was gathered is scattered and summed already
        gradients = jax.tree.map(lambda g, done: g if done else jax.lax.psum(g, "data"), gradients, shared)
        if not options.center_rewards_coefficient:
            gradients = optimizer.freeze_score_bias(gradients)
        norm = sharding.global_norm(gradients, shared)
        clipped = optimizer.clip(gradients, norm, options.max_grad_norm)
        updates, new_state = transform.update(clipped, opt_state, params)
        new = optimizer.descend(params, updates, rate), new_state
        keep = functools.partial(jnp.where, rate >= 0)
        params, opt_state = jax.tree.map(keep, new, (params, opt_state))
        return params, opt_state, {**metrics, "grad_norm": norm}

    def step_of_device(params, opt_state, batch, count, rates, seeds, k):
        batch = jax.tree.map(lambda leaf: leaf[:, 0], batch)
        return jax.vmap(step_of_group, in_axes=(0, 0, 0, 0, 0, 0, None))(
            params, opt_state, batch, count, rates, seeds, k
        )

    groups, state = P("group"), (specs, state_specs)
    given = (*state, P("group", "data"), groups, groups, groups, P())
    step = jax.shard_map(step_of_device, mesh=mesh, in_specs=given, out_specs=(*state, groups), check_vma=False)
    # said once more for jit: else it would simplify the places of results, and compile the second step anew for them
    places = jax.tree.map(functools.partial(NamedSharding, mesh), (*state, groups))
    compiled = jax.jit(step, donate_argnums=(0, 1), out_shardings=places)
    init = jax.jit(jax.vmap(transform.init), out_shardings=places[1])
    return Program(mesh, model.width, compiled, init, specs, state_specs)


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

    one = module.abstract_params(model)
    state = stacked(jax.eval_shape(optimizer.adamw(0.0).init, one), program.state_specs)
    texts = TextBatch(*[shares(jnp.int32, *shape)] * 4, *[shares(jnp.int32, 2 * pairs)] * 2)
    batch = PairBatch(texts, *(shares(dtype, pairs) for dtype in (jnp.float32, jnp.float32, jnp.bool)))
    numbers = (array(P("group"), dtype, groups) for dtype in (jnp.int32, jnp.float32, jnp.uint32))
    return stacked(one, program.specs), state, batch, *numbers, array(P(), jnp.int32)


class Validation(NamedTuple):
    """Held-out pairs and the compiled score function to judge a step by."""

    score: ScoreFunction
    pairs: Pairs

    def correct(self, params) -> np.ndarray:
        """1.0 for every held-out pair that the parameters get strictly right, `[N]`.

        Unlike a loss this does not mind the scale of the rewards, which weights change.
        """
        rewards = score.score_texts(self.score, params, [*self.pairs.chosen, *self.pairs.rejected])
        chosen, rejected = np.split(rewards, 2)
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
    program: Program,
    params: dict,
    trainings: Sequence[Training],
    *,
    log: Callable[[int, int, dict], None],
    score_function: ScoreFunction,
    state: TrainingState | None = None,
    save_every: int = 0,
) -> list[Trained]:
    """Trains one RM from `params` for each of `trainings`, all at once, or goes on where `state` stands.

    Args:
      params: initial parameters of one RM; left as they are.
      log: called with (which training, steps finished, metrics as floats), in the order of the steps.
      score_function: compiled, judges held-out pairs before the first step, then every `options.eval_every` steps.
      state, save_every: where to save the training state, and every how many steps (0: never).
    """
    groups = -(-len(trainings) // program.mesh.shape["group"]) * program.mesh.shape["group"]
    pairs, orders = [t.pairs for t in trainings], [order_of(t.pairs, t.options) for t in trainings]
    plan = batches.plan(pairs, orders, groups, program.mesh.shape["data"], program.width)
    rates, seeds = rates_of(trainings, groups), np.resize([t.options.seed for t in trainings], groups)
    judges = [Validation(score_function, t.held_out) if t.held_out else None for t in trainings]
    live = start(program, params, groups, judges)
    first, live = state.restore(live) if state else (0, live)
    if not first:
        for g, correct in live["best_correct"].items():
            log(int(g), 0, {"validation_accuracy": float(correct.mean())})
    pending = None
    for k in range(first, len(plan.pairs)):
        batch = sharding.shares_of(functools.partial(batches.batch_at, pairs, plan, k), program.mesh, groups)
        counts = (plan.pairs[k] >= 0).sum((1, 2))
        live["params"], live["opt_state"], metrics = program.step(
            live["params"], live["opt_state"], batch, counts, rates[k], seeds, k
        )
        if pending:  # one step late, so that the host prepares the next batch while the device computes
            log_step(log, *pending)
        pending = k + 1, metrics, rates[k, : len(trainings)], {}
        for g, judge in enumerate(judges):
            options = trainings[g].options
            if judge and k < options.max_steps and ((k + 1) % options.eval_every == 0 or k + 1 == options.max_steps):
                pending[-1][g] = keep_best(live, g, k + 1, judge)
        if state and save_every and (k + 1) % save_every == 0:
            log_step(log, *pending)
            pending = None
            state.save(k + 1, live)
    if pending:
        log_step(log, *pending)
    last = [Trained(group_of(live["params"], g), t.options.max_steps) for g, t in enumerate(trainings)]
    best = {g: Trained(group_of(live["best"], g), int(live["best_step"][g])) for g, judge in enumerate(judges) if judge}
    return [best.get(g, trained) for g, trained in enumerate(last)]


def start(program: Program, params: dict, groups: int, judges: Sequence[Validation | None]) -> dict:
    """The state of trainings before their first step."""
    stacked = jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf), (groups, *leaf.shape)), params)
    stacked = sharding.place(stacked, program.mesh, program.specs)
    correct = {str(g): judge.correct(params) for g, judge in enumerate(judges) if judge}
    best = jax.tree.map(jnp.copy, stacked) if correct else {}
    live = {"params": stacked, "opt_state": program.init(stacked), "best": best}
    return live | {"best_step": np.zeros(groups, np.int32), "best_correct": correct}


def bytes_held(program: Program, params: dict, trainings: Sequence[Training]) -> int:
    """Bytes on each device that grow with the groups and not with the batch; activations come on top."""
    groups = -(-len(trainings) // program.mesh.shape["group"])
    copies = 4 + any(training.held_out for training in trainings)  # itself, gradient, AdamW's two moments; the best

    def own(leaf, spec) -> int:
        return leaf.nbytes // (program.mesh.shape["data"] if "data" in spec else 1)

    return groups * copies * sum(jax.tree.leaves(jax.tree.map(own, params, program.specs)))


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


def group_of(params: dict, group: int) -> dict:
    """The parameters of one group of `[G, ...]`."""
    return jax.tree.map(lambda leaf: leaf[group], params)


def log_step(log: Callable, step: int, metrics: dict, rates: np.ndarray, validation: dict[int, float]) -> None:
    """Logs a step of every group in training; waits for the device."""
    metrics = jax.device_get(metrics)
    for g in np.flatnonzero(rates >= 0):
        own = {name: float(values[g]) for name, values in metrics.items()} | {"learning_rate": float(rates[g])}
        log(int(g), step, own | ({"validation_accuracy": validation[g]} if g in validation else {}))


def keep_best(live: dict, group: int, step: int, judge: Validation) -> float:
    """Judges a group's parameters after `step` steps, keeps them if clearly better than its best; their accuracy."""
    correct = judge.correct(group_of(live["params"], group))
    if clearly_better(correct, live["best_correct"][str(group)]):
        live["best"] = jax.tree.map(lambda best, new: best.at[group].set(new[group]), live["best"], live["params"])
        live["best_step"] = np.where(np.arange(len(live["best_step"])) == group, np.int32(step), live["best_step"])
        live["best_correct"] = live["best_correct"] | {str(group): correct}
    return float(correct.mean())
