"""What becomes of RMs as groups are followed more or less: blends with the global RM from strength 0 to beyond 1."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from etils import epath

from scpo_jax import bias, checkpoint, logs, metrics, score, steering, tokens
from scpo_jax.bias import Matrix
from scpo_jax.checkpoint import Loaded
from scpo_jax.data.encoding import Text
from scpo_jax.drawing import Picture, draw, legend
from scpo_jax.score import ScoreFunction
from scpo_jax.scored_pairs import GroupPairs, margins_of
from scpo_jax.tables import Table, spread

STRENGTHS = (0.0, 0.5, 1.0, 1.5)  # 0 and 1 are scored anyway; each other one costs a forward pass per group
KINDS = {"own": "own pairs", "others": "others' pairs", "agreed": "own agreed pairs"}
LOOKS = {
    "own": {"color": "#d55e00", "marker": "s"},
    "others": {"color": "#0072b2", "marker": "o"},
    "agreed": {"color": "#009e73", "marker": "^"},
}


class Point(NamedTuple):
    """The RMs of one strength."""

    own: dict[str, np.ndarray]  # group -> margins of its blend on its own test pairs, `[B]`
    matrix: Matrix  # margins of group i's blend on the visited pairs of group j


def follow(
    start: Loaded,
    folders: dict[str, epath.Path],
    method: str,
    groups: dict[str, GroupPairs],
    visited: dict[str, GroupPairs],
    matrix: Matrix,
    texts: dict[str, Text],
    function: ScoreFunction,
) -> dict[float, Point]:
    """strength -> what blends of the global RM and each group's RM of a method make of test pairs.

    Args:
      start: the global RM.
      folders: group -> checkpoint of its RM.
      groups: the test pairs, with margins of the global RM and of the method: strengths 0 and 1.
      visited, matrix: the pairs that all RMs are tried on, and the method's margins on them.
      texts: text key -> encoded text, of all these pairs.
    """
    points = {strength: Point({}, {}) for strength in STRENGTHS}
    points[0.0].own.update({group: groups[group].margins["global"] for group in folders})
    points[0.0].matrix.update({g: row for g, row in bias.global_rows(visited).items() if g in folders})
    points[1.0].own.update({group: groups[group].margins[method] for group in folders})
    points[1.0].matrix.update(matrix)
    progress = logs.Progress(len(folders), "evaluate", "strength")
    for group, folder in folders.items():
        params = checkpoint.load_merged(folder).params
        wanted = tokens.texts_of([row for pairs in (groups[group], *visited.values()) for row in pairs.rows])
        for strength in set(STRENGTHS) - {0.0, 1.0}:
            blended = steering.blend(start.params, {group: strength}, lambda _, params=params: params)
            values = score.score_texts(function, blended, [texts[key] for key in wanted])
            scores = dict(zip(wanted, values, strict=True))
            points[strength].own[group] = margins_of(groups[group].rows, scores)
            points[strength].matrix[group] = {j: margins_of(pairs.rows, scores) for j, pairs in visited.items()}
        progress.add(1)
    progress.close()
    return points


def report(
    method: str | None, points: dict[float, Point], groups: dict[str, GroupPairs], visited: dict[str, GroupPairs]
) -> dict:
    """{"method", "strengths", and for own, others and agreed: a record at each strength}, means over groups.

    own: accuracy of a group's blend on its test pairs; agreed: on those that the global RM is right on, None at
    strength 0, where it is by definition; others: on visited pairs of the other groups, mean over these. With 95 %
    intervals of a bootstrap over users, the same resamples for all strengths. {} without points.
    """
    if not points:
        return {}
    found = {"own": [], "agreed": [], "others": []}
    for strength, point in points.items():
        for which, name in (("all", "own"), ("agreed", "agreed")):
            found[name].append(_mean(point.own, groups, lambda pairs, which=which: pairs.subset(which)))
        if strength == 0 and found["agreed"][-1]:
            found["agreed"][-1] |= {"difference": None, "low": None, "high": None}
        found["others"].append(bias.abroad(point.matrix, visited))
    return {"method": method, "strengths": list(points), "groups": list(next(iter(points.values())).own), **found}


def _mean(own: dict[str, np.ndarray], groups: dict[str, GroupPairs], mask_of: Callable) -> dict | None:
    """Mean over groups of strict accuracy on the pairs of a mask."""
    masks = {group: mask_of(groups[group]) for group in own}
    parts = [((own[g][m] > 0).astype(float), groups[g].counts[:, m]) for g, m in masks.items() if m.any()]
    return metrics.mean_difference(*zip(*parts, strict=True)) if parts else None


def table(found: dict) -> Table | None:
    """The section "steering" of `reports/evaluation.json` as a table; None without."""
    if not found:
        return None
    rows = [
        [f"{strength:g}", *(spread(found[kind][i]) for kind in KINDS)] for i, strength in enumerate(found["strengths"])
    ]
    note = (
        f"Accuracy in percent of blends (1 - strength) global RM + strength RM of {found['method']}, mean over groups. "
        "Agreed pairs are those that the global RM is right on: at strength 0 all of them."
    )
    return Table("Accuracy along the strength", note, ["strength", *KINDS.values()], rows)


def pareto(found: dict) -> Picture | None:
    """Accuracy for the own group against accuracy for the others, from strength 0 on."""
    if not found or None in found["others"]:
        return None

    def plot(axes, found):
        axis = axes[0]
        x, y = (
            [[100 * own[key] for key in ("difference", "low", "high")] for own in found[k]] for k in ("others", "own")
        )
        axis.plot([own[0] for own in x], [own[0] for own in y], color=LOOKS["own"]["color"], marker="s", linewidth=1.2)
        for strength, (across, left, right), (up, low, high) in zip(found["strengths"], x, y, strict=True):
            axis.plot([left, right], [up, up], color="#888888", linewidth=0.8)
            axis.plot([across, across], [low, high], color="#888888", linewidth=0.8)
            axis.annotate(f"{strength:g}", (across, up), xytext=(5, 5), textcoords="offset points")
        axis.set_xlabel("accuracy on the other groups' pairs, percent")
        axis.set_ylabel("accuracy on own pairs, percent")

    alt = "Accuracy on own pairs against accuracy on other groups' pairs at each strength; numbers are in the table."
    caption = f"What following a group ({found['method']}) gains it and costs the others, by strength; 95 % intervals."
    return draw("pareto", alt, caption, plot, found, height=3.0)


def curves(found: dict) -> Picture | None:
    """Accuracy on own, others' and agreed pairs along the strength."""
    if not found:
        return None

    def plot(axes, found):
        axis = axes[0]
        for kind, label in KINDS.items():
            known = [(s, own) for s, own in zip(found["strengths"], found[kind], strict=True)
                     if own and own["difference"] is not None]  # fmt: skip
            if known:
                x = [strength for strength, _ in known]
                y, low, high = ([100 * own[key] for _, own in known] for key in ("difference", "low", "high"))
                axis.plot(x, y, label=label, linewidth=1.2, **LOOKS[kind])
                axis.fill_between(x, low, high, color=LOOKS[kind]["color"], alpha=0.15, linewidth=0)
        axis.set_xticks(found["strengths"], [f"{strength:g}" for strength in found["strengths"]])
        axis.set_xlabel("strength")
        axis.set_ylabel("accuracy, percent")
        legend(axis)

    alt = "Accuracy on own pairs, on other groups' pairs and on agreed pairs against the strength; see the table."
    caption = "From the global RM (0) to the group's own (1) and beyond, means over groups with 95 % bands."
    return draw("strengths", alt, caption, plot, found, height=2.6)
