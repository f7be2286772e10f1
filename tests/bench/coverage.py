"""How often the intervals cover the truth, and how often culture is claimed where there is none.

    python -m tests.bench.coverage --seeds=20 --output=coverage.json

The worlds are those of the demo (`scpo_jax/data/simulated.py`: seven groups, twelve attributes, extreme annotators,
noisy ratings) without their texts: an RM is linear in the attributes and fitted by weighted logistic regression, pulled
towards the global RM as a small learning rate would. Selection, control draws, intervals and verdicts are the package's
own functions. The truth of an RM is its accuracy on 20,000 fresh pairs of fresh users, whose labels are noisy as well.

Printed per world: the share of 95 % intervals that cover the truth, over methods, groups and seeds (and by method), and
that of the differences to the global RM; verdicts by group and seed. 20 seeds took six minutes of one core, at low
priority on a busy machine.
"""

import argparse
import json
import pathlib

import numpy as np

from scpo_jax import controls, logistic, metrics, scpo
from scpo_jax.controls import Material
from scpo_jax.data import grammar, simulated
from scpo_jax.scored_pairs import GroupPairs, test_pairs

METHODS = ("scpo", "full", "filter_only", "weight_only", "random_subset")
FRESH_PAIRS = 20_000
PULL = 0.02  # weight of the squared distance to the global RM, against a mean over pairs
WORLDS = {
    "default": {"strength": 1.0, "extreme": 0.15},
    "null": {"strength": 0.0, "extreme": 0.0},
    "null with extreme annotators": {"strength": 0.0, "extreme": 0.15},
}


def pairs_of_users(
    rng, group: str, users: int, strength: float, extreme: float, noise: float = simulated.RATING_NOISE
) -> tuple[np.ndarray, np.ndarray]:
    """(attributes of chosen minus rejected `[B, A]`, user `[B]`) of the pairs that users of a group make.

    Two conversations each: one prompt with 2 to 4 responses, and in half of them another with 2; all pairs of the
    responses to a prompt. `noise` is the standard deviation of a rating.
    """
    shared = simulated.group_weights(group, strength)
    universal = np.isin(grammar.ATTRIBUTES, list(simulated.UNIVERSAL))
    differences, owners = [], []
    for user in range(users):
        reversed_ = universal & (rng.random() < extreme)
        weights = np.where(reversed_, simulated.EXTREME_FACTOR * shared, shared)
        weights = weights + simulated.TASTE_NOISE * rng.standard_normal(len(weights))
        for _ in range(2):
            for count in (int(rng.integers(2, 5)), 2)[: rng.integers(1, 3)]:
                attributes = np.array([grammar.sample_attributes(rng) for _ in range(count)])
                ratings = attributes @ weights + noise * rng.standard_normal(count)
                order = np.argsort(-ratings)
                for i in range(count):
                    for j in range(i + 1, count):
                        differences.append(attributes[order[i]] - attributes[order[j]])
                        owners.append(user)
    return np.array(differences, float), np.array(owners)


def fit(differences: np.ndarray, weights: np.ndarray, start: np.ndarray, pull: float = PULL) -> np.ndarray:
    """Weights u `[A]` that minimise mean(-w log sigmoid(differences @ u)) + pull / 2 |u - start|^2."""
    return start + logistic.fit(differences, pull, weights=weights, offset=differences @ start)


def global_rm(rng, users: int, strength: float, extreme: float) -> np.ndarray:
    """The RM `[A]` of the majority countries, `users` in each."""
    made = [pairs_of_users(rng, group, users, strength, extreme)[0] for group in simulated.MAJORITY]
    differences = np.concatenate(made)
    return fit(differences, np.ones(len(differences)), np.zeros(differences.shape[1]), pull=1e-3)


def training_set(method: str, differences: np.ndarray, start: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray]:
    """What a method trains on: mask and weights `[B]`, with the paper's tau and beta."""
    rewards = (differences @ start).astype(np.float32)
    return scpo.training_set(method, scpo.select(rewards, np.zeros_like(rewards), 0.7, 1.1, 0.1), rng)


def material(method: str, group: str, differences: np.ndarray, start: np.ndarray, rng) -> Material:
    """What a method trains on: rows that hold nothing but a difference."""
    mask, weights = training_set(method, differences, start, rng)
    return Material([{"difference": row} for row in differences[mask]], weights[mask], [], (group,))


def fit_material(own: Material, start: np.ndarray) -> np.ndarray:
    """The RM of a training set."""
    return fit(np.array([row["difference"] for row in own.rows]), own.weights, start)


def run(seed: int, users: int, test_users: int, strength: float, extreme: float) -> dict:
    """One world: which intervals cover the truth, and the verdicts."""
    rng = np.random.default_rng(seed)
    start = global_rm(rng, simulated.MAJORITY_FACTOR * users, strength, extreme)
    train = {group: pairs_of_users(rng, group, users, strength, extreme)[0] for group in simulated.MINORITY}
    own = {method: {g: material(method, g, train[g], start, rng) for g in train} for method in METHODS}
    drawn = {c: {g: controls.draw(c, g, own["scpo"], rng) for g in train} for c in ("pooled", "other_country")}
    models = {name: {g: fit_material(m, start) for g, m in made.items()} for name, made in (own | drawn).items()}
    models["global"] = dict.fromkeys(train, start)
    groups, covered, gains = {}, {name: [] for name in models}, []
    for group in train:
        differences, owners = pairs_of_users(rng, group, test_users, strength, extreme)
        fresh = pairs_of_users(rng, group, FRESH_PAIRS // 7, strength, extreme)[0][:FRESH_PAIRS]
        pairs = test_pairs([{"user_id": owner} for owner in owners.tolist()], name=f"{seed}/{group}")
        pairs.margins.update({name: differences @ model[group] for name, model in models.items()})
        groups[group] = pairs
        right = {name: fresh @ model[group] > 0 for name, model in models.items()}
        for name in models:
            record = metrics.accuracy_record(pairs.margins[name], pairs.counts)
            covered[name].append(covers(record, right[name].mean()))
        gains.append(covers(gain(pairs), right["scpo"].mean() - right["global"].mean()))
    found = controls.findings(groups, "scpo", ("pooled", "other_country"))
    return {"covered": covered, "gains": gains, "verdict": found["verdict"]}


def covers(record: dict, truth: float) -> bool:
    """Whether an interval holds the truth."""
    return bool(record["low"] <= truth <= record["high"])


def gain(pairs: GroupPairs) -> dict:
    """scpo minus the global RM, with its interval."""
    return metrics.mean_difference([pairs.correct("scpo") - pairs.correct("global")], [pairs.counts])


def summary(runs: list[dict]) -> dict:
    """Shares over the runs of a world."""
    by_method = {name: float(np.mean([run["covered"][name] for run in runs])) for name in runs[0]["covered"]}
    verdicts = [verdict for run in runs for verdict in run["verdict"].values()]
    return {
        "coverage": float(np.mean(list(by_method.values()))),
        "coverage_by_method": by_method,
        "coverage_of_gain": float(np.mean([run["gains"] for run in runs])),
        "groups": len(verdicts),
        **{verdict: verdicts.count(verdict) for verdict in ("culture", "data_set_only", "none")},
        "fewest_claims_of_a_seed": min(list(run["verdict"].values()).count("culture") for run in runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--users", type=int, default=400, help="training users of a group")
    parser.add_argument("--test_users", type=int, default=100, help="test users of a group")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
    flags = parser.parse_args()
    report = {}
    for name, world in WORLDS.items():
        report[name] = summary([run(seed, flags.users, flags.test_users, **world) for seed in range(flags.seeds)])
        print(name, json.dumps(report[name], indent=1), flush=True)
    if flags.output:
        flags.output.write_text(json.dumps(vars(flags) | {"output": str(flags.output), "worlds": report}, indent=1))


if __name__ == "__main__":
    main()
