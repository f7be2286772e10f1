"""Whom a reward model disadvantages: every RM on every group's pairs, and accuracy within any field of the survey."""

from collections.abc import Sequence

import numpy as np

from scpo_jax import metrics
from scpo_jax.scored_pairs import GroupPairs, compare

VISITED_PAIRS = 256  # pairs of a group that every RM is tried on, whole users; all pairs would cost G times as much

EFFECTS = {  # what is added -> methods without and with it
    "filter, nothing weighted": ("full", "filter_only"),
    "weight, kept pairs": ("filter_only", "scpo"),
    "weight, all pairs": ("full", "weight_only"),
    "uncertain pairs alone": ("full", "uncertain"),
    "weight, uncertain pairs": ("uncertain", "uncertain_weighted"),
    "trimmed pairs alone": ("full", "trim"),
    "weight, trimmed pairs": ("trim", "trim_weighted"),
}

Matrix = dict[str, dict[str, np.ndarray]]  # group i -> group j -> margins by i's RM on pairs of j, `[B_j]`


def visited_rows(rows: Sequence[dict], rng: np.random.Generator, most: int = VISITED_PAIRS) -> list[dict]:
    """The pairs of randomly drawn users, one user after the other until there are `most` pairs or more."""
    users = list(dict.fromkeys(row["user_id"] for row in rows))
    drawn, pairs = set(), 0
    for i in rng.permutation(len(users)):
        if pairs >= most:
            break
        drawn.add(users[i])
        pairs += sum(row["user_id"] == users[i] for row in rows)
    return [row for row in rows if row["user_id"] in drawn]


def accuracies(matrix: Matrix) -> dict:
    """A[i, j]: {group i: {group j: strict accuracy of i's RM on pairs of j}}."""
    return {i: {j: float(np.mean(margins > 0)) for j, margins in row.items()} for i, row in matrix.items()}


def global_rows(visited: dict[str, GroupPairs]) -> Matrix:
    """The global RM as everybody's RM: the same row for every group."""
    row = {group: pairs.margins["global"] for group, pairs in visited.items()}
    return dict.fromkeys(visited, row)


def excess_bias(matrix: Matrix, visited: dict[str, GroupPairs], before: Matrix | None = None) -> dict:
    """{"groups": {i: record}, "mean": record}: what i's RM costs the other groups, in accuracy against the global RM.

    The excess bias of RM i is the mean over j != i of (A[global, j] - A[i, j]), on the same pairs, with a bootstrap
    over the users of every j. "mean" is the mean over i, on the same resamples. None with fewer than two groups.
    With the matrix `before` of another method: against i's RM of that method, so by how much the excess bias differs.
    """
    before = global_rows(visited) if before is None else before
    losses = {
        i: {j: 1.0 * (before[i][j] > 0) - (margins > 0) for j, margins in row.items() if j != i}
        for i, row in matrix.items()
        if i in before
    }
    losses = {i: row for i, row in losses.items() if row}
    if not losses:
        return {"groups": {}, "mean": None}
    samples = {
        i: metrics.mean_samples(list(row.values()), [visited[j].counts for j in row]) for i, row in losses.items()
    }
    estimates = {i: float(np.mean([loss.mean() for loss in row.values()])) for i, row in losses.items()}
    groups = {i: _record(estimates[i], samples[i]) for i in losses}
    return {
        "groups": groups,
        "mean": _record(float(np.mean(list(estimates.values()))), np.mean(list(samples.values()), axis=0)),
    }


def _record(estimate: float, samples: np.ndarray) -> dict:
    low, high = metrics.interval(samples)
    return {"difference": estimate, "low": low, "high": high}


def effects(groups: dict[str, GroupPairs], matrices: dict[str, Matrix], visited: dict[str, GroupPairs]) -> dict:
    """{what: {"methods": [without, with], "accuracy": R, "excess_bias": R}}: what filter and weight change.

    R is "with" minus "without", mean over groups, paired on the same resamples of users: {"difference", "low", "high"},
    or None without groups to compare. Those of EFFECTS whose methods are there.
    """
    return {
        what: {
            "methods": [before, after],
            "accuracy": compare(groups, after, before)["mean"],
            "excess_bias": excess_bias(matrices[after], visited, matrices[before])["mean"],
        }
        for what, (before, after) in EFFECTS.items()
        if {before, after} <= matrices.keys()
    }


def abroad(matrix: Matrix, visited: dict[str, GroupPairs]) -> dict | None:
    """Accuracy of i's RM on the pairs of the other groups, mean over these and over i, with its interval.

    The bootstrap is over the users of every group, the same resamples for all RMs. None with fewer than two groups.
    """
    rows = [{j: (margins > 0).astype(float) for j, margins in row.items() if j != i} for i, row in matrix.items()]
    rows = [row for row in rows if row]
    if not rows:
        return None
    samples = [metrics.mean_samples(list(row.values()), [visited[j].counts for j in row]) for row in rows]
    estimate = float(np.mean([np.mean([right.mean() for right in row.values()]) for row in rows]))
    return _record(estimate, np.mean(samples, axis=0))


def worst_group(records: dict[str, dict]) -> dict | None:
    """The group of the lowest accuracy on all its pairs, with its own record A; None without groups.

    The interval is that of this group as if it had been named beforehand: being the worst is partly chance.
    """
    known = {group: own["all"] for group, own in records.items() if own["all"]["accuracy"] is not None}
    if not known:
        return None
    worst = min(known, key=lambda group: known[group]["accuracy"])
    return {"group": worst} | known[worst]


def by_fields(groups: dict[str, GroupPairs], traits: dict[str, dict[str, str]], methods: Sequence[str]) -> dict:
    """{field: {value: {"users", "pairs", "methods": {method: {"accuracy", "low", "high"}}}}} over all groups' pairs.

    Every pair is judged by its own group's RM. Values of fewer than `metrics.FEW_USERS` test users are left out, and
    fields that then have a single value.

    Args:
      groups: that have an RM of every method.
      traits: user -> field -> value, of a survey.
    """
    cells = _cells(groups, traits)
    members = {group: _members(pairs, traits, list(cells)) for group, pairs in groups.items()}
    counts = {g: np.concatenate([np.ones_like(pairs.counts[:1]), pairs.counts]) for g, pairs in groups.items()}
    total = sum(counts[group] @ members[group] for group in groups)  # [1 + resamples, cells]: all users, then resamples
    found = {field: {} for field, _ in cells}
    for (field, value), size in cells.items():
        found[field][value] = size | {"methods": {}}
    for method in methods if cells else ():
        right = sum(
            counts[g] @ (members[g] * pairs.correct(method).astype(np.float32)[:, None]) for g, pairs in groups.items()
        )
        share = np.divide(right, total, out=np.full(total.shape, np.nan), where=total > 0)
        for (field, value), column in zip(cells, share.T, strict=True):
            low, high = metrics.interval(column[1:])
            found[field][value]["methods"][method] = {"accuracy": float(column[0]), "low": low, "high": high}
    return found


def _cells(groups: dict[str, GroupPairs], traits: dict[str, dict[str, str]]) -> dict[tuple[str, str], dict]:
    """(field, value) -> numbers of test users and pairs, of those that are large enough."""
    rows = [row for pairs in groups.values() for row in pairs.rows]
    users, sizes = {}, {}
    for row in rows:
        for cell in traits.get(row["user_id"], {}).items():
            users.setdefault(cell, set()).add(row["user_id"])
            sizes[cell] = sizes.get(cell, 0) + 1
    large = sorted(cell for cell in users if len(users[cell]) >= metrics.FEW_USERS)
    fields = [field for field, _ in large]
    return {cell: {"users": len(users[cell]), "pairs": sizes[cell]} for cell in large if fields.count(cell[0]) > 1}


def _members(pairs: GroupPairs, traits: dict[str, dict[str, str]], cells: list[tuple[str, str]]) -> np.ndarray:
    """1.0 where the user of a pair has the value of a cell, `[B, cells]` float32."""
    own = [traits.get(row["user_id"], {}) for row in pairs.rows]
    return np.array([[fields.get(field) == value for field, value in cells] for fields in own], np.float32)
