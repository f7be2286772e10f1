"""The method of SCPO (arXiv 2606.18606, section 3): which pairs to keep and how much each one weighs.

Everything here is a pure function of the global reward model's rewards of a pair, `ref_rewards_chosen` and
`ref_rewards_rejected`, both `[B]` and without unit. numpy arrays in, numpy arrays out; jax arrays work as well.
"""

import math

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


def random_subset(keep_mask, rng: np.random.Generator):
    """A mask `[B]` of as many pairs as `keep_mask` has, drawn without looking at them: what the filter must beat."""
    chosen = rng.permutation(len(keep_mask))[: int(np.sum(keep_mask))]
    mask = np.zeros(len(keep_mask), bool)
    mask[chosen] = True
    return mask


METHODS = ("scpo", "full", "filter_only", "weight_only", "inverse_weight", "random_subset")


def training_set(method: str, kept, weights, ref_rewards_chosen, ref_rewards_rejected, rng: np.random.Generator):
    """What a method trains on: mask `[B]` of the pairs it uses and weight `[B]` float32 of each.

    scpo filters and weights; filter_only and weight_only do one of the two; inverse_weight filters and weights the
    other way round; full takes every pair, random_subset as many as the filter keeps, both with weight 1. `kept` and
    `weights` are `keep` and `weight` of the pairs, as the selection on disk records them.
    """
    everything, ones = np.ones(len(kept), bool), np.ones(len(kept), np.float32)
    match method:
        case "scpo":
            return kept, np.asarray(weights, np.float32)
        case "full":
            return everything, ones
        case "filter_only":
            return kept, ones
        case "weight_only":
            return everything, np.asarray(weights, np.float32)
        case "inverse_weight":
            return kept, inverse_weight(ref_rewards_chosen, ref_rewards_rejected).astype(np.float32)
        case "random_subset":
            return random_subset(kept, rng), ones
    raise ValueError(f"unknown method {method!r}; methods are {METHODS}")
