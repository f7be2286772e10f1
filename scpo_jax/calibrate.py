"""Which tau and beta suit a group: `config.scpo.calibrate`, decided on training users alone.

A training for each point of the grid would cost 36 times the run. Instead only a score head is trained, on the pooled
features of the frozen global RM and starting from its score: a convex problem that takes milliseconds. It sees the same
pairs and weights as the full training, and as it does starts from the global RM; what it cannot see is that the encoder
moves, so a choice is the best for the head, not certain to be so for the whole model. The report has the whole grid.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from scpo_jax import logistic, score, scpo
from scpo_jax.checkpoint import Loaded
from scpo_jax.data import packing
from scpo_jax.data.encoding import Text

TAUS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BETAS = (0.3, 0.6, 1.1, 2.0, 4.0, 1e6)  # the last one hardly weights
FOLDS = 5  # each training user is a validation user once
DIRECTIONS = 64  # principal directions of the features' differences that the head sees
PENALTY = 1e-2  # on coefficients of directions whose root mean square is at most 1


def pooled_features(loaded: Loaded, texts: Sequence[Text], dtype: str) -> np.ndarray:
    """What the score head of a model reads, `[N, D]` float32, of encoded texts; on one device of this process."""
    function = jax.jit(functools.partial(loaded.model.pooled, dtype=dtype))
    features = np.zeros((len(texts), loaded.model.width), np.float32)
    lengths = [len(text.input_ids) for text in texts]
    for indices, *places, slots in packing.plan_batches(lengths, loaded.model.width, score.TOKENS_PER_BATCH):
        batch = packing.lay_out([texts[i] for i in indices], *places, slots)
        features[np.asarray(indices)] = np.asarray(function(loaded.params, batch))[: len(indices)]
    return features


def choose(
    features: np.ndarray, refs: tuple[np.ndarray, np.ndarray], users: Sequence[str], tau: float, beta: float, seed: int
) -> dict:
    """The tau and beta of a group, from its training pairs.

    Each point of the grid is judged by strict accuracy on held-out users, five times a fifth of them; among points of
    equal accuracy the one nearest to (tau, beta) on the grid is chosen, which is (tau, beta) itself where that is one.

    Args:
      features: of the chosen minus those of the rejected response, `[B, D]`.
      refs: global rewards of the chosen and of the rejected response, `[B]` each.
      users: who labelled each pair, `[B]`.
      tau, beta: the paper's values, or what the config has for them; the grid holds them too.
      seed: of the folds.

    Returns:
      tau, beta, their "accuracy", "before" (that of the values given), "users", "pairs" and "grid": [tau, beta,
      accuracy] of every point. With fewer users than folds nothing is compared and accuracies are None.
    """
    taus, betas = sorted({*TAUS, tau}), sorted({*BETAS, beta})
    names = list(dict.fromkeys(users))
    result = {"tau": tau, "beta": beta, "accuracy": None, "before": None, "users": len(names), "pairs": len(users)}
    if len(names) < FOLDS:
        return result | {"grid": []}
    fold_of = dict(zip(names, np.random.default_rng(seed).permutation(len(names)) % FOLDS, strict=True))
    folds, x = np.array([fold_of[user] for user in users]), principal(features)
    points = [(t, b) for t in taus for b in betas]
    right = {point: held_out_accuracy(x, refs, folds, *point) for point in points}

    def preference(point):
        away = abs(taus.index(point[0]) - taus.index(tau)) + abs(betas.index(point[1]) - betas.index(beta))
        return -right[point], away, points.index(point)

    best = min(points, key=preference)
    found = {"tau": best[0], "beta": best[1], "accuracy": right[best], "before": right[tau, beta]}
    return result | found | {"grid": [[*point, right[point]] for point in points]}


def line(found: dict) -> str:
    """A choice as people read it."""
    if found["accuracy"] is None:
        return f"{found['users']} users are too few to compare, tau {found['tau']} and beta {found['beta']} stay"
    accuracy, before = (f"{100 * found[key]:.1f} %" for key in ("accuracy", "before"))
    return f"tau {found['tau']}, beta {found['beta']}, {accuracy} on validation users; {before} without"


def principal(differences: np.ndarray) -> np.ndarray:
    """Coordinates `[B, at most DIRECTIONS]` along the largest directions, the first of root mean square 1."""
    differences = np.asarray(differences, np.float64)
    _, lengths, directions = np.linalg.svd(differences, full_matrices=False)
    return differences @ directions[:DIRECTIONS].T / max(lengths[0] / np.sqrt(len(differences)), 1e-12)


def held_out_accuracy(x: np.ndarray, refs, folds: np.ndarray, tau: float, beta: float) -> float:
    """Share of pairs that a head is strictly right on which was trained without their fold, by the filter and weight.

    A head's reward difference is that of the global RM plus x @ c; where a training keeps no pair, c is 0.
    """
    base = refs[0] - refs[1]
    used, weights = scpo.keep(*refs, tau), scpo.weight(*refs, beta)
    right = 0
    for fold in range(FOLDS):
        train, test = used & (folds != fold), folds == fold
        c = logistic.fit(x[train], PENALTY, weights=weights[train], offset=base[train]) if train.any() else 0 * x[0]
        right += int(np.sum(base[test] + x[test] @ c > 0))
    return right / len(base)


def group_differences(features: dict[str, np.ndarray], rows: Sequence[dict]) -> np.ndarray:
    """Features of the chosen minus those of the rejected response of rows, `[B, D]`; `features` by `score.text_key`."""
    sides = [[features[score.text_key(row["prompt"], row[side])] for row in rows] for side in ("chosen", "rejected")]
    return np.subtract(*sides)
