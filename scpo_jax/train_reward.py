"""Trains reward models on weighted preference pairs: several groups' from the global one, or the global one itself."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scpo_jax import optimizer, score, sharding, train_step
from scpo_jax.checkpoint import TrainingState
from scpo_jax.data import batches, order
from scpo_jax.data.batches import Pairs
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


def plan_of(trainings: Sequence[Training], groups: int, shares: int, width: int) -> batches.Plan:
    """The plan of all steps of trainings at once; the arguments are those of `batches.plan`."""
    orders = [order_of(training.pairs, training.options) for training in trainings]
    return batches.plan([training.pairs for training in trainings], orders, groups, shares, width)


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
    program: train_step.Program,
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
    pairs, plan = [t.pairs for t in trainings], plan_of(trainings, groups, program.mesh.shape["data"], program.width)
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


def start(program: train_step.Program, params: dict, groups: int, judges: Sequence[Validation | None]) -> dict:
    """The state of trainings before their first step."""
    stacked = jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf), (groups, *leaf.shape)), params)
    stacked = sharding.place(stacked, program.mesh, program.specs)
    correct = {str(g): judge.correct(params) for g, judge in enumerate(judges) if judge}
    best = jax.tree.map(jnp.copy, stacked) if correct else {}
    live = {"params": stacked, "opt_state": program.init(stacked), "best": best}
    return live | {"best_step": np.zeros(groups, np.int32), "best_correct": correct}


def bytes_held(program: train_step.Program, params: dict, trainings: Sequence[Training]) -> int:
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
