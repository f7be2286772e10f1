"""Accuracy records with intervals from a bootstrap over users; numpy only."""

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


def bootstrap_counts(users: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each pair is drawn, `[resamples, B]`, when whole users are drawn with replacement.

    Pairs of one user are not independent, so the user is what is resampled.

    Args:
      users: user of each pair, `[B]`, any sortable type.
    """
    names, member = np.unique(users, return_inverse=True)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return draws.astype(np.int32)[:, member]


def interval(samples: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The central interval of bootstrap samples; nan samples (no pair drawn) are left out."""
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(samples, [tail, 100 - tail])
    return float(low), float(high)


def resampled_means(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of `values` `[B]` in each resample `[resamples]`; nan where no pair was drawn."""
    total = counts.sum(1)
    return np.divide(counts @ values, total, out=np.full(len(counts), np.nan), where=total > 0)


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


def mean_difference(differences: list[np.ndarray], counts: list[np.ndarray]) -> dict:
    """Mean over groups of the mean of per-pair differences, with a bootstrap over users within each group.

    Args:
      differences: per group, e.g. correct by one model minus correct by another, `[B]`.
      counts: per group, of `bootstrap_counts`; groups are resampled independently.
    """
    estimate = float(np.mean([d.mean() for d in differences]))
    samples = np.mean([resampled_means(d, c) for d, c in zip(differences, counts, strict=True)], axis=0)
    low, high = interval(samples)
    return {"difference": estimate, "low": low, "high": high, "groups": len(differences)}
