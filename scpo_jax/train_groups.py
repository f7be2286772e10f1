"""The stages that train: the global reward model, and from it one per method and group."""

import jax
import numpy as np

from scpo_jax import adapters, checkpoint, controls, distributed, heads, logs, scpo, stages, train_reward
from scpo_jax.checkpoint import Loaded
from scpo_jax.controls import Material
from scpo_jax.data import preferences
from scpo_jax.errors import InputError
from scpo_jax.models import hf, module
from scpo_jax.train_reward import Training
from scpo_jax.trainer import Job, Trainer, card_of, fingerprint_of, inputs_of
from scpo_jax.workdir import BACKBONE, Workdir, slugs_of


def train_global(config, workdir: Workdir) -> None:
    """Trains the global RM by plain Bradley-Terry on the majority's pairs, if the config says so."""
    if not config.global_rm.train:
        logs.say(f"global: {config.model.name_or_path} is the global reward model, nothing to train")
        return
    fingerprint = workdir.fingerprint("global")
    card = distributed.on_writer("the global checkpoint", lambda: checkpoint.load_card(workdir.global_checkpoint))
    if card.get("fingerprint") == fingerprint:
        return
    table = preferences.read_table(workdir.pairs)
    groups = stages.majority_groups(config) or tuple(dict.fromkeys(table["group"].to_pylist()))
    rows = [row for row in table.to_pylist() if row["split"] == "train" and row["group"] in groups]
    if not rows:
        raise InputError(f"the global RM has no training pair of {', '.join(groups)}: see config.global_rm.groups")
    tokenizer = hf.load_tokenizer(workdir.tokenizer)
    start = stages.load_start(config) if config.model.name_or_path else from_scratch(config, tokenizer)
    trainer = Trainer(config, workdir, start, rows)
    options = train_reward.global_options_from(config)
    pairs = trainer.pairs(rows, np.ones(len(rows), np.float32))
    card = card_of(config, method="global", group="", pairs=len(rows), groups=list(groups), fingerprint=fingerprint)
    trainer.produce([Job(workdir.global_checkpoint, card, Training("global", pairs, options))])
    trainer.close()


def from_scratch(config, tokenizer) -> Loaded:
    """A BERT with random weights."""
    model = module.build(stages.scratch_config(config, tokenizer))
    params = module.init(model, jax.random.key(train_reward.derived_seed(config.seed, "scratch")))
    return Loaded(model, params, tokenizer, {})


def train(config, workdir: Workdir) -> None:
    """Trains one RM per method or control and group from the global RM, on what the selection says.

    The groups of a method are trained at once.
    """
    table = preferences.read_table(workdir.pairs)
    steered = stages.steered_groups(config, table)
    selection = stages.read_selection(workdir)
    rows = [row for row in table.to_pylist() if row["split"] == "train" and row["pair_id"] in selection]
    slugs, of_group = slugs_of(steered), {}
    for group in steered:
        of_group[group] = [row for row in rows if row["group"] == group]
        if not of_group[group]:
            logs.say(f"train: {group} has no training pair, skipped")
    of_group = {group: own for group, own in of_group.items() if own}
    trainer = Trainer(config, workdir, adapters.load_to_train(config, workdir), rows)
    names = [*config.scpo.methods, *config.controls]
    if distributed.is_writer():
        wanted = {(name, slugs[group]) for name in names for group in of_group}
        remove_other_checkpoints(workdir, wanted | {(scpo.HEADS, BACKBONE)} if scpo.HEADS in names else wanted)
    at_once = len(of_group) if config.train.groups_per_program == -1 else config.train.groups_per_program
    chunks = []
    for name in (name for name in names if name != scpo.HEADS):
        materials = materials_of(config, name, of_group, selection)
        made = [
            make_job(config, workdir, trainer, name, group, own, slugs[group], selection[of_group[group][0]["pair_id"]])
            for group, own in materials.items()
        ]
        jobs = [job for job in made if job]
        chunks += [jobs[first : first + at_once] for first in range(0, len(jobs), at_once)]
    if chunks:
        trainer.choose_shapes([[job.training for job in jobs] for jobs in chunks])
    for jobs in chunks:
        trainer.produce(jobs)
    if scpo.HEADS in names:
        materials = materials_of(config, scpo.HEADS, of_group, selection)
        known = {group: selection[own[0]["pair_id"]] for group, own in of_group.items()}
        heads.train(config, workdir, trainer, materials, slugs, known)
    trainer.close()


def materials_of(config, name: str, of_group: dict[str, list[dict]], selection) -> dict[str, Material | None]:
    """group -> what its RM of a method or control learns from; None where there is no such RM."""
    method = name if name in config.scpo.methods else controls.main_method(config.scpo.methods)
    if name == "shuffled":
        return {g: shuffled_material(config, method, g, rows, selection) for g, rows in of_group.items()}
    own = {group: own_material(config, method, group, rows, selection) for group, rows in of_group.items()}
    if name == method:
        return own
    rngs = {g: np.random.default_rng(train_reward.derived_seed(config.seed, f"{name}/{g}")) for g in own}
    return {group: controls.draw(name, group, own, rngs[group]) for group in own}


def own_material(config, method: str, group: str, rows: list[dict], selection: dict[str, dict]) -> Material:
    """The pairs of a group that a method trains on, by the selection."""
    options = train_reward.options_from(config, group)
    rows, held_out = hold_out(rows, config.train.validation_size if options.eval_every else 0.0, options.seed)
    picked = [selection[row["pair_id"]] for row in rows]
    selected = scpo.Selection(*(np.array([row[key] for row in picked]) for key in scpo.Selection._fields))
    mask, weights = scpo.training_set(method, selected, np.random.default_rng(options.seed))
    return Material([row for row, used in zip(rows, mask, strict=True) if used], weights[mask], held_out, (group,))


def shuffled_material(config, method: str, group: str, rows: list[dict], selection: dict[str, dict]) -> Material:
    """The pairs that a method would train on if labels were coins, at most as many as it trains on."""
    rng = np.random.default_rng(train_reward.derived_seed(config.seed, f"shuffled/{group}"))
    size = len(own_material(config, method, group, rows, selection).rows)
    known = selection[rows[0]["pair_id"]]  # one tau and beta for the group
    rewards = ({key: selection[row["pair_id"]][key] for key in ("ref_chosen", "ref_rejected")} for row in rows)
    rows = controls.shuffled([row | own for row, own in zip(rows, rewards, strict=True)], rng)
    rewards = [np.array([row[key] for row in rows], np.float32) for key in ("ref_chosen", "ref_rejected")]
    selected = scpo.select(*rewards, known["tau"], known["beta"], config.scpo.trim)
    columns = zip(*selected, strict=True)
    selection = {
        row["pair_id"]: dict(zip(selected._fields, own, strict=True)) for row, own in zip(rows, columns, strict=True)
    }
    drawn = own_material(config, method, group, rows, selection)
    taken = rng.permutation(len(drawn.rows))[:size]
    return drawn._replace(rows=[drawn.rows[i] for i in taken], weights=drawn.weights[taken])


def make_job(
    config, workdir, trainer: Trainer, method, group, material: Material | None, slug, known: dict
) -> Job | None:
    """The training of a group's RM by a method; None, and a line that says so, if it has no pair to train on.

    `known` holds the group's tau and beta.
    """
    name = f"{method}/{slug}"
    if material is None or not material.rows:
        logs.say(f"train: {name} {'keeps no pair' if material else 'needs another group'}, skipped")
        return None
    rows, weights, held_out, source = material
    options = train_reward.options_from(config, group)
    fingerprint = fingerprint_of(workdir, options, inputs_of(material), trainer)
    card = card_of(config, method=method, group=group, pairs=len(rows), fingerprint=fingerprint)
    card |= {key: known[key] for key in ("tau", "beta")} | {"trained_on": list(source)}
    validation = trainer.pairs(held_out, np.ones(len(held_out), np.float32)) if held_out else None
    return Job(
        workdir.checkpoints / method / slug, card, Training(name, trainer.pairs(rows, weights), options, validation)
    )


def hold_out(rows: list[dict], share: float, seed: int) -> tuple[list[dict], list[dict]]:
    """(rows to train on, rows of held-out users): a share of the users, the same for every method."""
    if not share:
        return rows, []
    train, held_out = preferences.split_units(list(dict.fromkeys(row["user_id"] for row in rows)), share, seed)
    if not train:
        return rows, []
    held_out = set(held_out)
    return [r for r in rows if r["user_id"] not in held_out], [r for r in rows if r["user_id"] in held_out]


def remove_other_checkpoints(workdir: Workdir, wanted: set[tuple[str, str]]) -> None:
    """Removes RMs of methods and groups that the config no longer names: they would pass for this run's."""
    for method in workdir.methods():
        for path in (workdir.checkpoints / method).iterdir():
            if (method, path.name) not in wanted:
                path.rmtree()
