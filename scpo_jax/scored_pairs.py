"""Test pairs with the margins of every reward model, and the records that follow from them."""

import math
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from scpo_jax import metrics, score, scpo


class GroupPairs(NamedTuple):
    """Test pairs of one group, and what bootstraps over its users."""

    rows: list[dict]  # of the preference table
    counts: np.ndarray  # [resamples, B], of metrics.bootstrap_counts
    margins: dict[str, np.ndarray]  # method -> R+ - R- of each pair, `[B]`
    tau_test: float  # the edited pairs are those with a global probability below it
    movement: dict[str, float]  # method -> standard deviation of (its score - global score) over the distinct texts

    def subset(self, which: str) -> np.ndarray:
        """Mask `[B]` of all, edited (at tau_test 0.5: the global RM is wrong) or agreed (it is right) pairs."""
        margins = self.margins["global"]
        if which == "edited":
            return margins < scpo.logit(self.tau_test)
        return margins > 0 if which == "agreed" else np.ones(len(margins), bool)

    def correct(self, method: str) -> np.ndarray:
        """1.0 where a method is strictly right, `[B]`."""
        return (self.margins[method] > 0).astype(float)

    @property
    def users(self) -> int:
        """Number of users."""
        return len({row["user_id"] for row in self.rows})


SUBSETS = ("all", "edited", "agreed")


def test_pairs(rows: Sequence[dict], tau_test: float = 0.5, name: str = "") -> GroupPairs:
    """The test pairs of one group, scored by nobody yet; groups of other names are resampled independently."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    users = np.array([row["user_id"] for row in rows])
    return GroupPairs(list(rows), metrics.bootstrap_counts(users, rng), {}, tau_test, {})


def margins_of(rows: Sequence[dict], scores: dict[str, np.float32]) -> np.ndarray:
    """R+ - R- of each pair, `[B]`, from text key -> score."""
    chosen, rejected = (
        np.array([scores[score.text_key(row["prompt"], row[side])] for row in rows], np.float32)
        for side in ("chosen", "rejected")
    )
    return chosen - rejected


def scored(groups: dict[str, GroupPairs], method: str) -> dict[str, GroupPairs]:
    """Groups that have an RM of a method."""
    return {group: pairs for group, pairs in groups.items() if method in pairs.margins}


def is_constant(method: str, which: str, tau_test: float) -> bool:
    """Whether an accuracy follows from the definition of its pairs: the global RM is always right on agreed pairs, and
    always wrong on edited ones."""
    return method == "global" and (which == "agreed" or (which == "edited" and tau_test <= 0.5))


def records(groups: dict[str, GroupPairs], method: str) -> dict:
    """{group: {"all": A, "edited": A, "agreed": A}} of a method; accuracies constant by definition are None."""
    return {
        group: {which: record_of(pairs, method, which) for which in SUBSETS}
        for group, pairs in scored(groups, method).items()
    }


def record_of(pairs: GroupPairs, method: str, which: str) -> dict:
    """The record A of a method on a subset of a group's pairs."""
    record = metrics.accuracy_record(pairs.margins[method], pairs.counts, pairs.subset(which))
    if is_constant(method, which, pairs.tau_test):
        record |= {"accuracy": None, "low": None, "high": None}
    return record


def correct_by(method: str) -> Callable:
    """The function pairs -> 1.0 where `method` is right, `[B]`."""
    return lambda pairs: pairs.correct(method)


def advantage(method: str, other: str) -> Callable:
    """The function pairs -> correct by `method` minus correct by `other`, `[B]`."""
    return lambda pairs: pairs.correct(method) - pairs.correct(other)


def flips(method: str) -> Callable:
    """The function pairs -> 1.0 where just one of `method` and the global RM is right, `[B]`."""
    return lambda pairs: np.abs(advantage(method, "global")(pairs))


def noisy_global(method: str) -> Callable:
    """The function pairs -> probability that the global RM with noise is right, `[B]`: what movement alone brings.

    Noise is Gaussian, of mean 0, independent for every distinct text and with the standard deviation s of the method's
    score movement, R - r over the distinct test texts of the group. The probability that r+ + noise exceeds r- + noise
    is Phi((r+ - r-) / (s sqrt 2)), the mean over all draws of the noise; of equal texts it is 0.
    """

    def right(pairs: GroupPairs) -> np.ndarray:
        margins, std = pairs.margins["global"].astype(float), pairs.movement[method]
        if not std:
            return pairs.correct("global")
        differ = np.array([row["chosen"] != row["rejected"] for row in pairs.rows])
        return differ * 0.5 * np.vectorize(math.erfc, otypes=[float])(-margins / (2 * std))

    return right


def noise_records(groups: dict[str, GroupPairs], method: str) -> dict:
    """{group: {"movement": s, "all", "edited", "agreed": record of the global RM with that noise}}: `noisy_global`."""
    found = {}
    for group, pairs in groups.items():
        if method in pairs.movement:
            right, masks = noisy_global(method)(pairs), {which: pairs.subset(which) for which in SUBSETS}
            found[group] = {"movement": pairs.movement[method]} | {
                which: metrics.mean_record(right[mask], pairs.counts[:, mask]) if mask.any() else None
                for which, mask in masks.items()
            }
    return found


def macro(groups: dict[str, GroupPairs], methods: Sequence[str]) -> dict:
    """{method: {"all", "edited", "agreed": mean over groups with an interval}}; None where it is constant."""
    found = {
        method: {which: mean_over_groups(scored(groups, method), correct_by(method), which) for which in SUBSETS}
        for method in methods
    }
    for method, which in ((method, which) for method in methods for which in SUBSETS):
        if found[method][which] and any(is_constant(method, which, pairs.tau_test) for pairs in groups.values()):
            found[method][which] |= {"difference": None, "low": None, "high": None}
    return found


def gain(groups: dict[str, GroupPairs], method: str) -> dict:
    """Accuracy of a method minus that of the global RM, mean over groups, paired, per subset of the pairs."""
    groups = scored(groups, method)
    return {which: mean_over_groups(groups, advantage(method, "global"), which) for which in SUBSETS}


def mean_over_groups(groups: dict[str, GroupPairs], values: Callable, which: str = "all") -> dict | None:
    """Mean over groups of the mean of `values(pairs)` over a subset; None without any such pair."""
    parts = parts_of(groups, values, which)
    return metrics.mean_difference(*zip(*parts, strict=True)) if parts else None


def parts_of(groups: dict[str, GroupPairs], values: Callable, which: str = "all") -> list[tuple]:
    """Of every group with pairs in a subset: `values(pairs)` of these, and their counts."""
    return [
        (values(pairs)[mask], pairs.counts[:, mask]) for pairs in groups.values() if (mask := pairs.subset(which)).any()
    ]


def means(groups: dict[str, GroupPairs], values: Callable) -> dict:
    """{group: mean of `values(pairs)` with its interval} over all pairs of a group."""
    return {group: metrics.mean_record(values(pairs), pairs.counts) for group, pairs in groups.items()}


def compare(groups: dict[str, GroupPairs], method: str, other: str) -> dict:
    """{"groups": {group: paired test}, "mean": that of their mean}: accuracy of `method` minus that of `other`."""
    both = scored(scored(groups, method), other)
    if not both:
        return {"groups": {}, "mean": None}
    parts = parts_of(both, advantage(method, other))
    return {
        "groups": {g: metrics.paired_test([d], [c]) for g, (d, c) in zip(both, parts, strict=True)},
        "mean": metrics.paired_test(*zip(*parts, strict=True)),
    }
