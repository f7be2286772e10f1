"""The bias matrix, excess bias and accuracy within survey fields, against hand counts and plain loops."""

import numpy as np
import pytest

from scpo_jax import bias, metrics, scored_pairs
from scpo_jax.scored_pairs import GroupPairs


def pairs(users, **margins) -> GroupPairs:
    made = scored_pairs.test_pairs([{"user_id": user} for user in users], name=users[0])
    made.margins.update({name: np.array(values, float) for name, values in margins.items()})
    return made


VISITED = {
    "A": pairs(["a1", "a1", "a2", "a3"], **{"global": [1, 1, -1, -1]}),
    "B": pairs(["b1", "b2"], **{"global": [1, 1]}),
    "C": pairs(["c1", "c2"], **{"global": [1, 0]}),
}
MATRIX = {
    "A": {"A": np.array([1, 1, 1, 1]), "B": np.array([1, -1]), "C": np.array([-1, -1])},
    "B": {"A": np.array([1, 1, 1, -1]), "B": np.array([1, 1]), "C": np.array([1, 0])},
}


def test_the_matrix():
    assert bias.accuracies(MATRIX)["A"] == {"A": 1, "B": 0.5, "C": 0}
    rows = bias.accuracies(bias.global_rows(VISITED))
    assert rows["A"] == rows["C"] == {"A": 0.5, "B": 1, "C": 0.5}


def test_excess_bias_by_hand():
    """A's RM loses 1/2 on B and 1/2 on C; B's wins 1/4 on A and nothing on C. Its own pairs do not count."""
    found = bias.excess_bias(MATRIX, VISITED)
    assert found["groups"]["A"]["difference"] == pytest.approx(0.5)
    assert found["groups"]["B"]["difference"] == pytest.approx(-0.125)
    assert found["mean"]["difference"] == pytest.approx(0.1875)
    assert found["groups"]["B"]["low"] <= -0.125 <= found["groups"]["B"]["high"] == 0


def test_the_interval_of_the_mean_against_a_plain_loop():
    samples = []
    for r in range(metrics.RESAMPLES):
        losses = []
        for i, j in (("A", "B"), ("A", "C"), ("B", "A"), ("B", "C")):
            own, counts = VISITED[j], VISITED[j].counts[r]
            losses.append(np.sum(counts * ((own.margins["global"] > 0) * 1.0 - (MATRIX[i][j] > 0))) / counts.sum())
        samples.append(np.mean([np.mean(losses[:2]), np.mean(losses[2:])]))
    found = bias.excess_bias(MATRIX, VISITED)["mean"]
    assert (found["low"], found["high"]) == pytest.approx(metrics.interval(np.array(samples)), abs=1e-6)


def test_effects_are_differences_on_the_same_resamples():
    visited = {group: own._replace(margins=dict(own.margins)) for group, own in VISITED.items()}
    other = bias.global_rows(visited)
    matrices = {"full": {g: other[g] for g in "AB"}, "filter_only": MATRIX, "trim": other}
    for method, matrix in matrices.items():
        for group in "AB":
            visited[group].margins[method] = matrix[group][group]
    found = bias.effects({group: visited[group] for group in "AB"}, matrices, visited)
    assert found.keys() == {"filter, nothing weighted", "trimmed pairs alone"}
    own = found["filter, nothing weighted"]
    assert own["methods"] == ["full", "filter_only"] and own["accuracy"]["difference"] == pytest.approx(0.25)
    assert own["excess_bias"] == bias.excess_bias(MATRIX, visited)["mean"]  # that of full is 0
    turned = bias.excess_bias(matrices["full"], visited, MATRIX)
    assert turned["mean"]["difference"] == pytest.approx(-0.1875)
    assert turned["groups"]["A"]["low"] == pytest.approx(-bias.excess_bias(MATRIX, visited)["groups"]["A"]["high"])


def test_one_group_has_no_excess_bias():
    assert bias.excess_bias({"A": {"A": np.ones(4)}}, VISITED) == {"groups": {}, "mean": None}


def test_visited_rows_are_those_of_whole_users():
    rows = [{"user_id": f"u{i % 30}", "i": i} for i in range(210)]
    taken = bias.visited_rows(rows, np.random.default_rng(0), most=50)
    users = {row["user_id"] for row in taken}
    assert len(users) == 8 and taken == [row for row in rows if row["user_id"] in users]
    assert bias.visited_rows(rows, np.random.default_rng(0), most=1000) == rows


def test_worst_group():
    records = {g: {"all": {"accuracy": a, "low": 0, "high": 1}} for g, a in (("A", 0.7), ("B", 0.6), ("C", None))}
    assert bias.worst_group(records) == {"group": "B", "accuracy": 0.6, "low": 0, "high": 1}
    assert bias.worst_group({}) is None


def test_fields_against_a_plain_loop():
    rng = np.random.default_rng(0)
    groups, traits = {}, {}
    for group in "AB":
        users = [f"{group}{i}" for i in rng.integers(0, 60, 200)]
        groups[group] = pairs(users, **{"global": rng.normal(size=200), "scpo": rng.normal(1, 1, 200)})
        for user in users:
            number = int(user[1:])
            age = "rare" if number < 5 else "old" if number % 2 else "young"
            traits[user] = {} if number % 10 == 9 else {"age": age, "country": group}
    found = bias.by_fields(groups, traits, ["global", "scpo"])
    assert {field: set(own) for field, own in found.items()} == {"country": {"A", "B"}, "age": {"old", "young"}}
    cell, rows = found["country"]["A"], groups["A"].rows
    mask = np.array([bool(traits[row["user_id"]]) for row in rows])
    expected = metrics.accuracy_record(groups["A"].margins["scpo"], groups["A"].counts, mask)
    assert cell["methods"].keys() == {"global", "scpo"} and cell["pairs"] == expected["n"]
    assert cell["users"] == len({row["user_id"] for row, known in zip(rows, mask, strict=True) if known})
    for key, value in cell["methods"]["scpo"].items():
        assert value == pytest.approx(expected[key], abs=1e-6)
    old = [
        margin > 0
        for own in groups.values()
        for row, margin in zip(own.rows, own.margins["global"], strict=True)
        if traits[row["user_id"]].get("age") == "old"
    ]
    assert found["age"]["old"]["methods"]["global"]["accuracy"] == pytest.approx(np.mean(old))
    assert "country" not in bias.by_fields({"A": groups["A"]}, traits, ["global"])  # it has a single value there
