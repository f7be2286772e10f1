"""Control trainings, and what may be claimed from them: did an RM learn its group's culture or just the data set?

A control differs from a group's own RM in its pairs alone: as many of them, the same method, steps and start. The pairs
that choose the best step come from where the training pairs come from.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scpo_jax import metrics
from scpo_jax.scored_pairs import GroupPairs, advantage, scored

CONTROLS = ("pooled", "other_country", "shuffled")
LEVEL = 0.05  # of the claims of all groups together


class Material(NamedTuple):
    """What one RM learns from: rows of the preference table."""

    rows: list[dict]
    weights: np.ndarray  # of the pairs of `rows`, float32
    held_out: list[dict]  # chooses the step
    source: tuple[str, ...]  # groups whose pairs these are


def main_method(methods: Sequence[str]) -> str | None:
    """The method whose RMs the controls stand beside: scpo, or else the first."""
    return "scpo" if "scpo" in methods else next(iter(methods), None)


def draw(control: str, group: str, own: dict[str, Material], rng: np.random.Generator) -> Material | None:
    """As many training and held-out pairs as `own[group]` has, of all groups ("pooled") or of another one.

    The other group is drawn among those with as many pairs or more, else it is the one with the most, and all of its
    pairs are taken. None where there is no other group.
    """
    size = len(own[group].rows)
    others = [other for other in own if other != group]
    if not others:
        return None
    if control == "other_country":
        enough = [other for other in others if len(own[other].rows) >= size]
        source = (enough[rng.integers(len(enough))] if enough else max(others, key=lambda g: len(own[g].rows)),)
    else:
        source = tuple(own)
    rows = [row for g in source for row in own[g].rows]
    weights, held_out = np.concatenate([own[g].weights for g in source]), [r for g in source for r in own[g].held_out]
    taken = rng.permutation(len(rows))[:size]
    judging = rng.permutation(len(held_out))[: len(own[group].held_out)]
    return Material([rows[i] for i in taken], weights[taken], [held_out[i] for i in judging], source)


def shuffled(rows: Sequence[dict], rng: np.random.Generator) -> list[dict]:
    """Pairs of which each one keeps its label or gets the other one, by a coin; global rewards follow their texts."""
    swapped = {"chosen": "rejected", "chosen_id": "rejected_id", "ref_chosen": "ref_rejected"}
    swapped |= {value: key for key, value in swapped.items()}

    def reverse(row: dict) -> dict:
        both = {key: row[swapped[key]] for key in swapped if key in row}
        return row | both | {"pair_id": f"{row['pair_id']} reversed"}

    return [reverse(row) if tails else row for row, tails in zip(rows, rng.random(len(rows)) < 0.5, strict=True)]


def findings(groups: dict[str, GroupPairs], method: str, controls: Sequence[str]) -> dict:
    """What the controls say of `method`: {"tests", "verdict", "sentences"}, each by group.

    tests: of own RM minus control (and minus the global RM), the difference in accuracy on all test pairs of the group
    with its interval and a one-sided p-value, by a paired bootstrap over users. Claims, at 5 % over all groups:

    - culture: better than the RM of pooled pairs and than that of another group. Both have to hold, so the p-value of
      the claim is the larger of the two (an intersection-union test, Berger 1982), corrected by Holm over the groups.
    - data_set_only: not culture, but better than the global RM (corrected by Holm over the groups): something was
      learned, but nothing that shows to be the group's own.
    - none: neither.

    Verdicts need the controls pooled and other_country; groups without one of these RMs have none.
    """
    tests = {}
    for group, pairs in scored(groups, method).items():
        rivals = [name for name in (*controls, "global") if name in pairs.margins]
        tests[group] = {
            name: metrics.paired_test([advantage(method, name)(pairs)], [pairs.counts], sides=1) for name in rivals
        }
    judged = [group for group, own in tests.items() if {"pooled", "other_country"} <= own.keys()]
    culture = metrics.holm([max(tests[g]["pooled"]["p"], tests[g]["other_country"]["p"]) for g in judged])
    learned = metrics.holm([tests[g]["global"]["p"] for g in judged])
    verdict = {}
    for group, *p in zip(judged, culture, learned, strict=True):
        tests[group] |= dict(zip(("p_culture", "p_learned"), p, strict=True))
        verdict[group] = "culture" if p[0] <= LEVEL else "data_set_only" if p[1] <= LEVEL else "none"
    said = {group: sentence(group, verdict[group], tests[group], groups[group].users) for group in judged}
    return {"tests": tests, "verdict": verdict, "sentences": said}


def sentence(group: str, verdict: str, tests: dict, users: int) -> str:
    """The verdict on a group for people."""
    found = {
        "culture": "its own pairs teach something of its own",
        "data_set_only": "its RM learned something, but nothing that is shown to be its own",
        "none": "nothing that its RM learned shows",
    }[verdict]
    p = tests["p_learned"] if verdict == "none" else tests["p_culture"]
    rivals = {"pooled": "pooled pairs", "other_country": "another group's pairs", "global": "the global RM"}
    points = ", ".join(f"{points_of(tests[name])} against {rival}" for name, rival in rivals.items())
    few = f"; {users} test users are too few for such intervals" if users < metrics.FEW_USERS else ""
    return f"{group} ({verdict.replace('_', ' ')}): {found} (p = {p:.3f}); points of accuracy: {points}{few}."


def points_of(test: dict) -> str:
    """A difference in accuracy in points, with its interval."""
    difference, low, high = (100 * test[key] for key in ("difference", "low", "high"))
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"
