"""Trains a policy against reward models: PPO, and rloo and grpo, which differ from it in the advantages alone.

An iteration k is a pure function of the seed, k and what was learnt before: resuming needs no other state.
Dimensions: B responses of a batch, b of a minibatch, P columns of prompts, N of responses.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from scpo_jax import logs, optimizer, policy_program, ppo, sampling
from scpo_jax.data import completions, order
from scpo_jax.data.packing import round_up
from scpo_jax.errors import InputError
from scpo_jax.policy_program import Experience, Options, Parameters, Program, Read
from scpo_jax.policy_prompts import Task
from scpo_jax.policy_rewards import Rewards
from scpo_jax.sampling import Prompts, Responses
from scpo_jax.train_reward import derived_seed
from scpo_jax.training_state import TrainingState

# |pi / pi_old - 1| of any token before the first gradient step, and |log pi| by the cache less that without: both are
# 0 but for rounding. bfloat16 has 8 bits.
RATIO_BOUND = {"float32": 1e-4, "bfloat16": 0.1}
CACHE_BOUND = {"float32": 1e-3, "bfloat16": 1.0}


class Trained(NamedTuple):
    """What a training gives."""

    policy: dict  # of `policy_program.Parameters.trained`, on the host
    steps: int  # iterations that it learnt from
    kl: float | None  # nats per response to the reference, measured on the last batch; None without a budget


class Asked(NamedTuple):
    """The tasks of a training with their prompts as tokens."""

    tasks: list[Task]
    input_ids: list[np.ndarray]
    width: int  # P
    pad_id: int


def ask(tasks: Sequence[Task], tokenizer, max_prompt: int, pad_id: int) -> Asked:
    """Tasks ready to be asked."""
    encoded = completions.encode_prompts(tokenizer, [task.asked for task in tasks], max_prompt)
    return Asked(list(tasks), encoded, int(round_up(np.array(max(map(len, encoded))))), pad_id)


class Batch(NamedTuple):
    """The responses of an iteration."""

    tasks: list[Task]  # of each response
    prompts: Prompts
    responses: Responses  # numpy
    texts: list[str]


def train(
    program: Program,
    start: Parameters,
    asked: Asked,
    tokenizer,
    rewards: Rewards,
    options: Options,
    log: Callable[[int, dict], None],
    *,
    observe: Callable[[Sequence[str], Sequence[str]], dict] = lambda texts, groups: {},
    state: TrainingState | None = None,
    name: str = "policy",
) -> Trained:
    """Trains from `start`, or goes on where `state` stands.

    Where KL exceeds `options.kl_budget` it ends, and gives the policy of the last iteration within. Raises InputError.

    Args:
      rewards: prepared for the groups of the tasks.
      log: called with (iterations finished, metrics as floats); those of a batch are of the policy before the update.
      observe: gives more metrics of a batch's texts and their groups, to be logged with the others.
      state: saves that of the training.
    """
    placed = program.place(start)
    live = {"trained": placed.trained, "opt_state": program.init(placed.trained)}
    live |= {"kl_coef": np.asarray(options.kl_coef, np.float32), "kl": np.zeros((), np.float32)}
    if options.kl_budget is not None:
        live["within"] = program.keep(placed.trained)
    first, live = state.restore(live) if state else (0, live)
    lengths = np.array([len(ids) for ids in asked.input_ids])
    drawn = order.shuffled(lengths, options.batch_size // options.same_prompt, options.seed, options.steps + 1)
    last = options.steps + (options.kl_budget is not None)  # one more batch, to see how far the last update went
    for k in range(first, last):
        parameters = placed._replace(trained=live["trained"])
        # 1. B fresh responses of the policy (trl PPOTrainer.train: batch_generation, at temperature 1)
        batch = sample(program, parameters, asked, drawn[k], tokenizer, options, k)
        # 2. what policy, reference and value model say of their tokens; computed while the host encodes for the RM
        reading = start_reading(program, parameters, batch, options)
        # 3. the scores of the texts by each one's own RM, normalised on the reference's (arXiv 1909.08593, 2.1)
        groups = [task.group for task in batch.tasks]
        scores = rewards.scores([task.prompt for task in batch.tasks], batch.texts, groups)
        read = finish_reading(reading)
        check_cache(batch.responses, read, options)
        # 4. KL-shaped rewards, advantages and returns
        judging = read, batch.responses.lengths, batch.responses.ended, rewards.normalised(scores, groups)
        advantages, returns, metrics = jax.device_get(program.judge(*judging, live["kl_coef"]))
        kl = float(metrics["objective/kl"])
        if options.kl_budget is not None:
            if kl > options.kl_budget:
                logs.say(
                    f"{name}: KL of {kl:.2f} nats a response after {k} steps is over the budget: ends with {k - 1}"
                )
                return Trained(program.whole(live["within"]), k - 1, float(live["kl"]))
            if k == options.steps:
                return Trained(program.whole(live["trained"]["policy"]), k, kl)
            live |= {"within": program.keep(live["trained"]), "kl": np.asarray(kl, np.float32)}
        # 5. several epochs of minibatches, a gradient step each
        lesson = Experience(
            batch.prompts,
            batch.responses.tokens,
            batch.responses.lengths,
            read.logprobs,
            read.values,
            advantages,
            returns,
        )
        rate = optimizer.learning_rate_at(k, "linear", options.learning_rate, options.steps, 0)
        learnt = learn(program, live, placed.frozen, lesson, options, k, rate)
        check_learnt(learnt, options, k)
        # 6. the KL controller (arXiv 1909.08593, 2.2)
        found = summary(metrics, learnt) | {"objective/scores": float(scores.mean()), "lr": rate}
        found |= {"objective/kl_coef": float(live["kl_coef"]), "episode": (k + 1) * options.batch_size}
        found |= observe(batch.texts, groups)
        adapted = ppo.adapted_kl_coef(
            float(live["kl_coef"]), kl, options.kl_target, options.batch_size, options.kl_horizon
        )
        live["kl_coef"] = np.asarray(adapted, np.float32)
        log(k + 1, found)
        if state and state.is_due(k + 1):
            state.save(k + 1, live)
    return Trained(program.whole(live["trained"]["policy"]), options.steps, None)


def sample(
    program: Program, parameters: Parameters, asked: Asked, drawn: np.ndarray, tokenizer, options: Options, k: int
) -> Batch:
    """The responses of iteration k to the prompts `drawn`: to each `options.same_prompt`, these beside each other."""
    chosen = np.repeat(drawn, options.same_prompt)
    prompts = sampling.left_pad(
        [asked.input_ids[i] for i in chosen], range(len(chosen)), (len(chosen), asked.width), asked.pad_id
    )
    seed = np.uint32(derived_seed(options.seed, f"responses/{k}"))
    responses = sampling.respond(program.sample, parameters.policy(), prompts, seed, options.new_tokens)
    texts = completions.decode(tokenizer, responses.tokens, responses.lengths, responses.ended)
    return Batch([asked.tasks[i] for i in chosen], prompts, responses, texts)


def start_reading(program: Program, parameters: Parameters, batch: Batch, options: Options) -> list[Read]:
    """What the models say of a batch, under way; a minibatch at a time, as memory is planned for these."""
    size, found = options.batch_size // options.num_mini_batches, []
    for part in policy_program.parts_of(batch.responses, size):
        prompts = Prompts(*(leaf[part] for leaf in batch.prompts))
        found.append(program.read(parameters, prompts, batch.responses.tokens[part], batch.responses.lengths[part]))
    return found


def finish_reading(parts: list[Read]) -> Read:
    """What the models said of a batch, `[B, N]` in numpy."""
    return Read(*(np.concatenate(leaves) for leaves in zip(*jax.device_get(parts), strict=True)))


def learn(program: Program, live: dict, frozen: dict, lesson: Experience, options: Options, k: int, rate: float):
    """Changes `live` by the gradient steps of iteration k; the metrics `[E, M]` of its epochs and minibatches."""
    found, learn_policy = [], np.bool_(k >= options.value_warmup_steps or options.algorithm != "ppo")
    for epoch in range(options.num_ppo_epochs):
        rows = np.random.default_rng([options.seed, k, epoch]).permutation(options.batch_size)
        for part in rows.reshape(options.num_mini_batches, -1):
            minibatch = jax.tree.map(lambda leaf, part=part: leaf[part], lesson)
            live["trained"], live["opt_state"], metrics = program.update(
                live["trained"], live["opt_state"], frozen, minibatch, np.float32(rate), learn_policy
            )
            found.append(metrics)
    gathered = jax.tree.map(lambda *values: np.stack(values), *jax.device_get(found))
    return {key: values.reshape(options.num_ppo_epochs, -1) for key, values in gathered.items()}


def summary(metrics: dict, learnt: dict) -> dict[str, float]:
    """The metrics of an iteration by trl's names."""
    means = {key: float(values.mean()) for key, values in learnt.items() if key not in ("finite", "ratio_gap")}
    means["val/ratio_var"] = float(learnt["val/ratio"].var())
    return {key: float(value) for key, value in metrics.items()} | means


def check_cache(responses: Responses, read: Read, options: Options) -> None:
    """Refuses log-probabilities that are not those with which the tokens were drawn: generation would be another model.

    Raises InputError.
    """
    gap = float(np.abs(responses.logprobs - read.logprobs).max())
    if not gap <= CACHE_BOUND[options.dtype]:
        raise InputError(
            f"the policy drew a token with a log-probability {gap:.3g} from what it says of it afterwards (bound "
            f"{CACHE_BOUND[options.dtype]:g} in {options.dtype}): use config.policy.dtype=float32, or report it"
        )


def check_learnt(learnt: dict, options: Options, k: int) -> None:
    """Refuses steps whose loss or gradient is not finite, and a ratio that is not 1 before the first. InputError."""
    if not learnt["finite"].all():
        raise InputError(
            f"the policy's step {k + 1} has a loss or gradient that is not finite: a lower config.policy.learning_rate "
            "may help, or config.policy.dtype=float32"
        )
    gap = float(learnt["ratio_gap"][0, 0])
    if not gap <= RATIO_BOUND[options.dtype]:
        raise InputError(
            f"before the first gradient step of iteration {k + 1} pi / pi_old is {gap:.3g} from 1 for a token (bound "
            f"{RATIO_BOUND[options.dtype]:g} in {options.dtype}): use config.policy.dtype=float32, or report it"
        )
