"""The truth as a judge: responses by hand, the world's own, repetition, what is not of the grammar, nothing at all."""

import json

import numpy as np
import pytest

from scpo_jax import gold
from scpo_jax.data import grammar, simulated

NEUTRAL = "There are several views to house prices."
DIRECT = "Say openly what you want and act now."
HINTS = "It is often better to let them guess it."
LONG = "Let me expand, as a longer story has much more to tell."
RELEVANT = "This answers your question exactly."
TRUTH = {
    "attributes": list(grammar.ATTRIBUTES),
    "u_global": simulated.UNIVERSAL | simulated.MILD,
    "delta": {"Chile": {"length": 0.9, "directness": 1.0}, "Canada": {}},
}


def utility_of(*sentences, judge="Chile", without=""):
    weights = gold.weights_of(TRUTH, without)[judge]
    return gold.utilities(gold.levels_of([" ".join(sentences)]), weights)[0]


def test_responses_by_hand():
    assert utility_of(NEUTRAL) == 0
    assert utility_of(NEUTRAL, RELEVANT, DIRECT) == pytest.approx(1.15 + 1.21)
    assert utility_of(RELEVANT, HINTS, NEUTRAL) == pytest.approx(1.15 - 1.21)
    assert utility_of(NEUTRAL, LONG) == pytest.approx(1.16)
    assert utility_of(NEUTRAL, LONG, judge="Canada") == utility_of(NEUTRAL, LONG, judge=gold.UNIVERSAL) == 0.26
    assert utility_of(NEUTRAL, LONG, RELEVANT, without=gold.LENGTH) == 1.15


def test_repetition_earns_nothing_and_contradiction_nothing_either():
    assert utility_of(DIRECT, DIRECT, RELEVANT, DIRECT, NEUTRAL) == utility_of(DIRECT, RELEVANT)
    assert utility_of(DIRECT, HINTS, RELEVANT) == utility_of(RELEVANT)


@pytest.mark.parametrize("text", ["", "  ", "penguins", f"{DIRECT} And", DIRECT[:-1], f"{DIRECT}{RELEVANT}"])
def test_what_is_not_of_the_grammar_is_worth_the_worst_of_the_reference(text):
    weights = gold.weights_of(TRUTH)["Chile"]
    reference = gold.levels_of([*[HINTS] * 6, NEUTRAL, *[DIRECT] * 13, "garbage"])
    found = gold.gold(gold.levels_of([text, HINTS, RELEVANT]), reference, weights)
    assert found.tolist() == [-1.21, -1.21, 1.15]
    assert gold.worst_of(np.array([*range(21), np.nan])) == 1
    nothing = gold.gold(gold.levels_of([text, NEUTRAL]), gold.levels_of([text]), weights)
    assert np.isnan(nothing[0]) and nothing[1] == 0


def test_of_the_worlds_own_responses_it_is_the_utility_of_the_simulation(tmp_path):
    truth = simulated.write(tmp_path, users_per_group=2, cultural_strength=0.7, extreme_share=0.5, seed=3)
    survey = [json.loads(line) for line in (tmp_path / "survey.jsonl").read_text().splitlines()]
    country = {row["user_id"]: row["location"]["reside_country"] for row in survey}
    rows = [json.loads(line) for line in (tmp_path / "utterances.jsonl").read_text().splitlines()]
    levels, weights = gold.levels_of([row["model_response"] for row in rows]), gold.weights_of(truth)
    assert set(weights) == {gold.UNIVERSAL, *simulated.MAJORITY, *simulated.MINORITY}
    owners = np.array([country[row["user_id"]] for row in rows])
    for judge in {*owners.tolist()} & set(weights):
        own = gold.gold(levels, levels, weights[judge])[owners == judge]
        assert own.tolist() == [
            truth["utilities"][row["utterance_id"]] for row in rows if country[row["user_id"]] == judge
        ]
