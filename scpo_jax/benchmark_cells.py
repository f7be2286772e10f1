"""The cells of `scpo benchmark`: what each one trains on, and their training. See `benchmark` for what a cell is."""

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from scpo_jax import logs, pipeline, propose, tokens
from scpo_jax.controls import Material
from scpo_jax.data.encoding import Text
from scpo_jax.efficiency import Key
from scpo_jax.errors import InputError
from scpo_jax.scored_pairs import GroupPairs, margins_of
from scpo_jax.train_groups import own_material
from scpo_jax.train_reward import Training, derived_seed, options_from
from scpo_jax.trainer import Trainer
from scpo_jax.workdir import Workdir, digest

ANNOTATION = ("propose", "random_annotation")  # ways to buy annotation: pairs of all users
NEED_NO_LABEL = ("random_subset", "uncertain", "uncertain_weighted", *ANNOTATION)  # to choose their pairs
COUNTS = ("annotated", "trained", "steps")


class Share(NamedTuple):
    """What a group's RM of a cell learns from, and how many labels that takes."""

    material: Material
    annotated: int


class Cell(NamedTuple):
    """The trainings of all groups that have pairs to train on."""

    trainings: dict[str, Training]
    counts: dict[str, dict[str, int]]  # group -> annotated, trained, steps
    fingerprint: str  # of the trainings: cells that share it have the same RMs

    @property
    def steps(self) -> int:
        """Steps of all groups together: what the cell costs."""
        return sum(own["steps"] for own in self.counts.values())


def nested(users: Sequence[str], fractions: Sequence[float], rng: np.random.Generator) -> dict[float, set[str]]:
    """Fraction -> users, at least one, in an order drawn once: those of a small fraction are in the larger ones too."""
    order = [users[i] for i in rng.permutation(len(users))]
    return {fraction: set(order[: math.ceil(fraction * len(order))]) for fraction in fractions}


def proposed(differences: np.ndarray, prompts: Sequence[str], budgets: Sequence[int]) -> list[list[int]]:
    """Indices of the pairs that `scpo propose` would have annotated under rising budgets, each a part of the next.

    One call of it proposes few pairs of prompts that are alike; it is called again on the rest until a budget is spent.
    `differences` `[B]` are r_a - r_b of the global RM.
    """
    taken, found = [], []
    for budget in budgets:
        while len(taken) < budget:
            left = sorted(set(range(len(prompts))) - set(taken))
            own = [prompts[i] for i in left]
            taken += [left[i] for i in propose.rank(differences[left], own, budget - len(taken), propose.PER_PROMPT)]
        found.append(list(taken))
    return found


def shares_of(
    config, methods: Sequence[str], fractions: Sequence[float], group: str, rows: list[dict], selection: dict[str, dict]
) -> dict[tuple[str, float], Share]:
    """(method, fraction) -> what a group's RM learns from, out of the group's training pairs `rows`.

    Args:
      fractions: rising.
      selection: pair id -> row of the selection.
    """

    def rng(name: str) -> np.random.Generator:
        return np.random.default_rng(derived_seed(config.seed, f"benchmark/{name}/{group}"))

    users = nested(list(dict.fromkeys(row["user_id"] for row in rows)), fractions, rng("users"))
    of_users = {fraction: [row for row in rows if row["user_id"] in own] for fraction, own in users.items()}
    budgets = [len(own) for own in of_users.values()]
    picked = [selection[row["pair_id"]] for row in rows]
    differences = np.array([own["ref_chosen"] - own["ref_rejected"] for own in picked])
    bought = {
        "propose": proposed(differences, [row["prompt"] for row in rows], budgets),
        "random_annotation": [rng("annotation").permutation(len(rows))[:budget] for budget in budgets],
    }
    found = {}
    for method in methods:
        for i, fraction in enumerate(fractions):
            own, selected_by = of_users[fraction], method
            if method in ANNOTATION:  # in the order of the file, as those of other methods
                own, selected_by = [rows[place] for place in sorted(bought[method][i])], "full"
            material = own_material(config, selected_by, group, own, selection)
            labels = len(material.rows) + len(material.held_out) if method in NEED_NO_LABEL else len(own)
            found[method, fraction] = Share(material, labels)
    return found


def cell_of(config, trainer: Trainer, key: Key, shares: dict[str, dict[tuple[str, float], Share]], start: str) -> Cell:
    """The trainings of a cell; a group without a pair to train on has none and keeps the global RM.

    Args:
      shares: of each group, of `shares_of`, with ("full", 1.0).
      start: fingerprint of the global RM and its scores.
    """
    trainings, counts, inputs = {}, {}, {}
    for group, own in shares.items():
        (rows, weights, held_out, _), annotated = own[key.method, key.fraction]
        options = options_from(config, group)
        if key.budget == "epochs":
            part = len(rows) / max(len(own["full", 1.0].material.rows), 1)
            steps, warmup = (round(part * number) for number in (options.max_steps, options.warmup_steps))
            options = dataclasses.replace(options, max_steps=max(steps, 1), warmup_steps=warmup)
        counts[group] = {"annotated": annotated, "trained": len(rows), "steps": options.max_steps if rows else 0}
        if rows:
            validation = trainer.pairs(held_out, np.ones(len(held_out), np.float32)) if held_out else None
            trainings[group] = Training(group, trainer.pairs(rows, weights), options, validation)
            ids = ([row["pair_id"] for row in pairs] for pairs in (rows, held_out))
            inputs[group] = [dict(vars(options)), weights.tolist(), *ids]
    return Cell(trainings, counts, digest([start, inputs, *trainer.adapters]))


def train_cells(
    config, workdir: Workdir, trainer: Trainer, groups: dict[str, GroupPairs], cells: dict[Key, Cell], force: bool
) -> dict[Key, dict]:
    """Trains the cells that have no file yet, the smallest first; what the files of all cells hold.

    A file is an object: "fingerprint", "config" (keys of the training), "counts" (of `Cell`), "correct" (group -> a
    string with "1" for every test pair that its RM is strictly right on, else "0", in the order of the table of
    pairs), "ties" (group -> number), "seconds" (0 where another cell has the same RMs).

    Raises InputError for cells of another config (unless `force`, which trains them anew).
    """
    settings = {key: value for key, value in pipeline.own_keys(config, "train").items() if key not in OF_OTHERS}
    found = {key: recorded(path_of(workdir, key), cell, settings, force) for key, cell in cells.items()}
    missing = sorted((key for key in cells if found[key] is None), key=lambda key: cells[key].steps)
    if not missing:
        return found
    done, at_once = len(cells) - len(missing), config.train.groups_per_program
    logs.say(f"benchmark: {done} of {len(cells)} cells are done")
    trainer.choose_shapes([lot for cell in cells.values() for lot in lots(cell, at_once)])
    rows = [row for own in groups.values() for row in own.rows]
    texts = tokens.read(config, workdir, tokens.texts_of(rows), training=False)
    known = {cells[key].fingerprint: own for key, own in found.items() if own}
    for key in missing:
        cell, started = cells[key], time.monotonic()
        if cell.fingerprint in known:
            result = {name: known[cell.fingerprint][name] for name in ("correct", "ties")} | {"seconds": 0.0}
        else:
            margins = margins_by(trainer, cell, groups, texts, at_once)
            result = marks(margins) | {"seconds": round(time.monotonic() - started, 2)}
        found[key] = {"fingerprint": cell.fingerprint, "config": settings, "counts": cell.counts, **result}
        known[cell.fingerprint] = found[key]
        workdir.write_json(path_of(workdir, key), found[key])
        done += 1
        right = float(np.mean([own.count("1") / len(own) for own in result["correct"].values()]))
        logs.say(
            f"benchmark: {key.method} at {key.fraction:g}, equal {key.budget}: {100 * right:.1f} %, "
            f"{result['seconds']:.1f} s ({done} of {len(cells)} cells)"
        )
    return found


OF_OTHERS = ("scpo.methods", "controls")  # keys of the stage train that a cell does not depend on


def path_of(workdir: Workdir, key: Key) -> epath.Path:
    """The file of a cell."""
    return workdir.root / "cells" / f"{key.budget}-{key.method}-{key.fraction:g}.json"


def recorded(path: epath.Path, cell: Cell, settings: dict, force: bool) -> dict | None:
    """What the file of a cell holds; None where it has to be trained."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        own, before = record["fingerprint"], record["config"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is no cell of a benchmark: remove it, or use another --workdir") from error
    if own == cell.fingerprint:
        return record
    if force:
        return None
    changed = [key for key in sorted(before.keys() | settings.keys()) if before.get(key) != settings.get(key)]
    listed = "; ".join(f"{key}: {pipeline.shown(before, key)} -> {pipeline.shown(settings, key)}" for key in changed)
    raise InputError(
        f"{path} is of another config: {listed or 'other pairs, or another global RM'}. Use another --workdir, or "
        "--force to train such cells anew"
    )


def lots(cell: Cell, at_once: int) -> list[list[Training]]:
    """The trainings of a cell that run at once; `at_once` is their number, -1 for all."""
    trainings = list(cell.trainings.values())
    size = len(trainings) if at_once == -1 else at_once
    return [trainings[first : first + size] for first in range(0, len(trainings), size)] if trainings else []


def margins_by(
    trainer: Trainer, cell: Cell, groups: dict[str, GroupPairs], texts: dict[str, Text], at_once: int
) -> dict[str, np.ndarray]:
    """group -> R+ - R- of its test pairs by its RM, which is trained here and not kept; by the global RM without one.

    `texts` holds the encoded texts of the test pairs by `score.text_key`.
    """
    margins = {group: pairs.margins["global"] for group, pairs in groups.items()}
    for lot in lots(cell, at_once):
        for training, trained in zip(lot, trainer.fit(lot, lambda *_: None), strict=True):
            rows = groups[training.name].rows
            own = list(tokens.texts_of(rows))
            scores = trainer.scores(trained.params, [texts[key] for key in own])
            margins[training.name] = margins_of(rows, dict(zip(own, scores, strict=True)))
    return margins


def marks(margins: dict[str, np.ndarray]) -> dict:
    """Which pairs are strictly right and how many are tied, by group, as a cell's file has it."""
    return {
        "correct": {group: "".join("01"[int(margin > 0)] for margin in own) for group, own in margins.items()},
        "ties": {group: int(np.sum(own == 0)) for group, own in margins.items()},
    }
