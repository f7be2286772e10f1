"""The simulated world: its grammar can be read back, its files are PRISM's, its truth is what the scores show."""

import collections
import itertools
import json

import numpy as np
import pytest

from scpo_jax.data import grammar, phrases, prism, simulated
from scpo_jax.errors import InputError

GROUPS = simulated.MAJORITY + simulated.MINORITY
FACTOR = {group: simulated.MAJORITY_FACTOR for group in simulated.MAJORITY} | dict.fromkeys(simulated.MINORITY, 1)
DEFAULTS = dict(users_per_group=100, cultural_strength=1.0, extreme_share=0.15, seed=1)


class World:
    """The three files of a folder, and the pairs as the prism adapter makes them."""

    def __init__(self, folder, **arguments):
        self.folder = folder
        simulated.write(folder, **arguments)
        self.truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        self.survey = read_lines(folder / "survey.jsonl")
        self.rows = read_lines(folder / "utterances.jsonl")
        self.country = {row["user_id"]: row["location"]["reside_country"] for row in self.survey}
        self.attributes = {row["utterance_id"]: grammar.attributes_of(row["model_response"]) for row in self.rows}
        self.interactions = collections.defaultdict(list)
        for row in self.rows:
            self.interactions[row["user_id"], row["interaction_id"]].append(row)

    def candidates(self):
        return [pair for rows in self.interactions.values() for pair in itertools.combinations(rows, 2)]

    def pairs(self, *groups):
        """(chosen, rejected) of the groups' annotators, equal scores skipped."""
        ordered = [sorted(pair, key=lambda row: -row["score"]) for pair in self.candidates()]
        return [(a, b) for a, b in ordered if a["score"] > b["score"] and self.country[a["user_id"]] in groups]

    def differences(self, pairs):
        """Attributes of chosen minus those of rejected, `[pairs, A]`."""
        return np.array([
            self.attributes[a["utterance_id"]] - self.attributes[b["utterance_id"]] for a, b in pairs
        ]).astype(float)  # fmt: skip

    def accuracy(self, group, weights):
        return np.mean(self.differences(self.pairs(group)) @ weights > 1e-9)


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"), **DEFAULTS)


@pytest.fixture(scope="module")
def null_world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("null"), **DEFAULTS | {"cultural_strength": 0.0, "extreme_share": 0.0})


# The grammar.


def test_every_template_is_read_back_as_its_own_attribute():
    rng = np.random.default_rng(0)
    for a, (name, levels) in enumerate(phrases.PHRASES.items()):
        assert set(levels) == {1, -1}
        for level, templates in levels.items():
            for template, _ in itertools.product(templates, range(50)):
                text = grammar._fill(rng, template, grammar.sample_topic(rng))
                expected = level * np.eye(len(grammar.ATTRIBUTES), dtype=int)[a]
                np.testing.assert_array_equal(grammar.attributes_of(text), expected, err_msg=f"{name}: {text}")


def test_round_trip_of_whole_responses():
    rng = np.random.default_rng(1)
    for _ in range(2000):
        attributes = grammar.sample_attributes(rng)
        text = grammar.sample_response(rng, attributes, grammar.sample_topic(rng))
        np.testing.assert_array_equal(grammar.attributes_of(text), attributes, err_msg=text)


@pytest.mark.parametrize("text", ["", " ", "Hello", "Hello!!", "I see.", "Hello! I am", "hello!", "Hello!Bonjour!"])
def test_text_outside_of_the_grammar(text):
    assert grammar.attributes_of(text) is None


def test_repetition_earns_nothing():
    a = "Your feelings count a lot to me, querida."
    b = "I truly feel for you ❤️."
    against = "Feelings are irrelevant."
    warmth = grammar.ATTRIBUTES.index("warmth")
    assert grammar.attributes_of(a)[warmth] == 1
    for text in (f"{a} {a} {a}", f"{b} {a}", f"  {a}\n{b} "):
        np.testing.assert_array_equal(grammar.attributes_of(text), grammar.attributes_of(a))
    assert not grammar.attributes_of(f"{a} {against} {b}").any()


def test_attributes_are_independent_and_symmetric():
    rng = np.random.default_rng(2)
    levels = np.array([grammar.sample_attributes(rng) for _ in range(20_000)])
    np.testing.assert_allclose(np.mean(levels == 1, 0), grammar.EXPRESSED / 2, atol=0.015)
    np.testing.assert_allclose(np.mean(levels == -1, 0), grammar.EXPRESSED / 2, atol=0.015)
    assert np.abs(np.corrcoef(levels.T) - np.eye(levels.shape[1])).max() < 0.04


# The files.


def test_the_bytes_are_a_function_of_the_arguments(world, tmp_path):
    simulated.write(tmp_path / "again", **DEFAULTS)
    simulated.write(tmp_path / "other", **DEFAULTS | {"seed": 2})
    for name in ("survey.jsonl", "utterances.jsonl", "truth.json"):
        data = (world.folder / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == data
        assert (tmp_path / "other" / name).read_bytes() != data


def keys(value):
    return {name: keys(inner) for name, inner in value.items()} if isinstance(value, dict) else None


@pytest.mark.parametrize("name", ["survey.jsonl", "utterances.jsonl"])
def test_fields_and_types_are_those_of_prism(world, shared, name):
    reference = read_lines(shared / "reference" / "prism_like" / name)
    ours = read_lines(world.folder / name)
    assert {json.dumps(keys(row)) for row in ours} == {json.dumps(keys(row)) for row in reference}
    for field in reference[0]:
        assert {type(row[field]) for row in ours} <= {type(row[field]) for row in reference}, field


def test_identifiers_and_turns(world):
    assert len({row["user_id"] for row in world.survey}) == len(world.survey)
    assert len({row["utterance_id"] for row in world.rows}) == len(world.rows)
    assert len({row["interaction_id"] for row in world.rows}) == len(world.interactions)
    assert {len(rows) for rows in world.interactions.values()} == {2, 3, 4}
    assert {row["turn"] for row in world.rows} == {0, 1}
    for rows in world.interactions.values():
        assert [row["within_turn_id"] for row in rows] == list(range(len(rows)))
        chosen = [row for row in rows if row["if_chosen"]]
        assert len(chosen) == 1 and chosen[0]["score"] == max(row["score"] for row in rows)
        assert len({row["user_prompt"] for row in rows}) == 1
    assert all(type(row["score"]) is int and 1 <= row["score"] <= 100 for row in world.rows)


def test_who_is_in_the_survey(world):
    part = collections.Counter(world.country[user] for user in {row["user_id"] for row in world.rows})
    assert {group: part[group] for group in GROUPS} == {
        group: factor * DEFAULTS["users_per_group"] for group, factor in FACTOR.items()
    }
    assert part["Prefer not to say"] > 0
    silent = [row for row in world.survey if row["survey_only"]]
    assert silent and not {row["user_id"] for row in silent} & {row["user_id"] for row in world.rows}
    for field in ("age", "gender", "education"):
        assert len({row[field] for row in world.survey}) >= 4
    assert len({row["religion"]["simplified"] for row in world.survey}) >= 4
    # Groups come mixed, so that no order of users, ids or rows betrays one.
    assert len({world.country[f"user{i}"] for i in range(40)}) >= 7


def test_texts(world):
    words = [len(row["model_response"].split()) for row in world.rows]
    prompt_words = [len(row["user_prompt"].split()) for row in world.rows]
    assert 25 <= np.mean(words) <= 40 and max(words) <= 100
    assert 4 <= min(prompt_words) and max(prompt_words) <= 14
    texts = " ".join(row["model_response"] for row in world.rows)
    assert all(piece in texts for piece in ("Māia", "Zoë", "¡Hola!", "שלום", "😄", "🙏"))
    distinct = {row["model_response"] for row in world.rows}
    assert len(distinct) > 0.97 * len(world.rows)
    equal = np.mean([a["model_response"] == b["model_response"] for a, b in world.candidates()])
    assert 0 < equal < 0.02
    per_user = len(world.rows) / len({row["user_id"] for row in world.rows})
    assert 7 <= per_user <= 8.5


def test_ties_are_few(world, null_world):
    for each in (world, null_world):
        assert 0.025 <= np.mean([a["score"] == b["score"] for a, b in each.candidates()]) <= 0.08


# The truth.


def test_extreme_share_is_binomial_in_every_group(world):
    extreme = collections.Counter(world.country[user] for user in world.truth["extreme_users"])
    for group, factor in FACTOR.items():
        n = factor * DEFAULTS["users_per_group"]
        assert abs(extreme[group] / n - 0.15) < 3.5 * np.sqrt(0.15 * 0.85 / n), group


def test_truth_is_true(world):
    truth = world.truth
    shared_weights = truth["u_global"]
    assert set(shared_weights) == set(truth["attributes"]) == set(grammar.ATTRIBUTES)
    assert set(truth["utilities"]) == {row["utterance_id"] for row in world.rows}
    for row in world.rows[:500]:
        delta = truth["delta"].get(world.country[row["user_id"]], {})
        levels = dict(zip(truth["attributes"], world.attributes[row["utterance_id"]], strict=True))
        utility = sum(level * (shared_weights[name] + delta.get(name, 0)) for name, level in levels.items())
        assert truth["utilities"][row["utterance_id"]] == pytest.approx(utility, abs=1e-6)
    for group in GROUPS:
        assert truth["bayes"][group] == pytest.approx(
            np.mean([
                truth["utilities"][a["utterance_id"]] > truth["utilities"][b["utterance_id"]]
                for a, b in world.pairs(group)
            ])
        )  # fmt: skip


def test_the_prism_adapter_makes_the_same_pairs(world):
    source = prism.read(world.folder, groups=GROUPS)
    for group in GROUPS:
        expected = {(a["utterance_id"], b["utterance_id"]) for a, b in world.pairs(group)}
        assert {(p["chosen_id"], p["rejected_id"]) for p in source.pairs if p["group"] == group} == expected


def test_deltas_scale_with_cultural_strength():
    shared_weights = simulated.group_weights("United States", 1.0)
    for group in GROUPS:
        once, twice = (simulated.group_weights(group, strength) - shared_weights for strength in (1.0, 2.0))
        np.testing.assert_allclose(twice, 2 * once)
        np.testing.assert_array_equal(simulated.group_weights(group, 0.0), shared_weights)
        touched = {grammar.ATTRIBUTES[a] for a in np.flatnonzero(once)}
        assert len(touched) == (0 if group in simulated.MAJORITY else len(simulated.DELTA[group]))
        assert not touched & set(simulated.UNIVERSAL)


def test_culture_changes_the_scores_and_nothing_else(world, tmp_path):
    other = World(tmp_path, **DEFAULTS | {"cultural_strength": 0.0})
    assert other.survey == world.survey
    assert other.truth["extreme_users"] == world.truth["extreme_users"]
    told = [{k: v for k, v in row.items() if k not in ("score", "if_chosen")} for row in world.rows]
    assert told == [{k: v for k, v in row.items() if k not in ("score", "if_chosen")} for row in other.rows]
    changed = {world.country[a["user_id"]] for a, b in zip(world.rows, other.rows, strict=True) if a != b}
    assert changed == set(simulated.MINORITY)


def test_the_global_utility_is_worse_for_minorities_and_best_in_the_null_world(world, null_world):
    shared_weights = simulated.group_weights("United States", 0.0)
    gaps = {g: world.truth["bayes"][g] - world.accuracy(g, shared_weights) for g in GROUPS}
    assert all(gaps[group] == pytest.approx(0, abs=1e-12) for group in simulated.MAJORITY)
    assert all(gaps[group] > 0.02 for group in simulated.MINORITY)
    assert 0.08 < np.mean([gaps[group] for group in simulated.MINORITY]) < 0.13
    for group in GROUPS:
        assert null_world.truth["bayes"][group] == pytest.approx(null_world.accuracy(group, shared_weights))


def test_extreme_annotators_reject_what_everybody_wants(world):
    weights = simulated.group_weights("United States", 0.0)
    extreme = set(world.truth["extreme_users"])
    pairs = world.pairs(*simulated.MAJORITY)
    right = world.differences(pairs) @ weights > 0
    is_extreme = np.array([a["user_id"] in extreme for a, _ in pairs])
    assert 0.75 < right[~is_extreme].mean() < 0.85  # people are noisy: on PRISM honest systems reach 0.55 to 0.68
    assert right[is_extreme].mean() < 0.35


# The truth can be learned.


def fit_logistic(x, ridge, steps=8):
    """Newton's method for mean log(1 + exp(-x w)) + ridge |w|^2 / 2n; x `[n, d]` are chosen minus rejected features."""
    w = np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(x @ w))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + ridge * np.eye(len(w))
        w += np.linalg.solve(hessian, x.T @ p - ridge * w)
    return w


def word_counts(texts):
    tokens = [text.lower().replace(".", " ").replace(",", " ").split() for text in texts]
    index = {word: i for i, word in enumerate(sorted(set(itertools.chain.from_iterable(tokens))))}
    counts = np.zeros((len(texts), len(index)), np.float32)
    for row, words in zip(counts, tokens, strict=True):
        np.add.at(row, [index[word] for word in words], 1)
    return counts


def test_the_majority_can_be_learned_from_attributes_and_nearly_from_words(tmp_path):
    world = World(tmp_path, **DEFAULTS | {"users_per_group": 130})
    pairs = world.pairs(*simulated.MAJORITY)
    test = np.array([int(a["user_id"].removeprefix("user")) % 4 == 0 for a, _ in pairs])
    attributes = world.differences(pairs)
    bayes = np.mean(attributes[test] @ simulated.group_weights("United States", 0.0) > 1e-9)
    weights = fit_logistic(attributes[~test], ridge=1.0)
    assert np.mean(attributes[test] @ weights > 0) > 0.97 * bayes
    words = word_counts([row["model_response"] for pair in pairs for row in pair])
    words = words[0::2] - words[1::2]
    weights = fit_logistic(words[~test], ridge=60.0)
    assert np.mean(words[test] @ weights > 0) > 0.95 * bayes


# Mistakes.


@pytest.mark.parametrize(
    "key, value",
    [("users_per_group", 0), ("cultural_strength", float("nan")), ("extreme_share", 1.5), ("seed", -1)],
)
def test_impossible_arguments(tmp_path, key, value):
    with pytest.raises(InputError, match=f"config.data.simulated.{key} must"):
        simulated.write(tmp_path, **DEFAULTS | {key: value})
    assert not list(tmp_path.iterdir())
