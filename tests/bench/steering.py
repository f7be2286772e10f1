"""What steering gives in the simulated world: few pairs of a new country, blends in weight and in score space.

    python -m tests.bench.steering --seeds=3 --workdirs=runs/demo_1,runs/demo_2,runs/demo_3 --output=steering.json

**New countries** whose truth is a mixture of two of the seven: a profile is fitted to 8 to 512 of their pairs, by the
package's own function, on top of the RMs of the seven. Printed: which share of the gain of an RM trained on all their
data (400 users) it reaches, mean over countries, and how often it is significantly below the global RM. First for RMs
linear in the attributes, as in `tests/bench/coverage.py` (20 countries a seed), where weight and score space are the
same; then for the RMs of finished demo runs (seven countries a run), blended in weight space. "Clean" pairs are of
users without an extreme one among them, as those of texts are; noisy ratings and own tastes are theirs as everybody's.

**Blends** of the RMs of finished demo runs: accuracy along the strength in weight and in score space, for each group's
own RM and for all pairs of groups half and half; and where accuracy on agreed pairs goes.
"""

import argparse
import json
import pathlib
import tempfile
from unittest import mock

import numpy as np

from scpo_jax import checkpoint, community, judge, metrics, pipeline, score, steering, tokens
from scpo_jax.configs import demo
from scpo_jax.data import grammar, preferences, simulated
from scpo_jax.scored_pairs import margins_of
from scpo_jax.workdir import Workdir
from tests.bench.coverage import fit, fit_material, material, pairs_of_users

SIZES = (8, 32, 128, 512)
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
MIXTURES = 20
USERS, TEST_USERS = 400, 300
EXTREME = 0.15


def linear_models(seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The global RM `[A]` and the RM of each group, by scpo."""
    rng = np.random.default_rng(seed)
    majority = np.concatenate([pairs_of_users(rng, g, 3 * USERS, 1.0, EXTREME)[0] for g in simulated.MAJORITY])
    start = fit(majority, np.ones(len(majority)), np.zeros(majority.shape[1]), pull=1e-3)
    groups = {}
    for group in simulated.MINORITY:
        differences = pairs_of_users(rng, group, USERS, 1.0, EXTREME)[0]
        groups[group] = fit_material(material("scpo", group, differences, start, rng), start)
    return start, groups


def mixture(rng) -> dict[str, float]:
    """Deltas of a new country: between those of two others."""
    first, second = (simulated.DELTA[str(group)] for group in rng.choice(simulated.MINORITY, 2, replace=False))
    share = rng.uniform(0.25, 0.75)
    return {name: share * first.get(name, 0.0) + (1 - share) * second.get(name, 0.0) for name in grammar.ATTRIBUTES}


def linear_country(rng, start: np.ndarray, groups: dict[str, np.ndarray], extreme: float) -> dict:
    """`outcome` of a new country for linear RMs."""
    with mock.patch.dict(simulated.DELTA, {"new": mixture(rng)}):
        train, owners = pairs_of_users(rng, "new", USERS, 1.0, extreme)
        test, test_users = pairs_of_users(rng, "new", TEST_USERS, 1.0, extreme)
    directions = np.stack([own - start for own in groups.values()], axis=1)
    few = rng.permutation(len(train))
    margins = {"global": test @ start}
    margins["all"] = test @ fit_material(material("scpo", "new", train, start, rng), start)
    for size in SIZES:
        own = few[:size]
        fitted = community.fit(train[own] @ start, train[own] @ directions, owners[own])
        margins[size] = test @ (start + directions @ fitted.strengths)
    return outcome(margins, test_users)


def outcome(margins: dict, users: np.ndarray) -> dict:
    """{"global", "all", sizes: accuracy on test pairs and its difference to the global RM's, with an interval}."""
    counts = metrics.bootstrap_counts(users, np.random.default_rng(0))
    right = {name: (own > 0).astype(float) for name, own in margins.items()}
    return {
        name: metrics.mean_difference([own - right["global"]], [counts]) | {"accuracy": float(own.mean())}
        for name, own in right.items()
    }


def text_countries(folder: pathlib.Path, seed: int, scratch: pathlib.Path) -> list[dict[str, dict]]:
    """{"weight", "score": `outcome`} of seven new countries for the RMs of a demo run: pairs are texts.

    Their world and the RMs trained on all of their data are made in `scratch`, or found there.
    """
    rng, run = np.random.default_rng([seed, 2]), Run(folder)
    config = demo.get_config()
    config.data.source, config.global_rm.train, config.controls = "prism", False, ()
    config.data.test_size = TEST_USERS / (USERS + TEST_USERS)
    config.model.name_or_path = str(Workdir(folder).global_checkpoint)
    config.scpo.methods = ("scpo",)
    world, workdir = scratch / "world", Workdir(scratch / "run")
    if not world.exists():
        deltas = {group: mixture(rng) for group in simulated.MINORITY}
        arguments = {"users_per_group": USERS + TEST_USERS, "cultural_strength": 1.0, "extreme_share": 0.0}
        with mock.patch.multiple(simulated, DELTA=deltas, MAJORITY=()):
            simulated.write(world, **arguments, seed=seed)
    config.data.path = str(world)
    pipeline.run(config, workdir, only=("prepare", "global", "score", "select", "train"))
    table = preferences.read_table(workdir.pairs).to_pylist()
    full = {group: checkpoint.load(path).params for group, path in workdir.groups("scpo").items()}
    return [run.new_country([row for row in table if row["group"] == group], params) for group, params in full.items()]


def share_of_gain(countries: list[dict], size: int) -> dict:
    """Mean gain of profiles over mean gain of training on all data, bootstrapped over countries."""
    gains = np.array([[own[name]["difference"] for name in (size, "all")] for own in countries])
    draws = np.random.default_rng(0).integers(len(gains), size=(2000, len(gains)))
    resampled = gains[draws].mean(1)
    low, high = metrics.interval(resampled[:, 0] / resampled[:, 1])
    best, worst = metrics.interval(resampled[:, 0])[::-1]
    return {
        "share": float(gains[:, 0].mean() / gains[:, 1].mean()), "low": low, "high": high,
        "gain": float(gains[:, 0].mean()), "gain_low": worst, "gain_high": best,
        "significantly_below_global": sum(own[size]["high"] < 0 for own in countries),
        "countries": len(countries),
    }  # fmt: skip


def gains(countries: list[dict]) -> dict:
    """{"global", "all": mean accuracy, size: share of gain} of new countries."""
    found = {which: float(np.mean([own[which]["accuracy"] for own in countries])) for which in ("global", "all")}
    return found | {size: share_of_gain(countries, size) for size in SIZES}


def new_countries(seeds: int) -> dict:
    """Clean pairs, and pairs with extreme annotators: {which: {"global", "all": accuracy, size: share of gain}}."""
    found = {}
    for name, extreme in (("clean", 0.0), ("with extreme annotators", EXTREME)):
        countries = []
        for seed in range(1, 1 + seeds):  # seed 0 is where `community` got its constants from
            start, groups = linear_models(seed)
            rng = np.random.default_rng([seed, 1])
            countries += [linear_country(rng, start, groups, extreme) for _ in range(MIXTURES)]
        found[name] = gains(countries)
    return found


class Run:
    """The global RM and the RMs of the groups of a finished run, their test pairs and every RM's scores of these."""

    def __init__(self, folder: pathlib.Path):
        workdir = Workdir(folder)
        self.start = checkpoint.load(workdir.global_checkpoint)
        self.groups = {group: checkpoint.load(path).params for group, path in workdir.groups("scpo").items()}
        self.function = score.score_function(self.start.model, "float32")
        rows = [row for row in preferences.read_table(workdir.pairs).to_pylist() if row["split"] == "test"]
        self.rows = {group: [row for row in rows if row["group"] == group] for group in self.groups}
        every = [row for own in self.rows.values() for row in own]
        self.known = {"": self.scores(self.start.params, every)}
        self.known |= {group: self.scores(params, every) for group, params in self.groups.items()}

    def scores(self, params: dict, rows: list[dict]) -> dict[str, np.float32]:
        """text key -> score of the texts of pairs."""
        scorer, texts = judge.Scorer(self.start._replace(params=params), self.function), tokens.texts_of(rows)
        return dict(zip(texts, scorer(*zip(*texts.values(), strict=True)), strict=True))

    def new_country(self, rows: list[dict], full: dict) -> dict[str, dict]:
        """{"weight", "score": `outcome`} for one country's pairs and an RM's parameters trained on all of them."""
        train, test = ([row for row in rows if row["split"] == split] for split in ("train", "test"))
        few = [train[i] for i in np.random.default_rng(0).permutation(len(train))[: max(SIZES)]]
        models = {"": self.start.params, **self.groups}
        known = [margins_of(few, self.scores(params, few)).astype(float) for params in models.values()]
        users, features = np.array([row["user_id"] for row in few]), np.stack(known[1:], axis=1) - known[0][:, None]
        there = {name: margins_of(test, self.scores(params, test)).astype(float) for name, params in models.items()}
        weight = {"global": there[""], "all": margins_of(test, self.scores(full, test))}
        score_space = dict(weight)
        for size in SIZES:
            own = few[:size]

            def margins(params: dict, own=own) -> np.ndarray:
                return margins_of(own, self.scores(params, own)).astype(float)

            def named(fitted: community.Fit) -> steering.Profile:
                return dict(zip(self.groups, fitted.strengths.tolist(), strict=True))

            params_of = self.groups.__getitem__
            found = community.fit_blend(self.start.params, params_of, list(self.groups), margins, users[:size])
            blended = steering.blend(self.start.params, named(found.fit), params_of)
            weight[size] = margins_of(test, self.scores(blended, test))
            linear = community.fit(known[0][:size], features[:size], users[:size])
            score_space[size] = steering.blend_scores(there[""], there, named(linear))
        owners = np.array([row["user_id"] for row in test])
        return {"weight": outcome(weight, owners), "score": outcome(score_space, owners)}

    def accuracies(self, profile: steering.Profile, group: str) -> dict[str, dict[str, float]]:
        """{"weight", "score": {"all", "agreed": accuracy}} of a blend on the test pairs of a group."""
        rows = self.rows[group]
        known = {name: margins_of(rows, own).astype(float) for name, own in self.known.items()}
        blended = steering.blend(self.start.params, profile, self.groups.__getitem__)
        margins = {
            "weight": margins_of(rows, self.scores(blended, rows)),
            "score": steering.blend_scores(known[""], known, profile),
        }
        agreed = known[""] > 0
        return {
            space: {"all": float(np.mean(own > 0)), "agreed": float(np.mean(own[agreed] > 0))}
            for space, own in margins.items()
        }


def blends(folder: pathlib.Path) -> dict:
    """{"strengths": {strength: summary over groups}, "halves": summary over pairs of groups}."""
    run = Run(folder)
    along = {s: [run.accuracies({g: s}, g) for g in run.groups] for s in STRENGTHS}
    names = list(run.groups)
    halves = [
        run.accuracies({a: 0.5, b: 0.5}, own) for i, a in enumerate(names) for b in names[i + 1 :] for own in (a, b)
    ]
    return {"strengths": {s: summary(found) for s, found in along.items()}, "halves": summary(halves)}


def summary(found: list[dict]) -> dict:
    """Means over what was tried, and the largest difference between the spaces."""
    spaces = {
        space: {which: float(np.mean([own[space][which] for own in found])) for which in ("all", "agreed")}
        for space in ("weight", "score")
    }
    gaps = [own["weight"]["all"] - own["score"]["all"] for own in found]
    return spaces | {"largest_gap": float(max(gaps, key=abs)), "mean_gap": float(np.mean(gaps))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="worlds of linear RMs; 0 leaves them out")
    parser.add_argument("--workdirs", default="", help="finished demo runs, separated by commas")
    parser.add_argument("--scratch", type=pathlib.Path, help="folder for the worlds of new countries, which is kept")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
    flags = parser.parse_args()
    report = {"new_countries": new_countries(flags.seeds) if flags.seeds else {}, "blends": {}}
    print(json.dumps(report["new_countries"], indent=1), flush=True)
    countries, scratch = [], flags.scratch or pathlib.Path(tempfile.mkdtemp())
    for seed, folder in enumerate(filter(None, flags.workdirs.split(","))):
        report["blends"][folder] = blends(pathlib.Path(folder))
        print(folder, json.dumps(report["blends"][folder], indent=1), flush=True)
        countries += text_countries(pathlib.Path(folder), seed, scratch / str(seed))
        report["new_countries"]["texts"] = {
            space: gains([own[space] for own in countries]) for space in ("weight", "score")
        }
        print(f"texts, {seed + 1} runs", json.dumps(report["new_countries"]["texts"], indent=1), flush=True)
    if flags.output:
        flags.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
