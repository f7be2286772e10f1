"""The compiled programs of a policy's training, and the parameters that they take.

Dimensions: B responses of a batch, b of a minibatch, P columns of prompts, N of responses.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scpo_jax import language_model, optimizer, ppo, sampling, sharding
from scpo_jax.models import lora, module
from scpo_jax.models.layers import GATHERED
from scpo_jax.models.module import RewardModel
from scpo_jax.sampling import Prompts, Responses, Sampling


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything that decides what a training does, apart from prompts, RMs and the initial parameters."""

    algorithm: str
    steps: int
    batch_size: int
    num_generations: int
    num_mini_batches: int
    num_ppo_epochs: int
    learning_rate: float
    kl_coef: float
    kl_estimator: str
    kl_target: float
    kl_horizon: int
    kl_budget: float | None
    missing_eos_penalty: float
    cliprange: float
    cliprange_value: float
    vf_coef: float
    gamma: float
    gae_lambda: float
    value: str
    value_warmup_steps: int
    new_tokens: int
    dtype: str
    remat: bool
    max_grad_norm: float
    seed: int

    @property
    def same_prompt(self) -> int:
        """Responses to each prompt of a batch."""
        return 1 if self.algorithm == "ppo" else self.num_generations


class Parameters(NamedTuple):
    """The parameters of a training in parts that do not overlap, as dicts that `lora.join` puts together."""

    trained: dict  # "policy": all or its adapters, without the score head; "value": see `start`
    reference: dict  # what `trained["policy"]` was at the start, where adapters add nothing
    frozen: dict  # what nobody trains: the base of adapters, and the head that rloo and grpo have no use for

    def policy(self) -> dict:
        """The policy's parameters; its score head, if the value model is on top of it, is that model's."""
        return policy_of(self.trained, self.frozen)


def policy_of(trained: dict, frozen: dict) -> dict:
    """The policy's parameters."""
    return lora.join(trained["policy"], lora.join(trained["value"], frozen))


def start(model: RewardModel, params: dict, options: Options) -> Parameters:
    """The parameters before the first step, with the reference's `params` (and fresh adapters, if the model has any).

    The head of the value model is zero: it starts as the value 0 everywhere. Its backbone is a copy of the policy's
    ("own") or the policy's ("head"); rloo and grpo have none.
    """
    own, frozen = lora.split(params)
    head = {"score": jax.tree.map(jnp.zeros_like, own["score"])}
    policy = {name: tree for name, tree in own.items() if name != "score"}
    if options.algorithm != "ppo":
        return Parameters({"policy": policy, "value": {}}, policy, frozen | head)
    return Parameters({"policy": policy, "value": head if options.value == "head" else own | head}, policy, frozen)


def policy_params(params: dict, policy: dict) -> dict:
    """The parameters that training started from, with what it made of the policy."""
    return lora.join(policy, params)


class Read(NamedTuple):
    """What the models say of the tokens of responses, `[b, N]` float32, 0 after the end."""

    logprobs: jax.Array
    ref_logprobs: jax.Array
    entropies: jax.Array
    values: jax.Array


class Experience(NamedTuple):
    """What a batch or minibatch teaches."""

    prompts: Prompts
    tokens: np.ndarray  # [B, N] int32
    lengths: np.ndarray  # [B] int32
    logprobs: np.ndarray  # [B, N] of the policy that drew the tokens, and so the others
    values: np.ndarray
    advantages: np.ndarray
    returns: np.ndarray


class Program(NamedTuple):
    """The compiled programs, and where their parameters live."""

    mesh: Mesh
    sample: Callable  # (policy parameters, Prompts, seed, new_tokens) -> Responses
    read: Callable  # (Parameters, Prompts, tokens, lengths) -> Read
    judge: Callable  # (Read, lengths, ended, scores, kl_coef) -> (advantages, returns, metrics)
    update: Callable  # (trained, opt_state, frozen, Experience, rate, learn_policy) -> (trained, opt_state, metrics)
    init: Callable  # trained -> opt_state
    state_specs: dict  # of the optimizer state
    specs: Parameters  # PartitionSpecs
    narrow: Parameters  # shapes and types; what is not trained is as narrow as its products
    keep: Callable  # trained -> a copy of trained["policy"]

    def place(self, parameters: Parameters) -> Parameters:
        """Parameters on the devices, as the programs take them."""
        cast = jax.tree.map(lambda leaf, like: np.asarray(leaf).astype(like.dtype), parameters, self.narrow)
        return sharding.place(cast, self.mesh, self.specs)

    def whole(self, tree: dict) -> dict:
        """Parameters on the host."""
        gathered = jax.jit(lambda own: own, out_shardings=NamedSharding(self.mesh, P()))(tree)
        return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), gathered)


def make_program(
    model: RewardModel, mesh: Mesh, options: Options, sampling_: Sampling, axes: tuple[str, ...]
) -> Program:
    """The programs of a training; rows are shared out over data, parameters over `axes` of the mesh."""
    shapes = jax.eval_shape(lambda params: start(model, params, options), module.abstract_params(model))
    fixed = functools.partial(lora.narrowed, dtype=jnp.dtype(options.dtype), causal=True)
    narrow = Parameters(shapes.trained, fixed(shapes.reference), fixed(shapes.frozen))
    transform = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-5)

    def init(trained):
        return {name: transform.init(tree) for name, tree in trained.items()}

    opt_shapes = jax.eval_shape(init, shapes.trained)
    specs, opt_specs = sharding.specs_of_one((shapes, opt_shapes), mesh, axes)
    places, opt_places = jax.tree.map(functools.partial(NamedSharding, mesh), (specs, opt_specs))
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    outputs = make_outputs(model, mesh, policy_of(specs.trained, specs.frozen), options.dtype)

    def read(parameters: Parameters, prompts: Prompts, tokens, lengths) -> Read:
        trained, reference, frozen = parameters
        found, values = read_trained(outputs, trained, frozen, prompts, tokens, lengths)
        held = outputs(policy_of({**trained, "policy": reference}, frozen), prompts, tokens, lengths)
        return Read(found.logprobs, held.logprobs, found.entropies, values)

    def loss_of(trained, frozen, batch: Experience):
        own = functools.partial(outputs, remat=options.remat)
        found, values = read_trained(own, trained, frozen, batch.prompts, batch.tokens, batch.lengths)
        mask = ppo.response_mask(batch.lengths, batch.tokens.shape[1])
        policy = ppo.policy_loss(found.logprobs, batch.logprobs, batch.advantages, mask, options.cliprange)
        value, clipped = ppo.value_loss(values, batch.values, batch.returns, mask, options.cliprange_value)
        metrics = {
            "loss/policy_avg": policy.loss, "policy/approxkl_avg": policy.approxkl, "val/ratio": policy.ratio,
            "policy/clipfrac_avg": policy.clipfrac, "policy/entropy_avg": ppo.masked_mean(found.entropies, mask),
            "ratio_gap": policy.ratio_gap,
        }  # fmt: skip
        if options.algorithm != "ppo":
            return policy.loss, metrics
        return policy.loss + options.vf_coef * value, metrics | {"loss/value_avg": value, "val/clipfrac_avg": clipped}

    def update(trained, opt_state, frozen, batch: Experience, rate, learn_policy):
        (loss, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained, frozen, batch)
        gradients["policy"] = jax.tree.map(lambda leaf: jnp.where(learn_policy, leaf, 0), gradients["policy"])
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)))
        clipped = optimizer.clip(gradients, norm, options.max_grad_norm)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        new, state = {}, {}
        for name, learn in (("policy", finite & learn_policy), ("value", finite)):
            updates, state[name] = transform.update(clipped[name], opt_state[name])
            new[name] = optimizer.descend(trained[name], updates, rate)
            new[name], state[name] = jax.tree.map(
                functools.partial(jnp.where, learn), (new[name], state[name]), (trained[name], opt_state[name])
            )
        return new, state, metrics | {"grad_norm": norm, "finite": finite}

    return Program(
        mesh=mesh,
        sample=sampling.make_sampler(model, mesh, sampling_, options.dtype, options.dtype, policy_of(*specs[::2])),
        read=jax.jit(read, in_shardings=(places, rows, rows, rows), out_shardings=whole),
        judge=jax.jit(functools.partial(judged, options), out_shardings=whole),
        update=jax.jit(
            update, donate_argnums=(0, 1), out_shardings=(places.trained, opt_places, whole),
            in_shardings=(places.trained, opt_places, places.frozen, rows, whole, whole),
        ),
        init=jax.jit(init, out_shardings=opt_places),
        state_specs=opt_specs,
        specs=specs,
        narrow=narrow,
        keep=jax.jit(lambda trained: jax.tree.map(jnp.copy, trained["policy"]), out_shardings=places.trained["policy"]),
    )  # fmt: skip


def make_outputs(model: RewardModel, mesh: Mesh, specs: dict, dtype: str) -> Callable:
    """`language_model.outputs` of rows shared out over data, from parameters that live as `specs` say.

    Each device makes the parameters whole, those of the layers one layer at a time: the compiler may else share out
    products by their inner dimension, and add up the hidden states of all rows between the devices after each.
    """
    plain = functools.partial(language_model.outputs, model, dtype=dtype)
    if mesh.shape["data"] == 1:
        return plain
    own = jax.tree.map(functools.partial(NamedSharding, mesh), sharding.over(("model",), specs))
    layer = [NamedSharding(mesh, P(*place.spec[1:])) for place in jax.tree.leaves(own["layers"])]
    fix = jax.lax.with_sharding_constraint

    def whole(parameters):
        leaves, structure = jax.tree.flatten(parameters)
        fixed = [checkpoint_name(fix(leaf, place), GATHERED) for leaf, place in zip(leaves, layer, strict=True)]
        return structure.unflatten(fixed)

    def outputs(params, *arguments, **how) -> language_model.Outputs:
        params = {name: tree if name == "layers" else fix(tree, own[name]) for name, tree in params.items()}
        return plain(params, *arguments, whole=whole, **how)

    return outputs


def read_trained(outputs: Callable, trained: dict, frozen: dict, prompts: Prompts, tokens, lengths):
    """(`language_model.Outputs` of the policy, values `[b, N]`) of responses; a head on the policy takes one pass."""
    found = outputs(policy_of(trained, frozen), prompts, tokens, lengths)
    if not set(trained["value"]) - {"score"}:
        return found, found.values
    own = lora.join(trained["value"], lora.join(trained["policy"], frozen))
    return found, outputs(own, prompts, tokens, lengths).values


def judged(options: Options, read: Read, lengths, ended, scores, kl_coef) -> tuple[jax.Array, jax.Array, dict]:
    """(advantages, returns, metrics) of a whole batch from the normalised scores `[B]` of its responses."""
    mask = ppo.response_mask(lengths, read.logprobs.shape[1])
    kl = ppo.token_kl(read.logprobs, read.ref_logprobs, options.kl_estimator)
    rewards = ppo.shaped_rewards(kl, scores, lengths, ended, kl_coef, options.missing_eos_penalty)
    penalty = -kl_coef * jnp.where(mask, kl, 0).sum(1)
    metrics = {
        "objective/kl": jnp.where(mask, read.logprobs - read.ref_logprobs, 0).sum(1).mean(),
        "objective/entropy": -jnp.where(mask, read.logprobs, 0).sum(1).mean(),
        "objective/non_score_reward": penalty.mean(),
        "objective/rlhf_reward": (penalty + scores).mean(),
        "objective/scores_normalised": scores.mean(),
        "val/num_eos_tokens": ended.sum(),
        "val/length": lengths.astype(jnp.float32).mean(),
    }
    if options.algorithm == "ppo":
        advantages, returns = ppo.gae(rewards, read.values, mask, options.gamma, options.gae_lambda)
        return ppo.whiten(advantages, mask), returns, metrics
    of_each = ppo.compared(rewards.sum(1), options.num_generations, scale=options.algorithm == "grpo")
    return jnp.where(mask, of_each[:, None], 0), jnp.zeros_like(rewards), metrics


def parts_of(responses: Responses, size: int) -> list[slice]:
    """The rows of a batch in parts of `size`, in which the models read them."""
    return [slice(first, first + size) for first in range(0, len(responses.lengths), size)]
