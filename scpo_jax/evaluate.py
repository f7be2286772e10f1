"""The stage that evaluates: every reward model scores test pairs, and reports say what follows from it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from scpo_jax import (
    bias,
    calibration,
    checkpoint,
    controls,
    distributed,
    guards,
    heads,
    logs,
    metrics,
    score,
    scpo,
    stages,
    strengths,
    tokens,
)  # fmt: skip
from scpo_jax.bias import Matrix
from scpo_jax.data import preferences, traits
from scpo_jax.reference_reports import edited_ratios, percent_report
from scpo_jax.scored_pairs import (
    GroupPairs,
    advantage,
    compare,
    flips,
    gain,
    macro,
    margins_of,
    mean_over_groups,
    means,
    noise_records,
    noisy_global,
    records,
    scored,
    test_pairs,
)  # fmt: skip
from scpo_jax.train_groups import hold_out
from scpo_jax.train_reward import derived_seed, options_from
from scpo_jax.workdir import Workdir, slugs_of

TEMPERATURE_PAIRS = 256  # of a group's training users, which the temperature of an RM is fitted on


class Scored(NamedTuple):
    """What the RMs of a run make of pairs."""

    groups: dict[str, GroupPairs]  # test pairs, with the margins of each group's own RMs
    visited: dict[str, GroupPairs]  # those of them that the RMs of all groups are tried on
    matrices: dict[str, Matrix]  # method -> margins of group i's RM on the visited pairs of group j
    train_margins: dict[str, dict[str, np.ndarray]]  # method -> group -> margins of pairs to fit a temperature on
    cards: dict[str, dict[str, dict]]  # method -> group -> what the checkpoint of its RM says


def evaluate(config, workdir: Workdir) -> None:
    """Scores the test pairs of every group with its RMs and writes the reports."""
    table = preferences.read_table(workdir.pairs)
    steered = stages.steered_groups(config, table)
    rows = table.to_pylist()
    of_test = [row for row in rows if row["split"] == "test"]
    global_scores = stages.stored_scores(workdir, stages.scored_rows(config, table))
    groups = {}
    for group in steered:
        own = [row for row in of_test if row["group"] == group]
        if not own:
            logs.say(f"evaluate: {group} has no test pair, skipped")
            continue
        groups[group] = with_global(test_pairs(own, config.scpo.tau_test, group), global_scores)
    fitted = {group: temperature_rows(config, group, rows) for group in groups}
    slugs = slugs_of(steered)
    everything = score_groups(config, workdir, groups, fitted, global_scores, slugs)
    along = along_strength(config, workdir, everything, slugs)
    if not distributed.is_writer():
        return
    selection = preferences.read_table(workdir.selection).to_pylist()
    report = {
        **statistics(config, everything),
        "steering": strengths.report(controls.main_method(config.scpo.methods), along, groups, everything.visited),
        "fields": fields(config, groups, traits.read(workdir.traits)),
        **truth(config, workdir, groups, of_test, global_scores),
        **baselines(config, table, groups),
    }
    if config.data.source == "prism":
        guards.add(workdir, guards.prism_accuracy(report["methods"]))
    workdir.write_json(workdir.reports / "evaluation.json", report)
    for name, which in (("full_report", "all"), ("partial_report", "edited")):
        workdir.write_json(workdir.reports / f"{name}.json", percent_report(groups, config.scpo.methods, which))
    workdir.write_json(workdir.reports / "edited_ratios.json", edited_ratios(selection, steered))
    write_test_scores(workdir, groups)


def with_global(pairs: GroupPairs, global_scores: dict[str, np.float32]) -> GroupPairs:
    """The pairs, with the margins of the global RM filled in."""
    pairs.margins["global"] = margins_of(pairs.rows, global_scores)
    return pairs


def temperature_rows(config, group: str, rows: Sequence[dict]) -> list[dict]:
    """Pairs of a group's training users to fit a temperature on: of users held out from training, if there are any."""
    options = options_from(config, group)
    own = [row for row in rows if row["group"] == group and row["split"] == "train"]
    own, held_out = hold_out(own, config.train.validation_size if options.eval_every else 0.0, options.seed)
    chosen = held_out or own
    order = np.random.default_rng(derived_seed(config.seed, f"temperature/{group}")).permutation(len(chosen))
    return [chosen[i] for i in order[:TEMPERATURE_PAIRS]]


def visited_pairs(config, groups: dict[str, GroupPairs], global_scores: dict[str, np.float32]) -> dict[str, GroupPairs]:
    """The pairs of each group that all RMs are tried on."""
    found = {}
    for group, pairs in groups.items():
        own = bias.visited_rows(pairs.rows, np.random.default_rng(derived_seed(config.seed, f"visited/{group}")))
        found[group] = with_global(test_pairs(own, pairs.tau_test, group), global_scores)
    return found


def score_groups(
    config,
    workdir: Workdir,
    groups: dict[str, GroupPairs],
    fitted: dict[str, list[dict]],
    global_scores: dict[str, np.float32],
    slugs: dict[str, str],
) -> Scored:
    """Scores all pairs by all RMs; fills in the margins of `groups` too.

    Args:
      fitted: group -> pairs to fit the temperature of its RMs on.
      global_scores: of the global RM, of all texts, by text key.
    """
    names = [*config.scpo.methods, *config.controls]
    visited, matrices = visited_pairs(config, groups, global_scores), {name: {} for name in config.scpo.methods}
    train_margins = {"global": {group: margins_of(rows, global_scores) for group, rows in fitted.items()}}
    train_margins |= {name: {} for name in config.scpo.methods}
    cards = {name: {} for name in names}
    abroad = tokens.texts_of([row for pairs in visited.values() for row in pairs.rows])
    every = [row for pairs in groups.values() for row in pairs.rows] + [r for rows in fitted.values() for r in rows]
    texts = tokens.read(config, workdir, tokens.texts_of(every), training=False)
    progress = logs.Progress(len(groups) * len(names), "evaluate", "model")
    backbone = workdir.backbone_of(scpo.HEADS)
    of_heads = heads.scores(backbone, texts, config.model.dtype) if scpo.HEADS in names else {}
    for group, pairs in groups.items():
        own_texts, fitted_texts = tokens.texts_of(pairs.rows), tokens.texts_of(fitted[group])
        for name in names:
            folder = workdir.checkpoint_of(name, group, slugs)
            progress.add(1)
            if not checkpoint.is_checkpoint(folder):
                continue
            wanted = own_texts | fitted_texts | abroad if name in matrices else own_texts
            if name == scpo.HEADS and group in of_heads:
                scores, card = of_heads[group], checkpoint.load_card(folder)
            else:
                loaded = checkpoint.load(folder)
                card = loaded.card
                function = score.score_function(loaded.model, config.model.dtype)
                values = score.score_texts(function, loaded.params, [texts[key] for key in wanted])
                scores = dict(zip(wanted, values, strict=True))
            pairs.margins[name] = margins_of(pairs.rows, scores)
            pairs.movement[name] = float(np.std([scores[key] - global_scores[key] for key in own_texts], dtype=float))
            if name in matrices:
                train_margins[name][group] = margins_of(fitted[group], scores)
                matrices[name][group] = {other: margins_of(own.rows, scores) for other, own in visited.items()}
            cards[name][group] = card
    progress.close()
    return Scored(groups, visited, matrices, train_margins, cards)


def along_strength(config, workdir: Workdir, everything: Scored, slugs: dict[str, str]) -> dict[float, strengths.Point]:
    """What the blends of the main method make of the test pairs, strength by strength."""
    main = controls.main_method(config.scpo.methods)
    matrix = everything.matrices[main] if main else {}
    if not matrix:
        return {}
    folders = {group: workdir.checkpoint_of(main, group, slugs) for group in matrix}
    groups, visited = everything.groups, everything.visited
    every = [row for pairs in (*groups.values(), *visited.values()) for row in pairs.rows]
    texts = tokens.read(config, workdir, tokens.texts_of(every), training=False)
    start = stages.load_global(config, workdir)
    function = score.score_function(start.model, config.model.dtype)
    return strengths.follow(start, folders, main, groups, visited, matrix, texts, function)


def statistics(config, everything: Scored) -> dict:
    """What `reports/evaluation.json` holds for any data source."""
    groups, visited, matrices, train_margins, cards = everything
    trained = list(config.scpo.methods)
    methods, main = ["global", *trained], controls.main_method(trained)
    rivals = [name for name in methods if name != main]
    found = {method: records(groups, method) for method in methods}
    claims = controls.findings(groups, main, config.controls) if config.controls else {"verdict": {}}
    return {
        "groups": list(groups),
        "test_users": {group: pairs.users for group, pairs in groups.items()},
        "too_few_users": [group for group, pairs in groups.items() if pairs.users < metrics.FEW_USERS],
        "methods": found,
        "macro": macro(groups, methods),
        "gain": {method: gain(groups, method) for method in trained},
        "paired": {"method": main, "against": {name: compare(groups, main, name) for name in rivals if main}},
        "margins": {m: means(scored(groups, m), lambda pairs, m=m: pairs.margins[m]) for m in methods},
        "flips": {method: means(scored(groups, method), flips(method)) for method in trained},
        "noise": {method: noise_records(groups, method) for method in trained},
        "macro_noise": {m: mean_over_groups(scored(groups, m), noisy_global(m), "edited") for m in trained},
        "calibration": {method: calibrated(groups, method, train_margins[method]) for method in methods},
        "bias": {m: bias.accuracies(own) for m, own in {"global": bias.global_rows(visited), **matrices}.items()},
        "bias_pairs": {group: len(pairs.rows) for group, pairs in visited.items()},
        "excess_bias": {method: bias.excess_bias(matrix, visited) for method, matrix in matrices.items()},
        "effects": bias.effects(groups, matrices, visited),
        "worst_group": {method: bias.worst_group(own) for method, own in found.items()},
        "controls": {
            "method": main,
            "accuracy": {name: records(groups, name) for name in config.controls},
            "macro": macro(groups, config.controls),
            "trained_on": {c: {g: card["trained_on"] for g, card in cards[c].items()} for c in config.controls},
            **{key: value for key, value in claims.items() if key != "verdict"},
        },
        "verdict": claims["verdict"],
        "steps": {name: {group: card["steps"] for group, card in own.items()} for name, own in cards.items()},
    }


def calibrated(groups: dict[str, GroupPairs], method: str, train_margins: dict[str, np.ndarray]) -> dict:
    """{group: calibration of a method on its test pairs, at the temperature of its training users' pairs}."""
    return {
        group: calibration.record(
            pairs.margins[method], pairs.counts, calibration.fit_temperature(train_margins[group])
        )
        for group, pairs in scored(groups, method).items()
    }


def fields(config, groups: dict[str, GroupPairs], known: dict[str, dict[str, str]]) -> dict:
    """Accuracy by the fields of the survey: of all methods over all groups, of two within each group.

    Args:
      known: user -> field -> value.
    """
    if not known:
        return {}
    methods, main = ["global", *config.scpo.methods], controls.main_method(config.scpo.methods)
    both = ["global", *([main] if main else [])]
    groups = {group: pairs for group, pairs in groups.items() if pairs.margins.keys() >= set(methods)}
    return {
        "pooled": bias.by_fields(groups, known, methods),
        "groups": {group: bias.by_fields({group: pairs}, known, both) for group, pairs in groups.items()},
    }


def truth(config, workdir: Workdir, groups: dict[str, GroupPairs], rows: Sequence[dict], global_scores: dict) -> dict:
    """What only the simulated world knows: accuracy of the true utility, on the same pairs.

    "majority" holds the global RM on test users of the countries that trained it.
    """
    if config.data.source != "simulated":
        return {}
    utilities = workdir.read_json(workdir.simulated / "truth.json")["utilities"]
    majority = {}
    for group in stages.majority_groups(config):
        pairs = test_pairs([row for row in rows if row["group"] == group], name=group)
        if not pairs.rows:
            continue
        margins = margins_of(pairs.rows, global_scores)
        bayes = float(np.mean(true_margins(pairs.rows, utilities) > 0))
        majority[group] = {"global": metrics.accuracy_record(margins, pairs.counts), "bayes": bayes}
    for pairs in groups.values():
        pairs.margins["truth"] = true_margins(pairs.rows, utilities)
    bayes = {
        group: {
            which: float(pairs.correct("truth")[pairs.subset(which)].mean())
            for which in ("all", "agreed")
            if pairs.subset(which).any()
        }
        for group, pairs in groups.items()
    }
    gap = {
        method: mean_over_groups(scored(groups, method), advantage("truth", method), "agreed")
        for method in config.scpo.methods
    }
    return {
        "bayes": bayes,
        "macro_bayes": macro(groups, ["truth"])["truth"],
        "agreed_gap_to_truth": gap,
        "majority": majority,
    }


def true_margins(rows: Sequence[dict], utilities: dict[str, float]) -> np.ndarray:
    """True utility of the chosen minus that of the rejected response, `[B]`."""
    return np.array([utilities[row["chosen_id"]] - utilities[row["rejected_id"]] for row in rows])


def baselines(config, table: pa.Table, groups: dict[str, GroupPairs]) -> dict:
    """For GlobalOpinionQA: what the option's text alone predicts, and accuracy where countries disagree."""
    if config.data.source != "global_opinions":
        return {}
    train = [row for row in table.to_pylist() if row["split"] == "train"]
    rate = win_rates(train)
    option_text, contested = {}, {}
    orders = {}
    for row in table.to_pylist():
        orders.setdefault((row["interaction_id"], frozenset((row["chosen"], row["rejected"]))), set()).add(
            row["chosen"]
        )
    for group, pairs in groups.items():
        pairs.margins["option_text"] = np.array([rate(row["chosen"]) - rate(row["rejected"]) for row in pairs.rows])
        option_text[group] = metrics.accuracy_record(pairs.margins["option_text"], pairs.counts)
        keys = [(row["interaction_id"], frozenset((row["chosen"], row["rejected"]))) for row in pairs.rows]
        mask = np.array([len(orders[key]) > 1 for key in keys])
        contested[group] = {
            method: metrics.accuracy_record(margins, pairs.counts, mask) for method, margins in pairs.margins.items()
        }
    return {"baselines": {"option_text": option_text, "contested": contested}}


def win_rates(rows: Sequence[dict]):
    """A function option text -> share of training pairs with it that it wins, 0.5 for one never seen."""
    wins, seen = {}, {}
    for row in rows:
        wins[row["chosen"]] = wins.get(row["chosen"], 0) + 1
        for side in ("chosen", "rejected"):
            seen[row[side]] = seen.get(row[side], 0) + 1
    return lambda text: wins.get(text, 0) / seen[text] if text in seen else 0.5


def write_test_scores(workdir: Workdir, groups: dict[str, GroupPairs]) -> None:
    """Writes the margin R+ - R- of every test pair by every method, the raw material of all reports."""
    rows = [
        {
            "pair_id": row["pair_id"],
            "group": group,
            "user_id": row["user_id"],
            "method": method,
            "margin": float(margin),
        }
        for group, pairs in groups.items()
        for method, margins in pairs.margins.items()
        for row, margin in zip(pairs.rows, margins, strict=True)
    ]
    columns = ("pair_id", "group", "user_id", "method", "margin")
    preferences.write_table(pa.table({key: [row[key] for row in rows] for key in columns}), workdir.test_scores)
