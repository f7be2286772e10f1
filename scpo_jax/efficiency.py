"""How many pairs a method needs: statistics of `scpo benchmark`, on cells that were trained already. numpy only.

A cell is one method on one share of the data under one rule for the optimiser, all groups, one seed. Its accuracy is
the mean over groups of the strict accuracy on the group's test pairs.

Intervals are the central 95 % of 2000 resamples in two steps. Seeds are drawn with replacement, as many as there are;
in each the test users of every group are drawn with replacement (`metrics.bootstrap_counts`), the same ones for all
cells of the seed, so that cells are compared on the same users. Where all seeds have the same test users they are drawn
once for all, otherwise for each seed drawn by itself. What differs between seeds is thereby known only as well as few
seeds tell: with S of them its part of the variance comes out as (S - 1) / S of what it is, with one it is left out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scpo_jax import metrics
from scpo_jax.scored_pairs import SUBSETS, GroupPairs

MARGIN = 0.005  # below the accuracy of full finetuning on all data: the accuracy to reach
AXES = ("annotated", "trained")  # pairs that need a label; pairs that are trained on


class Key(NamedTuple):
    """Names a cell."""

    budget: str  # rule for the optimiser: "steps" or "epochs"
    method: str
    fraction: float  # of the training users; for pairs drawn singly, as many pairs as these have


GLOBAL = Key("", "global", 0.0)


class Seed(NamedTuple):
    """What a seed found: of every cell the accuracy on each subset of the test pairs, and how many pairs it took."""

    users: dict[str, list[str]]  # group -> test users, sorted
    estimates: dict[Key, dict[str, float | None]]  # subset -> accuracy, None without such a pair
    samples: dict[Key, dict[str, np.ndarray]]  # subset -> accuracy in each resample of users, `[resamples]`
    counts: dict[Key, dict[str, int]]  # annotated, trained, steps: sums over groups


def seed_of(groups: dict[str, GroupPairs], correct: dict[Key, dict[str, np.ndarray]], counts: dict) -> Seed:
    """Accuracies of all cells of a seed, and of the global RM, on the same resamples.

    Args:
      groups: test pairs with the margins of the global RM.
      correct: cell -> group -> 1.0 where its RM is strictly right, `[B]`.
      counts: see `Seed`.
    """
    correct = {GLOBAL: {group: pairs.correct("global") for group, pairs in groups.items()}} | correct
    keys = list(correct)
    estimates, samples = {key: {} for key in keys}, {key: {} for key in keys}
    for which in SUBSETS:
        means, drawn = [], []
        for group, pairs in groups.items():
            mask = pairs.subset(which)
            if mask.any():
                values = np.stack([correct[key][group][mask] for key in keys], axis=1)
                means.append(values.mean(0))
                drawn.append(resampled(values, pairs.counts[:, mask]))
        for i, key in enumerate(keys):
            estimates[key][which] = float(np.mean([own[i] for own in means])) if means else None
            if means:
                samples[key][which] = np.mean([own[:, i] for own in drawn], axis=0)
    users = {group: sorted({row["user_id"] for row in pairs.rows}) for group, pairs in groups.items()}
    return Seed(users, estimates, samples, counts)


def resampled(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means of the columns of `values` `[B, C]` in each resample, `[resamples, C]`; nan where no pair was drawn."""
    total = counts.sum(1, dtype=np.float64)[:, None]
    sums = (counts @ values.astype(np.float32)).astype(np.float64)
    return np.divide(sums, total, out=np.full(sums.shape, np.nan), where=total > 0)


class Seeds:
    """Several seeds together, and which of them and of their resamples of users make up each resample."""

    def __init__(self, seeds: Sequence[Seed], rng: np.random.Generator, resamples: int = metrics.RESAMPLES):
        self._seeds = seeds
        self._drawn = rng.integers(len(seeds), size=(resamples, len(seeds)))
        same = all(seed.users == seeds[0].users for seed in seeds)
        offsets = np.arange(len(seeds)) * (0 if same else resamples // len(seeds))
        self._users = (np.arange(resamples)[:, None] + offsets) % resamples

    def accuracy(self, key: Key, which: str = "all") -> tuple[float | None, np.ndarray]:
        """(mean over seeds, samples `[resamples]`); None and no sample where a seed has no such pair."""
        estimates = [seed.estimates[key][which] for seed in self._seeds]
        if None in estimates:
            return None, np.zeros(0)
        samples = np.stack([seed.samples[key][which] for seed in self._seeds])
        return float(np.mean(estimates)), samples[self._drawn, self._users].mean(1)

    def count(self, key: Key, what: str) -> tuple[float, np.ndarray]:
        """(mean over seeds, samples `[resamples]`) of a number of pairs or steps, which users do not change."""
        counts = np.array([seed.counts[key][what] for seed in self._seeds], float)
        return float(counts.mean()), counts[self._drawn].mean(1)


def isotonic(values: Sequence[float]) -> np.ndarray:
    """The non-decreasing sequence nearest to `values` `[K]` in squares: pool adjacent violators.

    Each value opens a block; while the block before has a mean as large or larger, the two become one (Barlow,
    Bartholomew, Bremner and Brunk 1972, section 1.2).
    """
    means, sizes = [], []
    for value in values:
        mean, size = float(value), 1
        while means and means[-1] >= mean:
            mean, size = (means[-1] * sizes[-1] + mean * size) / (sizes[-1] + size), size + sizes[-1]
            del means[-1], sizes[-1]
        means.append(mean)
        sizes.append(size)
    return np.repeat(means, sizes)


def pairs_needed(pairs: Sequence[float], accuracies: Sequence[float], target: float) -> float:
    """Where the isotonic curve of `accuracies` `[K]` over rising `pairs` `[K]` first reaches `target`.

    Straight lines join the points. The first point's pairs if it is there already; infinity where it is not reached.
    """
    curve = isotonic(accuracies)
    if curve[-1] < target:
        return np.inf
    i = int(np.argmax(curve >= target))
    if i == 0:
        return float(pairs[0])
    share = (target - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(pairs[i - 1] + share * (pairs[i] - pairs[i - 1]))


def needed(seeds: Seeds, budget: str, method: str, fractions: Sequence[float], axis: str) -> dict:
    """How many pairs, counted along `axis`, a method needs to be as good as full finetuning on all data.

    The curve starts at no pairs, with the global RM, and has a point for each of `fractions`, the means over seeds. The
    target is the accuracy of full at 1 less MARGIN; curve, pairs and target are those of the same resample.

    Returns:
      {"pairs", "low", "high", "share", "reached"}: pairs of all groups together with their interval, None for "not
      reached"; their share of those of full at 1; the share of resamples in which the target is reached.
    """
    keys, full = [Key(budget, method, fraction) for fraction in fractions], Key(budget, "full", 1.0)
    accuracies = [seeds.accuracy(GLOBAL), *map(seeds.accuracy, keys)]
    counts = [seeds.count(key, axis) for key in keys]
    estimate, target = seeds.accuracy(full)
    found = pairs_needed([0.0, *(own[0] for own in counts)], [own[0] for own in accuracies], estimate - MARGIN)
    x = np.stack([np.zeros(len(target)), *(own[1] for own in counts)], axis=1)
    y = np.stack([own[1] for own in accuracies], axis=1)
    samples = np.array([pairs_needed(*own) for own in zip(x, y, target - MARGIN, strict=True)])
    low, high = (finite(np.quantile(samples, tail, method="inverted_cdf")) for tail in TAILS)
    share = None if np.isinf(found) else found / seeds.count(full, axis)[0]
    reached = float(np.mean(np.isfinite(samples)))
    return {"pairs": finite(found), "low": low, "high": high, "share": share, "reached": reached}


TAILS = ((1 - metrics.LEVEL) / 2, (1 + metrics.LEVEL) / 2)


def finite(value: float) -> float | None:
    """A number of pairs; None for infinitely many."""
    return float(value) if np.isfinite(value) else None


def accuracy_record(seeds: Seeds, key: Key, which: str = "all") -> dict:
    """{"accuracy", "low", "high"} of a cell; None without such a pair, and for the global RM on any subset
    but all, where it follows from their definition."""
    estimate, samples = seeds.accuracy(key, which)
    if estimate is None or (key == GLOBAL and which != "all"):
        return {"accuracy": None, "low": None, "high": None}
    low, high = metrics.interval(samples)
    return {"accuracy": estimate, "low": low, "high": high}


def difference(seeds: Seeds, key: Key, other: Key) -> dict:
    """{"difference", "low", "high", "p"}: accuracy of a cell minus that of another, paired, p two-sided."""
    (mine, own), (theirs, others) = seeds.accuracy(key), seeds.accuracy(other)
    low, high = metrics.interval(own - others)
    return {"difference": mine - theirs, "low": low, "high": high, "p": metrics.p_value(own - others)}


def at_equal_labels(seeds: Seeds, budget: str, method: str, rival: str, fractions: Sequence[float]) -> dict | None:
    """The accuracy of a method minus that of another where both have annotated equally many pairs.

    These are as many as both have annotated at 1, or the one that needs fewer has. There the curve of the other lies
    between two of its points, on a straight line over the logarithm of the annotated pairs: where more pairs help ever
    less that is too low, to the disadvantage of the one that is "interpolated". Curves are those of the same resample.

    Returns:
      {"annotated", "interpolated": name or None, "difference", "low", "high", "p"} (p two-sided); None where one of the
      curves begins only beyond the end of the other.
    """
    curves = {}
    for name in (method, rival):
        keys = [Key(budget, name, fraction) for fraction in fractions]
        points = [(seeds.count(key, "annotated"), seeds.accuracy(key)) for key in keys]
        curves[name] = [  # the estimates, then their resamples, `[1 + resamples, fractions]`
            np.stack([np.append(estimate, samples) for estimate, samples in own], axis=1)
            for own in zip(*points, strict=True)
        ]
    labels = np.min([x[:, -1] for x, _ in curves.values()], axis=0)
    if labels[0] < max(1, *(x[0, 0] for x, _ in curves.values())):
        return None
    mine, theirs = (
        np.array(
            [np.interp(*own) for own in zip(np.log(np.maximum(labels, 1)), np.log(np.maximum(x, 1)), y, strict=True)]
        )
        for x, y in curves.values()
    )
    low, high = metrics.interval((mine - theirs)[1:])
    return {
        "annotated": float(labels[0]),
        "interpolated": next((name for name, (x, _) in curves.items() if labels[0] not in x[0]), None),
        "difference": float((mine - theirs)[0]),
        "low": low,
        "high": high,
        "p": metrics.p_value((mine - theirs)[1:]),
    }


def ratio(seeds: Seeds, budget: str, method: str) -> dict:
    """The paper's measure: all pairs / pairs trained on, at 1, where a method is not significantly worse than full.

    Not significantly worse: the 95 % interval of the difference in accuracy does not lie below 0. That shows no
    equality: the fewer the test users, the easier. None where it is worse. The interval is over seeds.

    Returns:
      {"all", "kept", "ratio": {"ratio", "low", "high"} or None, and `difference` to full}.
    """
    key, full = Key(budget, method, 1.0), Key(budget, "full", 1.0)
    (every, all_samples), (kept, kept_samples) = seeds.count(full, "trained"), seeds.count(key, "trained")
    against, found = difference(seeds, key, full), None
    if kept and against["high"] >= 0:
        low, high = metrics.interval(
            np.divide(all_samples, kept_samples, where=kept_samples > 0, out=all_samples * np.nan)
        )
        found = {"ratio": every / kept, "low": low, "high": high}
    return {"all": every, "kept": kept, "ratio": found, **against}
