"""Which pairs to train on: what selections and weights do to a group's accuracy and to the other groups.

    python -m tests.bench.selections --seeds=10 --output=selections.json

Worlds and RMs are those of `coverage`: linear in the attributes, fitted from the global RM. The issue that asked for
the selections has the same comparison in a linear toy; this one asks whether its order holds here. In the simulated
world the majority has as many extreme annotators as the groups, which makes the global RM less sure; a second set of
worlds has none in the majority. For each share of extreme annotators, mean over groups and seeds:

- accuracy in percent on fresh pairs of users who are not extreme, rated without noise ("clean"; also those of them on
  which the global RM is right, "agreed", or wrong, "edited"), and on fresh pairs as test sets have them ("noisy");
- excess bias: points that an RM loses on clean pairs of the other groups, against the global RM;
- pairs trained on and labels needed, in percent of the group's pairs;
- differences between methods in clean accuracy and in excess bias, with 95 % intervals (Student's t over seeds).

"truth" is the linear RM with the group's own weights, without anyone's taste. The methods "labels of full" have as many
pairs annotated as full, out of those of five times as many users: uncertain ones, or any. 73 seconds of one core.
"""

import argparse
import json
import pathlib

import numpy as np
from scipy import stats

from scpo_jax import scpo
from scpo_jax.benchmark_cells import NEED_NO_LABEL
from scpo_jax.data import simulated
from scpo_jax.tables import table
from tests.bench import coverage
from tests.bench.coverage import pairs_of_users

METHODS = (
    "full", "scpo", "filter_only", "weight_only", "random_subset", "uncertain", "uncertain_weighted", "trim",
    "trim_weighted",
)  # fmt: skip
UNCERTAIN, ANY = "uncertain, labels of full", "random, labels of full"
WORLDS = {  # name -> share of extreme annotators, the same in the majority, "few" or "many" users a group
    "no extreme annotators": (0.0, 0.0, "many"),
    "15 % extreme": (0.15, 0.15, "many"),
    "30 % extreme": (0.3, 0.3, "many"),
    "30 % extreme, few users": (0.3, 0.3, "few"),
    "15 % extreme, none in the majority": (0.15, 0.0, "many"),
    "30 % extreme, none in the majority": (0.3, 0.0, "many"),
    "30 % extreme, none in the majority, few users": (0.3, 0.0, "few"),
}
POOL = 5  # times the group's users: where UNCERTAIN and ANY take their pairs from
FRESH_USERS = 800  # of a group, about 5,600 pairs
MEASURES = ("clean", "noisy", "agreed", "edited", "excess bias", "trained", "labels")
DIFFERENCES = {  # what it is -> a method and what it is compared with
    "the filter alone": ("filter_only", "full"),
    "the weight, kept pairs": ("scpo", "filter_only"),
    "the weight, all pairs": ("weight_only", "full"),
    "both": ("scpo", "full"),
    **{f"{name} against {other}": (name, other)
       for name in ("uncertain", "trim") for other in ("scpo", "full", "random_subset")},
    "uncertain, as many labels as full": (UNCERTAIN, "full"),
    "the same against random pairs": (UNCERTAIN, ANY),
}  # fmt: skip


def run(seed: int, users: int, extreme: float, majority: tuple[int, float]) -> dict[str, dict[str, float]]:
    """One world: method -> measure -> mean over groups, as fractions.

    `majority` is the number of users of each majority country and the share of extreme ones among them.
    """
    rng = np.random.default_rng(seed)
    start = coverage.global_rm(rng, majority[0], 1.0, majority[1])
    pools = {g: pairs_of_users(rng, g, POOL * users, 1.0, extreme) for g in simulated.MINORITY}
    clean = {g: pairs_of_users(rng, g, FRESH_USERS, 1.0, 0.0, noise=0.0)[0] for g in simulated.MINORITY}
    noisy = {g: pairs_of_users(rng, g, FRESH_USERS, 1.0, extreme)[0] for g in simulated.MINORITY}
    found = {}
    for group, (pool, owners) in pools.items():
        own = pool[owners < users]
        shares, models = trained(own, pool, start, rng)
        models |= {"global": start, "truth": simulated.group_weights(group, 1.0)}
        for name, model in models.items():
            row = [*judged(model, group, start, clean, noisy), *shares.get(name, (0.0, 0.0))]
            found.setdefault(name, []).append(row)
    return {name: dict(zip(MEASURES, np.mean(rows, axis=0).tolist(), strict=True)) for name, rows in found.items()}


def trained(own: np.ndarray, pool: np.ndarray, start: np.ndarray, rng) -> tuple[dict, dict]:
    """(method -> shares of pairs trained on and of labels needed, method -> RM) of a group with the pairs `own`."""
    shares, models = {}, {}
    for name in METHODS:
        mask, weights = coverage.training_set(name, own, start, rng)
        models[name] = coverage.fit(own[mask], weights[mask], start)
        shares[name] = mask.mean(), mask.mean() if name in NEED_NO_LABEL else 1.0
    unsure = np.flatnonzero(scpo.uncertain(pool @ start, np.zeros(len(pool)), 0.7))
    for name, candidates in ((UNCERTAIN, unsure), (ANY, np.arange(len(pool)))):
        bought = pool[rng.permutation(candidates)[: len(own)]]
        models[name] = coverage.fit(bought, np.ones(len(bought)), start)
        shares[name] = (len(bought) / len(own),) * 2
    return shares, models


def judged(model: np.ndarray, group: str, start: np.ndarray, clean: dict, noisy: dict) -> list[float]:
    """The first five of MEASURES of the RM of a group."""
    agreed = clean[group] @ start > 0
    right = clean[group] @ model > 0
    losses = [np.mean(own @ start > 0) - np.mean(own @ model > 0) for g, own in clean.items() if g != group]
    parts = right, noisy[group] @ model > 0, right[agreed], right[~agreed]
    return [*(float(part.mean()) for part in parts), float(np.mean(losses))]


def difference(runs: list[dict], names: tuple[str, str], measure: str) -> dict[str, float]:
    """A method minus another, over seeds."""
    values = np.array([run[names[0]][measure] - run[names[1]][measure] for run in runs])
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return {"difference": values.mean(), "low": values.mean() - half, "high": values.mean() + half}


def summary(runs: list[dict]) -> dict:
    """Means and differences over the seeds of a world."""
    means = {name: {m: float(np.mean([run[name][m] for run in runs])) for m in MEASURES} for name in runs[0]}
    compared = {
        what: {m: difference(runs, names, m) for m in ("clean", "excess bias")} for what, names in DIFFERENCES.items()
    }
    return {"methods": means, "differences": compared}


def shown(found: dict) -> str:
    """The tables of a world."""
    rows = [[name, *(f"{100 * own[m]:.1f}" for m in MEASURES)] for name, own in found["methods"].items()]
    texts = [[what, *(interval(own[m]) for m in own)] for what, own in found["differences"].items()]
    return f"{table(['method', *MEASURES], rows)}\n\n{table(['difference', 'clean', 'excess bias'], texts)}"


def interval(own: dict[str, float]) -> str:
    """A difference in points."""
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * own[key] for key in ("difference", "low", "high")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--users", type=int, default=60, help="training users of a group")
    parser.add_argument("--few", type=int, default=10, help="training users of a group in the last world")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
    flags = parser.parse_args()
    report, users = {}, {"many": flags.users, "few": flags.few}
    for name, (extreme, of_majority, number) in WORLDS.items():
        majority = simulated.MAJORITY_FACTOR * flags.users, of_majority
        report[name] = summary([run(seed, users[number], extreme, majority) for seed in range(flags.seeds)])
        print(f"## {name}\n\n{shown(report[name])}\n", flush=True)
    if flags.output:
        flags.output.write_text(json.dumps(vars(flags) | {"output": str(flags.output), "worlds": report}, indent=1))


if __name__ == "__main__":
    main()
