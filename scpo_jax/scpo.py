"""The method of SCPO (arXiv 2606.18606, section 3): which pairs to keep and how much each one weighs.

Everything here is a pure function of the global reward model's rewards of a pair, `ref_rewards_chosen` and
`ref_rewards_rejected`, both `[B]` and without unit. numpy arrays in, numpy arrays out; jax arrays work as well.
"""

import math
from typing import NamedTuple

import numpy as np


def global_probability(ref_rewards_chosen, ref_rewards_rejected):
    """Probability `[B]` that the global reward model gives to the label: p = sigmoid(r+ - r-)."""
    difference = ref_rewards_chosen - ref_rewards_rejected
    return np.exp(-np.logaddexp(0.0, -difference))


def keep(ref_rewards_chosen, ref_rewards_rejected, tau: float):
    """Filter `[B]` of bool: keep a pair iff p < tau, so drop what the global model already agrees with confidently.

    Computed as r+ - r- < logit(tau), strict, which is exact where p itself has rounded to 1. tau <= 0 keeps
    nothing, tau >= 1 everything. With tau = 0.5 this is the rule of the edited test set, r+ < r-.
    """
    return ref_rewards_chosen - ref_rewards_rejected < logit(tau)


def logit(tau: float) -> float:
    """log(tau / (1 - tau)), infinite at and beyond the ends."""
    if tau <= 0:
        return -math.inf
    return math.inf if tau >= 1 else math.log(tau / (1 - tau))


def weight(ref_rewards_chosen, ref_rewards_rejected, beta: float):
    """Weight `[B]` in (0, 1]: w = min(exp((r+ - r-) / beta), 1), small where the global model strongly disagrees."""
    return np.exp(np.minimum((ref_rewards_chosen - ref_rewards_rejected) / beta, 0.0))


def inverse_weight(ref_rewards_chosen, ref_rewards_rejected):
    """The ablation's weight `[B]`, at least 1: w = max(exp(r- - r+), 1); it has no beta."""
    return np.exp(np.maximum(ref_rewards_rejected - ref_rewards_chosen, 0.0))


def uncertain(ref_rewards_chosen, ref_rewards_rejected, tau: float):
    """Filter `[B]` of bool that is blind to the label: keep a pair iff 1 - tau < p < tau, so |r+ - r-| < logit(tau).

    A filter that keeps a label y with probability f(y) trains on the odds P(y) f(y) / (P(-y) f(-y)): Bradley-Terry's
    likelihood stays that of the annotators iff f(y) = f(-y), as here. `keep` has f(-y) = 1 and f(y) = 0 where the
    global model is sure of y, so it shows certainty of -y. Needing no label, this also says which pairs to annotate.
    """
    return abs(ref_rewards_chosen - ref_rewards_rejected) < logit(tau)


def trim(ref_rewards_chosen, ref_rewards_rejected, floor: float):
    """Filter `[B]` of bool against reversed labels: keep a pair iff p > floor, so r+ - r- > logit(floor).

    If a share e of the labels is reversed and the rest follows p, a label is a reversed one with probability
    e (1 - p) / (e (1 - p) + (1 - e) p), which is above 1/2 iff p < e: with floor = e these go, as a robust estimator
    rejects outliers. It looks at the label, so a group that does reverse a sure global preference loses that too.
    """
    return ref_rewards_chosen - ref_rewards_rejected > logit(floor)


def random_subset(keep_mask, rng: np.random.Generator):
    """A mask `[B]` of as many pairs as `keep_mask` has, drawn without looking at them: what the filter must beat."""
    chosen = rng.permutation(len(keep_mask))[: int(np.sum(keep_mask))]
    mask = np.zeros(len(keep_mask), bool)
    mask[chosen] = True
    return mask


class Selection(NamedTuple):
    """What the global reward model says of pairs, `[B]` each: columns of the selection on disk."""

    ref_chosen: np.ndarray
    ref_rejected: np.ndarray
    p_global: np.ndarray  # global_probability
    keep: np.ndarray  # bool
    uncertain: np.ndarray  # bool
    trim: np.ndarray  # bool
    weight: np.ndarray


def select(ref_rewards_chosen, ref_rewards_rejected, tau: float, beta: float, floor: float) -> Selection:
    """All rules on pairs `[B]`; `floor` is that of `trim`."""
    refs = ref_rewards_chosen, ref_rewards_rejected
    rules = keep(*refs, tau), uncertain(*refs, tau), trim(*refs, floor)
    return Selection(*refs, global_probability(*refs), *rules, weight(*refs, beta))


HEADS = "heads"  # the method that trains all groups in one model
METHODS = (
    "scpo", "full", "filter_only", "weight_only", "inverse_weight", "random_subset",
    "uncertain", "uncertain_weighted", "trim", "trim_weighted", HEADS,
)  # fmt: skip


def training_set(method: str, selection: Selection, rng: np.random.Generator):
    """What a method trains on: mask `[B]` of the pairs it uses and weight `[B]` float32 of each.

    scpo filters and weights; filter_only and weight_only do one of the two; inverse_weight filters and weights the
    other way round; full takes every pair, random_subset as many as the filter keeps, both with weight 1. uncertain
    and trim filter in their own ways, with weight 1 or, as uncertain_weighted and trim_weighted, with that of scpo.
    heads takes what scpo does, for one model of all groups.
    """
    everything, ones = np.ones(len(selection.keep), bool), np.ones(len(selection.keep), np.float32)
    weights = np.asarray(selection.weight, np.float32)
    match method:
        case "scpo" | "heads":
            return selection.keep, weights
        case "full":
            return everything, ones
        case "filter_only":
            return selection.keep, ones
        case "weight_only":
            return everything, weights
        case "inverse_weight":
            return selection.keep, inverse_weight(selection.ref_chosen, selection.ref_rejected).astype(np.float32)
        case "random_subset":
            return random_subset(selection.keep, rng), ones
        case "uncertain":
            return selection.uncertain, ones
        case "uncertain_weighted":
            return selection.uncertain, weights
        case "trim":
            return selection.trim, ones
        case "trim_weighted":
            return selection.trim, weights
    raise ValueError(f"unknown method {method!r}; methods are {METHODS}")
