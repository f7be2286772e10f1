"""The truth of the simulated world as a judge of responses: what a policy is worth that was trained against an RM.

The gold of a response to somebody is the sum of their true weights over the attributes that it states, as in the
ratings that the RMs learnt from, without noise. An attribute counts once, however often it is stated.
Legend of dimensions: N responses, A attributes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from scpo_jax.data import grammar

UNIVERSAL = "universal"  # the judge who has the weights that all groups share
WORST = 5  # percentile of the reference's gold that a text gets which is not of the grammar
LENGTH = "length"  # longer answers are what any policy finds first: gold is told without this attribute as well


def weights_of(truth: Mapping, without: str = "") -> dict[str, np.ndarray]:
    """Judge -> true weights `[A]` from a world's `truth.json`: every group's and the universal ones.

    Args:
      without: an attribute that counts nothing.
    """
    shared, names = truth["u_global"], truth["attributes"]
    judges = {UNIVERSAL: {}, **truth["delta"]}
    return {
        judge: np.array([0.0 if name == without else shared[name] + delta.get(name, 0.0) for name in names])
        for judge, delta in judges.items()
    }


def levels_of(responses: Sequence[str]) -> np.ndarray:
    """Attributes that responses state, `[N, A]` of -1, 0 and 1; nan in the rows of texts outside the grammar."""
    missing = np.full(len(grammar.ATTRIBUTES), np.nan)
    found = [grammar.attributes_of(text) for text in responses]
    return np.array([missing if levels is None else levels for levels in found], float).reshape(-1, len(missing))


def utilities(levels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Utilities `[N]` of levels `[N, A]` by weights `[A]`, rounded as in `truth.json`; nan outside the grammar."""
    return np.round(np.einsum("na,a->n", levels, weights), 6)


def worst_of(reference: np.ndarray) -> float:
    """What a text outside the grammar is worth: the 5th percentile of the reference's utilities `[N]`."""
    inside = reference[~np.isnan(reference)]
    return float(np.percentile(inside, WORST)) if len(inside) else float("nan")


def gold(levels: np.ndarray, reference: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Gold `[N]` of responses with levels `[N, A]`, given the levels `[M, A]` of samples of the reference policy."""
    own = utilities(levels, weights)
    return np.where(np.isnan(own), worst_of(utilities(reference, weights)), own)
