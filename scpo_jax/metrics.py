"""Accuracy records and paired tests with a bootstrap over users; numpy only.

Whole users are resampled (the cluster bootstrap, Davison and Hinkley 1997, section 3.8), since pairs of one user are
not independent. Models are compared on the same resamples.
"""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
FEW_USERS = 20  # with fewer, the interval of a bootstrap over users is too narrow


def bootstrap_counts(users: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each pair is drawn, `[resamples, B]` float32, when whole users are drawn with replacement.

    Args:
      users: user of each pair, `[B]`, any sortable type.
    """
    names, member = np.unique(users, return_inverse=True)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return draws.astype(np.float32)[:, member]


def interval(samples: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The central interval of bootstrap samples; nan samples (no pair drawn) are left out."""
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(samples, [tail, 100 - tail])
    return float(low), float(high)


def resampled_means(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of `values` `[B]` in each resample `[resamples]`; nan where no pair was drawn."""
    both = np.stack([values, np.ones(len(values))], axis=1)
    sums, total = (counts @ both.astype(np.result_type(counts, np.float32))).astype(np.float64).T
    return np.divide(sums, total, out=np.full(len(counts), np.nan), where=total > 0)


def accuracy_record(margins: np.ndarray, counts: np.ndarray, mask: np.ndarray | None = None) -> dict:
    """The record A of one model on some pairs: strict accuracy, its interval, number of pairs and of ties.

    Args:
      margins: R+ - R- of each pair, `[B]`. A tie is an error, and is counted.
      counts: of `bootstrap_counts` for these pairs, `[resamples, B]`.
      mask: which pairs count, `[B]` of bool; None for all.
    """
    mask = np.ones(len(margins), bool) if mask is None else mask
    if not mask.any():
        return {"accuracy": None, "low": None, "high": None, "n": 0, "ties": 0}
    correct = (margins[mask] > 0).astype(float)
    low, high = interval(resampled_means(correct, counts[:, mask]))
    ties = int(np.sum(margins[mask] == 0))
    return {"accuracy": float(correct.mean()), "low": low, "high": high, "n": int(mask.sum()), "ties": ties}


def mean_record(values: np.ndarray, counts: np.ndarray) -> dict:
    """Mean of `values` `[B]`, which are not empty, with its interval."""
    low, high = interval(resampled_means(values, counts))
    return {"mean": float(values.mean()), "low": low, "high": high}


def mean_samples(differences: Sequence[np.ndarray], counts: Sequence[np.ndarray]) -> np.ndarray:
    """Bootstrap samples `[resamples]` of what `mean_difference` estimates."""
    return np.mean([resampled_means(d, c) for d, c in zip(differences, counts, strict=True)], axis=0)


def mean_difference(differences: Sequence[np.ndarray], counts: Sequence[np.ndarray]) -> dict:
    """Mean over groups of the mean of per-pair differences, with a bootstrap over users within each group.

    Args:
      differences: per group, e.g. correct by one model minus correct by another, `[B]`.
      counts: per group, of `bootstrap_counts`; groups are resampled independently.
    """
    estimate = float(np.mean([d.mean() for d in differences]))
    low, high = interval(mean_samples(differences, counts))
    return {"difference": estimate, "low": low, "high": high, "groups": len(differences)}


def paired_test(differences: Sequence[np.ndarray], counts: Sequence[np.ndarray], sides: int = 2) -> dict:
    """`mean_difference` and "p", the p-value of no difference (`sides` 2) or of none above 0 (`sides` 1)."""
    return mean_difference(differences, counts) | {"p": p_value(mean_samples(differences, counts), sides)}


def p_value(samples: np.ndarray, sides: int = 2) -> float:
    """p-value of the hypothesis that a difference is 0 (`sides` 2) or at most 0 (`sides` 1), from its resamples.

    One-sided: the share of resamples at or below 0. Two-sided: twice the smaller share, so that p < 0.05 where the 95 %
    percentile interval leaves out 0 (Efron and Tibshirani 1993, section 15.4). One is added above and below (Davison
    and Hinkley 1997, section 4.2), so the smallest p-value is 1 / (resamples + 1). nan samples are left out.
    """
    samples = samples[~np.isnan(samples)]
    below, above = ((1 + np.sum(side)) / (1 + len(samples)) for side in (samples <= 0, samples >= 0))
    return float(below if sides == 1 else min(1.0, 2 * min(below, above)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the same order: reject where they are at most the level (Holm 1979).

    The k-th smallest of m, counted from 0, is multiplied by m - k; none becomes smaller than one before it, or above 1.
    """
    corrected, least = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = float(least)
    return corrected
