"""What training a language model takes: next-token loss, and log-probabilities and values of given responses.

Dimensions: B rows, P columns of prompts, N of responses, R packed rows of T tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from scpo_jax.models import language
from scpo_jax.models.module import RewardModel, TextBatch
from scpo_jax.sampling import Prompts

RESPONSE = 1  # token type of the tokens that are learnt; those of the prompt have 0


def next_token_loss(
    model: RewardModel, params: dict, batch: TextBatch, dtype: str = "float32", remat: bool = False
) -> tuple[jax.Array, jax.Array]:
    """(sum of -log p of the response tokens, their number) of packed texts, each given what stands before it.

    Response tokens have token type 1; a text's first token is none.
    """
    logits = language.logits_of(model, params, language.hidden_states(model, params, batch, dtype, remat)[:, :-1])
    learnt = (batch.token_type_ids == RESPONSE) & (batch.positions > 0)
    found = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.input_ids[:, 1:, None], axis=-1)[..., 0]
    return -jnp.where(learnt[:, 1:], found, 0).sum(), learnt.sum()


class Outputs(NamedTuple):
    """What a model says of the tokens of responses, `[B, N]` float32 each, 0 after the end."""

    logprobs: jax.Array  # log pi of each token
    entropies: jax.Array  # of the distribution that it was drawn from
    values: jax.Array  # of the text before the token


def outputs(
    model: RewardModel,
    params: dict,
    prompts: Prompts,
    tokens: jax.Array,
    lengths: jax.Array,
    dtype: str = "float32",
    remat: bool = False,
    whole=None,
) -> Outputs:
    """What a model says of responses `tokens [B, N]` of `lengths [B]`, in one pass over prompts and responses.

    Under jit what is not used is not computed. `whole` is that of `language.hidden_states`.
    """
    width, count = prompts.input_ids.shape[1], tokens.shape[1]
    batch = joined(prompts, tokens, lengths)
    hidden = language.hidden_states(model, params, batch, dtype, remat, whole)[:, width - 1 : width - 1 + count]
    logprobs = jax.nn.log_softmax(language.logits_of(model, params, hidden))
    given = jnp.arange(count) < lengths[:, None]
    every = Outputs(
        jnp.where(jnp.arange(logprobs.shape[-1]) == tokens[..., None], logprobs, 0).sum(-1),
        -(jnp.exp(logprobs) * logprobs).sum(-1),
        language.values_of(model, params, hidden),
    )
    return jax.tree.map(lambda leaf: jnp.where(given, leaf, 0), every)


def joined(prompts: Prompts, tokens: jax.Array, lengths: jax.Array) -> TextBatch:
    """Each prompt with its response in a row, padded on both sides, `[B, P + N]`."""
    rows, width = prompts.input_ids.shape
    positions = jnp.arange(width + tokens.shape[1], dtype=jnp.int32) - (width - prompts.lengths[:, None])
    real = ((positions >= 0) & (positions < (prompts.lengths + lengths)[:, None])).astype(jnp.int32)
    input_ids = jnp.concatenate([prompts.input_ids, tokens], axis=1)
    responses = jnp.broadcast_to(jnp.arange(input_ids.shape[1]) >= width, input_ids.shape) * real
    return TextBatch(input_ids, responses, real, positions * real, jnp.arange(rows), width - prompts.lengths)
