"""`scpo benchmark`: how much data SCPO saves against full finetuning, and what annotation to buy.

Every seed is a run of its own up to the selection, in `benchmark/seed-S/` under the workdir. Then cells are trained: a
method on a share of the training users under a rule for the optimiser, all groups at once, each group from the global
RM. Users are put in an order once for each seed and group, and a share takes the first of them: small shares are parts
of larger ones. Cells are trained by their size, the smallest first, and each leaves a file under `cells/` when it is
done; the same command goes on after the last one. Cells that would train the same RMs are trained once.

Rules for the optimiser, as config.train has it otherwise (rate, schedule, pairs a step):
- steps: every cell makes config.train.max_steps steps, so few pairs are seen more often.
- epochs: every cell sees its pairs as often as full sees those of all users in config.train.max_steps steps, so few
  pairs get few steps (and as much less warm-up).
With config.train.eval_every a step is chosen on users held out of the share itself; they count as annotated.

Methods are those of config.scpo.methods and two ways to buy annotation, each for as many pairs as the users of the
share have, out of those of all users: `propose` takes what `scpo propose` would with the global RM (and again, until
the budget is spent; larger budgets continue smaller ones), `random_annotation` pairs at random. Both train on all of
them, with weight 1. full stands for annotating all that some users have.

Pairs are counted on two axes. Trained are those of the batches. Annotated are those whose label the method has to know:
a filter by label (scpo, filter_only, inverse_weight, trim) has to know all labels of the share, as full and weight_only
do; random_subset, uncertain, propose and random_annotation choose without labels and need those of their own pairs.

`reports/benchmark.json` (accuracies are fractions; pairs and steps those of all groups together, means over seeds;
intervals 95 %, see `efficiency`; null for "not reached", or where there is no such number):

    R = {"accuracy", "low", "high"}
    {"seeds": [S], "fractions": [F], "methods": [M], "groups": [G], "margin": 0.005, "rules": {B: text},
     "test_users": {S: {G: n}},
     "global": {"all": R, "edited": R, "agreed": R},
     "curves": {B: {M: [{"fraction", "annotated", "trained", "steps", "all", "edited", "agreed": R}]}},
     "target": {B: R} (full at 1, margin not taken off), "passes": {B: how often full at 1 sees a pair, on average},
     "needed": {B: {M: {"annotated": N, "trained": N}}}, N of `efficiency.needed`: {"pairs", "low", "high", "share",
         "reached"},
     "ratio": {B: {M: {"all", "kept", "ratio", "difference", "low", "high", "p"}}}, see `efficiency.ratio`,
     "paired": {B: [{"fraction", "method", "against", "difference", "low", "high", "p"}]} at equal fractions,
     "equal_labels": {B: [{"method", "against", ...}]}, see `efficiency.at_equal_labels`,
     "command": the last one}

B is "steps" or "epochs". Keys of objects are strings. `reports/benchmark.md` has the tables of the terminal,
`report.html` the figures as well: the page of a finished `scpo run` in the workdir gets a section, else it is a page of
its own.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scpo_jax import (
    benchmark_cells,
    benchmark_tables,
    configuration,
    efficiency,
    logs,
    page,
    pipeline,
    scpo,
    stages,
    storage,
)
from scpo_jax.adapters import load_to_train
from scpo_jax.benchmark_cells import ANNOTATION, COUNTS
from scpo_jax.data import preferences
from scpo_jax.data.fields import listing
from scpo_jax.efficiency import AXES, GLOBAL, MARGIN, Key, Seed, Seeds
from scpo_jax.errors import InputError
from scpo_jax.evaluate import with_global
from scpo_jax.scored_pairs import SUBSETS, GroupPairs, test_pairs
from scpo_jax.trainer import Trainer
from scpo_jax.workdir import Workdir, check_place, digest, finished

ALWAYS = ("full", "random_subset")  # the target, and what a filter has to beat
METHODS = ("full", "scpo", "filter_only", "weight_only", "random_subset", "uncertain", "trim", *ANNOTATION)
FRACTIONS, SEEDS = ("0.1", "0.25", "0.5", "1"), ("0", "1", "2")
RULES = {
    "steps": "every cell makes config.train.max_steps steps",
    "epochs": "every cell sees its pairs as often as full sees all of them in config.train.max_steps steps",
}
RIVALS = ("full", "random_subset", "random_annotation")  # that the other methods are compared with
SELECTIONS = ("uncertain", "trim"), ("scpo", "full", "random_subset")  # compared at equal numbers of annotated pairs
BEFORE = ("prepare", "global", "score", "select")


class Design(NamedTuple):
    """Which cells there are."""

    fractions: tuple[float, ...]  # rising, the last one 1
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    rules: tuple[str, ...]

    def keys(self) -> list[Key]:
        """All cells of a seed."""
        return [Key(rule, m, f) for rule in self.rules for m in self.methods for f in self.fractions]


def design_of(fractions: Sequence[str], seeds: Sequence[str], methods: Sequence[str], rules: Sequence[str]) -> Design:
    """The design that the command line asks for; raises InputError. What is always there is added."""
    shares = tuple(sorted(set(numbers(fractions, "--fractions", float))))
    if not shares or shares[-1] != 1 or not shares[0] > 0:
        raise InputError(
            f"--fractions={','.join(fractions)}: shares of the training users above 0, and 1, which sets the target"
        )
    own = tuple(dict.fromkeys(numbers(seeds, "--seeds", int)))
    if not own or min(own) < 0:
        raise InputError(f"--seeds={','.join(seeds)}: one or more whole numbers from 0")
    known = (*(name for name in scpo.METHODS if name != scpo.HEADS), *ANNOTATION)  # a group's RM is trained alone
    for flag, names, allowed in (("--methods", methods, known), ("--budgets", rules, tuple(RULES))):
        unknown = [name for name in names if name not in allowed]
        if unknown or not names:
            raise InputError(f"{flag} names {unknown[0] if unknown else ''!r}: it is one of {listing(allowed)}")
    return Design(shares, own, tuple(dict.fromkeys([*methods, *ALWAYS])), tuple(dict.fromkeys(rules)))


def numbers(texts: Sequence[str], flag: str, kind: type) -> list:
    """The numbers that a flag lists."""
    try:
        return [kind(text) for text in texts]
    except ValueError as error:
        raise InputError(f"{flag}={','.join(texts)}: {error}") from error


def run(config, workdir: Workdir, design: Design, *, force: bool = False, command: str = "") -> None:
    """Trains the cells that are missing and writes the report, after each seed and of all seeds so far.

    Raises InputError for a workdir whose seeds or cells another config made (unless `force`, which redoes them).
    """
    check_place(workdir.root, "--workdir")
    configuration.check(config)
    if config.scpo.calibrate:
        raise InputError(
            "config.scpo.calibrate chooses tau and beta with the labels of all training users, which no share of them "
            "has: leave it out of a benchmark"
        )
    runs = {str(seed): run_of(config, workdir, seed) for seed in design.seeds}
    for own, place in runs.values():
        pipeline.known(own, place, force)  # a workdir of another config is refused before anything is done
    found, started = {}, time.monotonic()
    for name, (own, place) in runs.items():
        logs.say(f"benchmark: seed {name}")
        pipeline.run(own, place, only=BEFORE, force=force, command=command)
        found[name] = run_seed(own, place, design, force)
        report = report_of(design, found, config.train.batch_size) | {"command": command}
        workdir.write_json(workdir.reports / "benchmark.json", report)
        text = benchmark_tables.text(report)
        storage.write(workdir.reports / "benchmark.md", text)
        if finished(workdir.record(), "report"):
            page.write(workdir)
        else:
            page.write_benchmark(workdir)
    print(text)
    logs.say(f"benchmark: {time.monotonic() - started:.0f} s")


def run_of(config, workdir: Workdir, seed: int):
    """(config, workdir) of a seed."""
    own = config.copy_and_resolve_references()
    own.seed = seed
    return own, workdir.seed_of_benchmark(seed)


def run_seed(config, workdir: Workdir, design: Design, force: bool) -> Seed:
    """Trains the missing cells of one seed; what all of its cells found."""
    table = preferences.read_table(workdir.pairs)
    selection = stages.read_selection(workdir)
    groups, of_group = groups_of(config, workdir, table)
    rows = [row for own in of_group.values() for row in own]
    trainer = Trainer(config, workdir, load_to_train(config, workdir), rows)
    shares = {
        group: benchmark_cells.shares_of(config, design.methods, design.fractions, group, own, selection)
        for group, own in of_group.items()
    }
    start = workdir.fingerprint("score")
    cells = {key: benchmark_cells.cell_of(config, trainer, key, shares, start) for key in design.keys()}
    found = benchmark_cells.train_cells(config, workdir, trainer, groups, cells, force)
    correct = {
        key: {group: np.array([mark == "1" for mark in own["correct"][group]], float) for group in groups}
        for key, own in found.items()
    }
    counts = {
        key: {name: sum(c[name] for c in own["counts"].values()) for name in COUNTS} for key, own in found.items()
    }
    return efficiency.seed_of(groups, correct, counts)


def groups_of(config, workdir: Workdir, table) -> tuple[dict[str, GroupPairs], dict[str, list[dict]]]:
    """(test pairs with the margins of the global RM, training pairs) of the groups that have both."""
    scores, groups, of_group = stages.read_scores([workdir.scores]), {}, {}
    rows = table.to_pylist()
    for group in stages.steered_groups(config, table):
        test, train = (
            [row for row in rows if row["group"] == group and row["split"] == split] for split in ("test", "train")
        )
        if not test or not train:
            logs.say(f"benchmark: {group} has no {'training' if test else 'test'} pair, skipped")
            continue
        users = sorted({row["user_id"] for row in test})  # any seed resamples the same users in the same way
        groups[group] = with_global(test_pairs(test, config.scpo.tau_test, digest([group, users])), scores)
        of_group[group] = train
    if not groups:
        raise InputError("no group has both training and test pairs: nothing to compare")
    return groups, of_group


def report_of(design: Design, found: dict[str, Seed], batch_size: int) -> dict:
    """What `reports/benchmark.json` holds, of the seeds in `found`."""
    seeds = Seeds(list(found.values()), np.random.default_rng(0))
    groups = list(dict.fromkeys(group for seed in found.values() for group in seed.users))
    return {
        "seeds": [int(name) for name in found],
        "fractions": list(design.fractions),
        "methods": list(design.methods),
        "groups": groups,
        "margin": MARGIN,
        "rules": {rule: RULES[rule] for rule in design.rules},
        "test_users": {name: {group: len(own) for group, own in seed.users.items()} for name, seed in found.items()},
        "global": {which: efficiency.accuracy_record(seeds, GLOBAL, which) for which in SUBSETS},
        "curves": {
            rule: {m: [point(seeds, Key(rule, m, f)) for f in design.fractions] for m in design.methods}
            for rule in design.rules
        },
        "passes": {rule: passes(seeds, Key(rule, "full", 1.0), batch_size) for rule in design.rules},
        "target": {rule: efficiency.accuracy_record(seeds, Key(rule, "full", 1.0)) for rule in design.rules},
        "needed": {
            rule: {
                m: {axis: efficiency.needed(seeds, rule, m, design.fractions, axis) for axis in AXES}
                for m in design.methods
            }
            for rule in design.rules
        },
        "ratio": {
            rule: {m: efficiency.ratio(seeds, rule, m) for m in design.methods if saves(seeds, rule, m)}
            for rule in design.rules
        },
        "paired": {rule: paired(seeds, rule, design) for rule in design.rules},
        "equal_labels": {rule: equal_labels(seeds, rule, design) for rule in design.rules},
    }


def point(seeds: Seeds, key: Key) -> dict:
    """A point of a curve."""
    counts = {name: seeds.count(key, name)[0] for name in COUNTS}
    return {"fraction": key.fraction, **counts} | {
        which: efficiency.accuracy_record(seeds, key, which) for which in SUBSETS
    }


def passes(seeds: Seeds, key: Key, batch_size: int) -> float:
    """How often a cell sees a pair, on average; below 1, pairs that are never seen do not help."""
    (steps, _), (trained, _) = seeds.count(key, "steps"), seeds.count(key, "trained")
    return steps * batch_size / trained


def saves(seeds: Seeds, rule: str, method: str) -> bool:
    """Whether a method trains on fewer pairs than full does of the same users; random_subset is always listed."""
    kept, every = (seeds.count(Key(rule, m, 1.0), "trained")[0] for m in (method, "full"))
    return kept < every or method == "random_subset"


def paired(seeds: Seeds, rule: str, design: Design) -> list[dict]:
    """Every method against each rival, on equal shares of the data."""
    rivals = [rival for rival in RIVALS if rival in design.methods]
    return [
        {"fraction": fraction, "method": method, "against": rival}
        | efficiency.difference(seeds, Key(rule, method, fraction), Key(rule, rival, fraction))
        for fraction in design.fractions
        for method in design.methods
        for rival in rivals
        if method != rival
    ]


def equal_labels(seeds: Seeds, rule: str, design: Design) -> list[dict]:
    """Selections against each other and against none, where they have annotated equally many pairs."""
    names = [[name for name in side if name in design.methods] for side in SELECTIONS]
    compared = [
        (method, rival, efficiency.at_equal_labels(seeds, rule, method, rival, design.fractions))
        for method in names[0]
        for rival in names[1]
    ]
    return [{"method": method, "against": rival} | found for method, rival, found in compared if found]
