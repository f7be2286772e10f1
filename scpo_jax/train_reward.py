"""Trains a reward model on weighted preference pairs: one group's RM from the global one, or the global RM itself."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scpo_jax import losses, optimizer, score
from scpo_jax.checkpoint import TrainingState
from scpo_jax.data import order, packing
from scpo_jax.data.encoding import Text
from scpo_jax.models.module import RewardModel, TextBatch


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


class Pairs(NamedTuple):
    """Encoded pairs: of N pairs the texts, weights `[N]` float32 and margins `[N]` float32."""

    chosen: Sequence[Text]
    rejected: Sequence[Text]
    weights: np.ndarray
    margins: np.ndarray


class PairBatch(NamedTuple):
    """A step's pairs; `texts` holds the B chosen ones and then the B rejected ones."""

    texts: TextBatch
    weights: np.ndarray  # [B]
    margins: np.ndarray  # [B]
    mask: np.ndarray  # [B], False for padding


def order_of(pairs: Pairs, options: Options) -> np.ndarray:
    """Indices `[steps, B]` of the pairs of every step: a pure function of the pairs and the options; -1 is no pair."""
    if options.batch_order == "reference":
        return order.reference(len(pairs.weights), options.batch_size, options.max_steps)
    sides = zip(pairs.chosen, pairs.rejected, strict=True)
    lengths = np.array([len(chosen.input_ids) + len(rejected.input_ids) for chosen, rejected in sides])
    return order.shuffled(lengths, options.batch_size, options.seed, options.max_steps)


def batch_at(pairs: Pairs, steps: np.ndarray, step: int) -> PairBatch:
    """The batch of a step, of which `steps` `[steps, B]` are all."""
    mask = steps[step] >= 0
    indices = np.where(mask, steps[step], steps[step, 0])
    texts = [side[i] for side in (pairs.chosen, pairs.rejected) for i in indices]
    return PairBatch(packing.pack_batch(texts), pairs.weights[indices], pairs.margins[indices], mask)


def make_step(model: RewardModel, options: Options) -> tuple[Callable, optax.GradientTransformation]:
    """The compiled step (params, opt_state, batch, rate, key) -> (params, opt_state, metrics), and its optimizer.

    Depends on the model and on the options' dtype, centring, decay and clipping only; rates and lengths are arguments.
    """
    transform = optimizer.adamw(options.weight_decay, options.max_grad_norm)
    center = options.center_rewards_coefficient

    def loss_of(params, batch: PairBatch, key):
        rewards = model.score(params, batch.texts, key=key, dtype=options.dtype)
        chosen, rejected = jnp.split(rewards, 2)
        loss = losses.weighted_bradley_terry(
            chosen, rejected, batch.weights, margin=batch.margins, mask=batch.mask, center_rewards_coefficient=center
        )
        return loss, {
            "accuracy": losses.masked_mean((chosen > rejected).astype(jnp.float32), batch.mask),
            "rewards/chosen": losses.masked_mean(chosen, batch.mask),
            "rewards/rejected": losses.masked_mean(rejected, batch.mask),
        }

    def step(params, opt_state, batch: PairBatch, rate, key):
        (loss, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, batch, key)
        if not center:
            gradients = optimizer.freeze_score_bias(gradients)
        updates, opt_state = transform.update(gradients, opt_state, params)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients), **metrics}
        return optimizer.descend(params, updates, rate), opt_state, metrics

    return jax.jit(step, donate_argnums=(0, 1)), transform


class Validation(NamedTuple):
    """Held-out pairs and the compiled score function to judge a step by."""

    score: Callable
    chosen: Sequence[Text]
    rejected: Sequence[Text]

    def correct(self, params) -> np.ndarray:
        """1.0 for every held-out pair that the parameters get strictly right, `[N]`.

        Unlike a loss this does not mind the scale of the rewards, which weights change.
        """
        rewards = score.score_texts(self.score, params, [*self.chosen, *self.rejected])
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
    step_and_transform: tuple[Callable, optax.GradientTransformation],
    params: dict,
    pairs: Pairs,
    options: Options,
    *,
    log: Callable[[int, dict], None],
    state: TrainingState | None = None,
    save_every: int = 0,
    validation: Validation | None = None,
) -> Trained:
    """Trains for `options.max_steps` steps from `params`, or goes on where `state` stands.

    Args:
      step_and_transform: of `make_step`; passed in so that all groups share one compiled program.
      params: initial parameters; left as they are.
      log: called with (steps finished, metrics as floats), in order.
      state, save_every: where to save the training state, and every how many steps (0: never).
      validation: if given, judged before the first step and then every `options.eval_every` steps; the best step wins.
    """
    step, transform = step_and_transform
    params = jax.tree.map(jnp.copy, params)
    live = {"params": params, "opt_state": transform.init(params), "best_step": np.int32(0)}
    live["best_correct"] = validation.correct(params) if validation else {}
    live["best"] = jax.tree.map(jnp.copy, params) if validation else {}
    first, live = state.restore(live) if state else (0, live)
    if validation and not first:
        log(0, {"validation_accuracy": float(np.mean(live["best_correct"]))})
    key, steps = jax.random.key(options.seed), order_of(pairs, options)
    pending = None
    for k in range(first, options.max_steps):
        rate = optimizer.learning_rate_at(
            k, options.schedule, options.learning_rate, options.max_steps, options.warmup_steps
        )
        batch = batch_at(pairs, steps, k)
        live["params"], live["opt_state"], metrics = step(
            live["params"], live["opt_state"], batch, np.float32(rate), jax.random.fold_in(key, k)
        )
        if pending:  # one step late, so that the host prepares the next batch while the device computes
            log(*_fetched(pending))
        pending = k + 1, {**metrics, "learning_rate": rate}
        if validation and ((k + 1) % options.eval_every == 0 or k + 1 == options.max_steps):
            _keep_best(live, k + 1, validation, pending[1])
        if state and save_every and (k + 1) % save_every == 0:
            log(*_fetched(pending))
            pending = None
            state.save(k + 1, live)
    if pending:
        log(*_fetched(pending))
    if validation:
        return Trained(live["best"], int(live["best_step"]))
    return Trained(live["params"], options.max_steps)


def _fetched(pending: tuple[int, dict]) -> tuple[int, dict]:
    """(steps finished, metrics) with the metrics as floats; waits for the device."""
    return pending[0], jax.tree.map(float, pending[1])


def _keep_best(live: dict, step: int, validation: Validation, metrics: dict) -> None:
    """Judges the parameters after `step` steps and keeps them if they are clearly better than the best so far."""
    correct = validation.correct(live["params"])
    metrics["validation_accuracy"] = correct.mean()
    if clearly_better(correct, live["best_correct"]):
        live.update(best=jax.tree.map(jnp.copy, live["params"]), best_step=np.int32(step), best_correct=correct)
