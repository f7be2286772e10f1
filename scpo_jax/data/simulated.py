"""A simulated world with known truth, written in PRISM's own schema.

Annotators of nine groups rate responses whose attributes they like or dislike:

    rating = a · (u_global + cultural_strength * delta_group + taste) + noise,    score = 1..100, monotone in the rating

with a in {-1, 0, 1}^A (`grammar.py`). A share of every group is extreme: reversed, and strongly, on the universal
attributes. The countries only lend their names, as PRISM spells them: the deltas are invented, not found, and say
nothing about the people who live there.
"""

import dataclasses
import itertools
import json
import math

import numpy as np
from etils import epath

from scpo_jax.data import grammar
from scpo_jax.data.simulated_survey import PREFER_NOT, survey_row
from scpo_jax.errors import InputError

MAJORITY = ("United States", "United Kingdom")
MINORITY = ("Chile", "South Africa", "New Zealand", "Australia", "Mexico", "Israel", "Canada")

# What everybody agrees on: three strong wishes (the universal attributes) and nine mild ones.
UNIVERSAL = {"relevance": 1.15, "concreteness": 0.97, "politeness": 0.83}
MILD = {
    "directness": 0.21, "formality": -0.17, "length": 0.26, "hedging": -0.13, "deference": 0.08,
    "collectivism": 0.11, "humour": 0.19, "religion": -0.15, "warmth": 0.23,
}  # fmt: skip
# What a group adds, nearest to the majority first. Over the groups the signs of an attribute roughly cancel.
DELTA = {
    "Canada": {"formality": -0.5, "humour": -0.45, "hedging": -0.5},
    "Australia": {"directness": -0.65, "warmth": 0.6, "length": -0.6},
    "New Zealand": {"religion": 0.8, "formality": -0.7, "collectivism": -0.8},
    "Mexico": {"hedging": -0.9, "deference": -0.85, "humour": 0.85},
    "Chile": {"length": 0.9, "warmth": -1.0, "directness": 1.0},
    "Israel": {"collectivism": 0.9, "religion": -1.0, "hedging": 0.9, "length": -0.85},
    "South Africa": {"deference": 1.05, "directness": -1.0, "formality": 1.0, "humour": -0.9},
}
MAJORITY_FACTOR = 3  # annotators of a majority country for each of a minority one; PRISM's two are two fifths of it
EXTREME_FACTOR = -2.0  # an extreme annotator's universal weights, relative to everybody's
TASTE_NOISE = 0.12  # standard deviation of an annotator's own weight on each attribute
RATING_NOISE = 0.8  # standard deviation of one rating, in units of utility: people's scores are noisy
SLOPE = 0.8  # score = 100 * sigmoid(SLOPE * rating)
COARSE_SHARE = 0.5  # share of annotators who score in steps of five, where most ties come from
COPY_SHARE = 0.01  # share of responses that repeat the one before them word for word, as PRISM has some

MODELS = {
    "claude-2": "anthropic", "command": "cohere", "gpt-4": "openai", "chat-bison-001": "google",
    "zephyr-7b-beta": "huggingface_api", "llama-2-70b-chat": "replicate", "luminous-extended-control": "aleph",
}  # fmt: skip
CONVERSATIONS = ("unguided", "values guided", "controversy guided")


@dataclasses.dataclass(frozen=True)
class Annotator:
    user_id: str
    group: str
    extreme: bool
    weights: np.ndarray  # [A], own taste included
    step: int  # scores are multiples of it
    balanced: bool  # part of PRISM's balanced subset


def group_weights(group: str, cultural_strength: float) -> np.ndarray:
    """The true weights `[A]` of a group; any group without a delta has the global ones."""
    delta = DELTA.get(group, {})
    shared = UNIVERSAL | MILD
    return np.array([shared[name] + cultural_strength * delta.get(name, 0.0) for name in grammar.ATTRIBUTES])


def write(folder, *, users_per_group: int, cultural_strength: float, extreme_share: float, seed: int) -> dict:
    """Write `survey.jsonl`, `utterances.jsonl` and `truth.json` into `folder`; returns the truth.

    The bytes are a function of the arguments alone; worlds that differ in `cultural_strength` alone have the same
    people and texts. About eight responses and seven pairs a user.

    Args:
        folder: made if it is not there; local or remote.
        users_per_group: annotators of each minority country; a majority country has `MAJORITY_FACTOR` times as many.
        cultural_strength: scale of the deltas; 0 is the null world, where every group has the global weights.
        extreme_share: probability that an annotator is extreme, in every group.
        seed: of the people, texts and noise; the weights are the tables of this file.

    Returns:
        `truth.json`: all weights and noise scales, who is extreme, and
        `utilities`: per utterance the utility that the annotator's group (not the annotator) gives it, without noise;
        `bayes`: per group the accuracy of these utilities on the group's pairs, as the `prism` adapter makes them.

    Raises:
        InputError: an argument that makes no world.
    """
    arguments = {
        "users_per_group": users_per_group,
        "cultural_strength": cultural_strength,
        "extreme_share": extreme_share,
        "seed": seed,
    }
    _check(**arguments)
    rng = np.random.default_rng(seed)
    survey, annotators = _people(rng, users_per_group, cultural_strength, extreme_share)
    utterances, attributes = _utterances(rng, annotators)
    truth = _truth(arguments, annotators, utterances, attributes)
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_lines(folder / "survey.jsonl", survey)
    _write_lines(folder / "utterances.jsonl", utterances)
    (folder / "truth.json").write_bytes(f"{json.dumps(truth, ensure_ascii=False, indent=1)}\n".encode())
    return truth


def _check(users_per_group: int, cultural_strength: float, extreme_share: float, seed: int) -> None:
    for holds, key, must, value in (
        (users_per_group >= 1, "users_per_group", "be at least 1", users_per_group),
        (math.isfinite(cultural_strength), "cultural_strength", "be finite", cultural_strength),
        (0 <= extreme_share <= 1, "extreme_share", "lie between 0 and 1", extreme_share),
        (seed >= 0, "seed", "not be negative", seed),
    ):
        if not holds:
            raise InputError(f"config.data.simulated.{key} must {must}, not {value}")


def _people(rng, users_per_group, cultural_strength, extreme_share) -> tuple[list[dict], list[Annotator]]:
    """Survey rows in random order of groups, and the annotators among them.

    As in PRISM there are a few more: who only took the survey (5 %), and who do not say where they live (1 %; their
    weights are the global ones).
    """
    groups = list(MAJORITY * MAJORITY_FACTOR + MINORITY)
    total = users_per_group * len(groups)
    wanted = [(group, True) for group in groups for _ in range(users_per_group)]
    wanted += [(groups[int(rng.integers(len(groups)))], False) for _ in range(max(1, total // 20))]
    wanted += [(PREFER_NOT, True)] * max(1, total // 100)
    survey, annotators = [], []
    for number, index in enumerate(rng.permutation(len(wanted))):
        group, takes_part = wanted[index]
        survey.append(survey_row(rng, number, group, takes_part))
        if takes_part:
            weights = group_weights(group, cultural_strength)
            annotators.append(_annotator(rng, survey[-1], group, weights, extreme_share))
    return survey, annotators


def _annotator(rng, row: dict, group: str, weights: np.ndarray, extreme_share: float) -> Annotator:
    extreme = bool(rng.random() < extreme_share)
    if extreme:
        universal = np.isin(grammar.ATTRIBUTES, list(UNIVERSAL))
        weights = np.where(universal, EXTREME_FACTOR * weights, weights)
    weights = weights + TASTE_NOISE * rng.standard_normal(len(weights))
    step = 5 if rng.random() < COARSE_SHARE else 1
    return Annotator(row["user_id"], group, extreme, weights, step, row["included_in_balanced_subset"])


def _utterances(rng, annotators: list[Annotator]) -> tuple[list[dict], np.ndarray]:
    """All responses in file order, and their attributes `[utterances, A]`."""
    rows, attributes = [], []
    conversations, interactions = itertools.count(), itertools.count()
    for annotator in annotators:
        for _ in range(2):
            topic = grammar.sample_topic(rng)
            conversation = {
                "conversation_id": f"c{next(conversations)}",
                "conversation_type": CONVERSATIONS[int(rng.integers(len(CONVERSATIONS)))],
            }
            for turn in range(int(rng.integers(1, 3))):
                conversation |= {"interaction_id": f"int{next(interactions)}", "turn": turn}
                new_rows, new_attributes = _interaction(rng, annotator, conversation, topic, len(rows))
                rows += new_rows
                attributes += new_attributes
    return rows, np.array(attributes)


def _interaction(rng, annotator: Annotator, conversation: dict, topic: str, first: int) -> tuple[list, list]:
    """One prompt with its responses: 2-4 of different models in the first turn, 2 of one model later, as in PRISM."""
    turn = conversation["turn"]
    count = 2 if turn else int(rng.integers(2, 5))
    prompt = grammar.sample_prompt(rng, topic, turn)
    models = rng.permutation(list(MODELS))[: 1 if turn else count].tolist()
    attributes, responses = _responses(rng, topic, count)
    scores = _scores(rng, np.array(attributes) @ annotator.weights, annotator.step)
    rows = [
        {
            "utterance_id": f"ut{first + i}",
            "interaction_id": conversation["interaction_id"],
            "conversation_id": conversation["conversation_id"],
            "user_id": annotator.user_id,
            "turn": turn,
            "within_turn_id": i,
            "conversation_type": conversation["conversation_type"],
            "user_prompt": prompt,
            "model_response": response,
            "model_name": models[i % len(models)],
            "model_provider": MODELS[models[i % len(models)]],
            "score": scores[i],
            "if_chosen": i == int(np.argmax(scores)),
            "included_in_balanced_subset": annotator.balanced,
        }
        for i, response in enumerate(responses)
    ]
    return rows, attributes


def _responses(rng, topic: str, count: int) -> tuple[list[np.ndarray], list[str]]:
    """Attributes and texts of one interaction; now and then a model says what the one before it said."""
    attributes, responses = [], []
    for i in range(count):
        if i and rng.random() < COPY_SHARE:
            attributes.append(attributes[-1])
            responses.append(responses[-1])
        else:
            attributes.append(grammar.sample_attributes(rng))
            responses.append(grammar.sample_response(rng, attributes[-1], topic))
    return attributes, responses


def _scores(rng, utilities: np.ndarray, step: int) -> list[int]:
    """Scores 1..100 of one interaction's responses with these utilities `[n]`: noise, then a monotone map."""
    ratings = utilities + RATING_NOISE * rng.standard_normal(len(utilities))
    scores = 100 / (1 + np.exp(-SLOPE * ratings))
    return np.clip(step * np.round(scores / step), 1, 100).astype(int).tolist()


def _truth(arguments: dict, annotators: list[Annotator], utterances: list[dict], attributes: np.ndarray) -> dict:
    strength = arguments["cultural_strength"]
    groups = {annotator.user_id: annotator.group for annotator in annotators}
    weights = {group: group_weights(group, strength) for group in set(groups.values())}
    # Rounded, so that sums that are equal in exact arithmetic are equal here and on every machine.
    own = [weights[groups[row["user_id"]]] for row in utterances]
    utilities = np.round(np.einsum("ua,ua->u", attributes, np.array(own)), 6).tolist()
    return {
        "arguments": arguments,
        "attributes": list(grammar.ATTRIBUTES),
        "universal": list(UNIVERSAL),
        "u_global": UNIVERSAL | MILD,
        "delta": {
            group: {name: strength * value for name, value in DELTA.get(group, {}).items()}
            for group in MAJORITY + MINORITY
        },
        "noise": {"taste": TASTE_NOISE, "rating": RATING_NOISE},
        "score": {"slope": SLOPE, "coarse_share": COARSE_SHARE},
        "responses": {"expressed": grammar.EXPRESSED, "opened": grammar.OPENED, "copied": COPY_SHARE},
        "extreme_share": arguments["extreme_share"],
        "extreme_factor": EXTREME_FACTOR,
        "extreme_users": [annotator.user_id for annotator in annotators if annotator.extreme],
        "bayes": _bayes(groups, utterances, utilities),
        "utilities": {row["utterance_id"]: value for row, value in zip(utterances, utilities, strict=True)},
    }


def _bayes(groups: dict, utterances: list[dict], utilities: list[float]) -> dict[str, float]:
    """Per group, the share of pairs on which the true utility agrees with the scores; a tie in utility is an error."""
    right: dict[str, list[bool]] = {}
    rated = zip(utterances, utilities, strict=True)
    for (user, _), rows in itertools.groupby(rated, key=lambda r: (r[0]["user_id"], r[0]["interaction_id"])):
        for (row, value), (other, other_value) in itertools.combinations(rows, 2):
            if row["score"] != other["score"]:
                agrees = (row["score"] - other["score"]) * (value - other_value) > 0
                right.setdefault(groups[user], []).append(agrees)
    return {group: float(np.mean(right[group])) for group in sorted(right)}


def _write_lines(path, rows: list[dict]) -> None:
    # Bytes, not text: UTF-8 and line feeds whatever the machine's locale says.
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
