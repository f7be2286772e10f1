"""Which tau and beta suit a group: `config.scpo.calibrate`, decided on training users alone.

A training for each point of the grid would cost 36 times the run. Instead a reward linear in the counts of tokens is
added to the global RM's and fitted to the same pairs with the same weights: a convex problem that takes milliseconds.
It starts from the global RM as the training does. It sees no order of words, so a choice is the best for it and not
certain to be so for the RM; the report has the whole grid. (A score head on the global RM's own pooled features would
be nearer, but these hold little besides its score: in the demo all points of the grid came out nearly equal.)
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from scpo_jax import logistic, score, scpo
from scpo_jax.data.encoding import Text

TAUS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BETAS = (0.3, 0.6, 1.1, 2.0, 4.0, 1e6)  # the last one hardly weights
FOLDS = 5  # each training user is a validation user once
TOKENS = 512  # most frequent tokens counted
DIRECTIONS = 64  # principal directions of the differences of counts
PENALTY = 0.03  # on coefficients of directions of root mean square 1


def token_differences(texts: dict[str, Text], rows: Sequence[dict]) -> np.ndarray:
    """log(1 + count) of tokens in the chosen minus that in the rejected text of rows, `[B, at most TOKENS]`.

    `texts` holds encoded texts by `score.text_key`; the tokens are those that most texts have, special ones cancel out.
    """
    sides = [[score.text_key(row["prompt"], row[side]) for row in rows] for side in ("chosen", "rejected")]
    keys = dict.fromkeys(key for side in sides for key in side)
    counts = {key: Counter(texts[key].input_ids.tolist()) for key in keys}
    uses = Counter(token for own in counts.values() for token in own)
    column = {token: i for i, (token, _) in enumerate(uses.most_common(TOKENS))}
    features = {}
    for key, own in counts.items():
        features[key] = np.zeros(len(column), np.float32)
        for token, count in own.items():
            if token in column:
                features[key][column[token]] = np.log1p(count)
    chosen, rejected = (np.array([features[key] for key in side]) for side in sides)
    return chosen - rejected


def choose(
    differences: np.ndarray,
    refs: tuple[np.ndarray, np.ndarray],
    users: Sequence[str],
    tau: float,
    beta: float,
    seed: int,
) -> dict:
    """The tau and beta of a group, from its training pairs.

    Each point of the grid is judged by strict accuracy on held-out users, five times a fifth of them; among points of
    equal accuracy the one nearest to (tau, beta) on the grid is chosen, which is (tau, beta) itself where that is one.

    Args:
      differences: of `token_differences`, `[B, D]`.
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
    folds, x = np.array([fold_of[user] for user in users]), principal(differences)
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
    """Coordinates `[B, at most DIRECTIONS]` along the largest directions, each of root mean square 1.

    Exchanging the responses of a pair changes its sign and no direction: they know nothing of labels.
    """
    x = np.asarray(differences, np.float64)
    squares, directions = np.linalg.eigh(x.T @ x / len(x))
    squares, directions = squares[::-1][:DIRECTIONS], directions[:, ::-1][:, :DIRECTIONS]
    used = squares > 1e-8 * max(squares[0], 1e-12)
    return x @ directions[:, used] / np.sqrt(squares[used])


def held_out_accuracy(x: np.ndarray, refs, folds: np.ndarray, tau: float, beta: float) -> float:
    """Share of pairs that a reward fitted without their fold, on filtered and weighted pairs, is strictly right on.

    Its difference is that of the global RM plus x @ c; where the filter keeps no pair, c is 0.
    """
    base = refs[0] - refs[1]
    used, weights = scpo.keep(*refs, tau), scpo.weight(*refs, beta)
    right = 0
    for fold in range(FOLDS):
        train, test = used & (folds != fold), folds == fold
        c = logistic.fit(x[train], PENALTY, weights=weights[train], offset=base[train]) if train.any() else 0 * x[0]
        right += int(np.sum(base[test] + x[test] @ c > 0))
    return right / len(base)
