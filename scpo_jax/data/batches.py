"""Batches of preference pairs for several groups at once: what each step computes, planned before the first.

K steps, G groups, N shares of a batch (one for each device of the data axis), b pairs in a share.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scpo_jax.data import packing
from scpo_jax.data.encoding import Text
from scpo_jax.models.module import TextBatch

NO_TEXT = Text(np.zeros(0, np.int32), np.zeros(0, np.int32), 0)


class Pairs(NamedTuple):
    """Encoded pairs: of N pairs the texts, weights `[N]` float32, margins `[N]` float32, and what they are called.

    `columns` `[N]` int32 is the head of the model that each pair trains; None where a model gives one score.
    """

    chosen: Sequence[Text]
    rejected: Sequence[Text]
    weights: np.ndarray
    margins: np.ndarray
    ids: Sequence[str] = ()
    columns: np.ndarray | None = None


class PairBatch(NamedTuple):
    """A step's pairs of one group and share; `texts` holds the b chosen ones and then the b rejected ones."""

    texts: TextBatch
    weights: np.ndarray  # [b]
    margins: np.ndarray  # [b]
    mask: np.ndarray  # [b], False for padding
    columns: np.ndarray | None = None  # [b], as in `Pairs`


class Plan(NamedTuple):
    """What every step of a program computes: a pure function of the trainings, the same on every host."""

    pairs: np.ndarray  # [K, G, N, b] index of each pair in its group, -1 for none
    shapes: np.ndarray  # [K, 2] rows and tokens of the packed texts of every group and share
    rows: np.ndarray  # [K, G, N, 2b] row of each text, the chosen ones first


def lengths_of(pairs: Pairs) -> np.ndarray:
    """Tokens of the chosen and the rejected text of each pair, `[N, 2]`."""
    sides = zip(pairs.chosen, pairs.rejected, strict=True)
    return np.array([(len(chosen.input_ids), len(rejected.input_ids)) for chosen, rejected in sides])


class Dealt(NamedTuple):
    """The pairs of every step, group and share, before shapes are chosen for them."""

    pairs: np.ndarray  # [K, G, N, b] index of each pair in its group, -1 for none
    lengths: np.ndarray  # [K, G * N, 2b] tokens of their texts, the chosen ones first, 0 for none


def deal(pairs: Sequence[Pairs], orders: Sequence[np.ndarray], groups: int, shares: int) -> Dealt:
    """All steps of a training of several groups, their pairs dealt to the shares of the data axis.

    Args:
      pairs: of each group to train.
      orders: indices `[K, B]` of each group's pairs, step by step, -1 for none; K may differ.
      groups: G, at least as many; those beyond are inert.
      shares: N.
    """
    steps = max(len(own) for own in orders)
    size = -(-orders[0].shape[1] // shares)
    indices = np.full((steps, groups, shares, size), -1)
    lengths = np.zeros((steps, groups, shares, 2, size), np.int32)
    for g, (own, order) in enumerate(zip(pairs, orders, strict=True)):
        tokens = lengths_of(own)
        dealt = packing.deal(order, tokens.sum(1), shares)
        indices[: len(order), g] = dealt
        lengths[: len(order), g] = np.where(dealt[..., None, :] >= 0, tokens[dealt].swapaxes(-1, -2), 0)
    return Dealt(indices, lengths.reshape(steps, groups * shares, -1))


def plan(dealt: Dealt, width: int, shapes: np.ndarray, platform: str) -> Plan:
    """The plan of a training of a model of `width`, in the shapes that `packing.choose_shapes` chose for it."""
    assigned = packing.assign(dealt.lengths, shapes, width, platform)
    rows = packing.rows_of(dealt.lengths, assigned)
    return Plan(dealt.pairs, assigned, rows.reshape(*dealt.pairs.shape[:3], -1))


def batch_at(pairs: Sequence[Pairs], plan: Plan, step: int, group: int, share: int) -> PairBatch:
    """The batch of a step for a group and a share; empty for a group that has ended or is inert."""
    indices, own = plan.pairs[step, group, share], pairs[min(group, len(pairs) - 1)]
    texts = [side[i] if i >= 0 else NO_TEXT for side in (own.chosen, own.rejected) for i in indices]
    columns = None if own.columns is None else own.columns[indices]
    packed = packing.pack(texts, plan.rows[step, group, share], plan.shapes[step])
    return PairBatch(packed, own.weights[indices], own.margins[indices], indices >= 0, columns)


def own_scores(scores, columns):
    """The scores `[2B]` of B pairs' texts, the chosen ones first, by each pair's own head, from all heads' `[2B, C]`.

    Without `columns` (`[B]`) they are what is given.
    """
    if columns is None:
        return scores
    return scores.reshape(2, len(columns), -1)[:, np.arange(len(columns)), columns].reshape(-1)
