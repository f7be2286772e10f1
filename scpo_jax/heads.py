"""The method "heads": one backbone with a score head for each group, so that one forward pass scores for all of them.

It is trained on the pairs of all groups together, which SCPO filters and weights as for RMs of their own; of a pair's
texts the scores count that the head of its group gives.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from scpo_jax import checkpoint, distributed, logs, score, scpo, train_reward
from scpo_jax.checkpoint import Loaded
from scpo_jax.controls import Material
from scpo_jax.data.batches import Pairs
from scpo_jax.data.encoding import Text
from scpo_jax.models import lora, module
from scpo_jax.train_reward import Options, Training
from scpo_jax.trainer import Job, Trainer, card_of, fingerprint_of, inputs_of
from scpo_jax.workdir import Workdir


def train(
    config, workdir: Workdir, trainer: Trainer, materials: dict[str, Material], slugs: dict[str, str], known: dict
) -> None:
    """Trains one backbone with a head for each group that keeps pairs, and writes the groups' RMs beside it.

    `known` holds each group's tau and beta.
    """
    used = {group: own for group, own in materials.items() if own.rows}
    for group in materials:
        if group not in used:
            logs.say(f"train: {scpo.HEADS}/{slugs[group]} keeps no pair, skipped")
    if not used:
        return
    job = make_job(config, workdir, trainer, used, known)
    trainer.starting_from(widen(trainer.start, tuple(used))).produce([job])
    if distributed.is_writer():
        write(job.folder, {group: workdir.checkpoint_of(scpo.HEADS, group, slugs) for group in used})
    distributed.barrier("the heads")


def make_job(config, workdir: Workdir, trainer: Trainer, materials: dict[str, Material], known: dict) -> Job:
    """The training of one backbone for all these groups."""
    options, groups = options_from(config, len(materials)), list(materials)
    pairs = together([trainer.pairs(own.rows, own.weights) for own in materials.values()])
    judging = [own.held_out for own in materials.values()]
    held_out = together([trainer.pairs(rows, np.ones(len(rows), np.float32)) for rows in judging])
    inputs = [[group, *inputs_of(own)] for group, own in materials.items()]
    fingerprint = fingerprint_of(workdir, options, inputs, trainer)
    card = card_of(config, method=scpo.HEADS, group="", pairs=len(pairs.weights), fingerprint=fingerprint)
    of_groups = {
        group: {"pairs": len(own.rows), "trained_on": groups, "tau": known[group]["tau"], "beta": known[group]["beta"]}
        for group, own in materials.items()
    }
    training = Training(scpo.HEADS, pairs, options, held_out if len(held_out.weights) else None)
    return Job(workdir.backbone_of(scpo.HEADS), card | {"heads": of_groups}, training)


def widen(start: Loaded, groups: Sequence[str]) -> Loaded:
    """A model with as many heads as there are groups, each of them the one head it had."""
    model = module.build(start.model.config, "config", start.model.lora, heads=tuple(groups))
    head = {name: np.repeat(np.asarray(leaf), len(groups), axis=-1) for name, leaf in start.params[lora.HEAD].items()}
    return start._replace(model=model, params=start.params | {lora.HEAD: head})


def options_from(config, groups: int) -> Options:
    """The options of the training of all heads: its steps are those of that many groups' RMs one after the other.

    Warm-up and the steps between validations are stretched alike. Overrides of `config.per_group` are of groups, whose
    trainings are one here: those of learning_rate and max_steps do not count.
    """
    own = train_reward.options_from(config, "")
    stretched = {name: groups * getattr(own, name) for name in ("max_steps", "warmup_steps", "eval_every")}
    return dataclasses.replace(own, **stretched, seed=train_reward.derived_seed(config.seed, scpo.HEADS))


def together(parts: Sequence[Pairs]) -> Pairs:
    """The pairs of all groups, each with the column of its group."""
    chosen, rejected, ids = ([one for own in parts for one in own[field]] for field in (0, 1, 4))
    weights, margins = (np.concatenate([own[field] for own in parts]) for field in (2, 3))
    columns = np.repeat(np.arange(len(parts), dtype=np.int32), [len(own.weights) for own in parts])
    return Pairs(chosen, rejected, weights, margins, ids, columns)


def one_of(loaded: Loaded, group: str, base: dict) -> Loaded:
    """The RM of a group: of a model with heads that of the group alone.

    `base` says where the rest of its parameters is found, see `checkpoint.reference`. Its card is that of all heads
    with what `card["heads"]` says of the group.
    """
    column, card = loaded.model.heads.index(group), loaded.card
    head = {name: leaf[..., column : column + 1] for name, leaf in loaded.params[lora.HEAD].items()}
    own = card["heads"][group] | {"group": group, "base": base}
    own |= {key: card[key][column] for key in ("score_mean", "score_std")}
    rest = {key: value for key, value in card.items() if key != "heads"}
    model = module.build(loaded.model.config, "config", loaded.model.lora)
    return loaded._replace(model=model, params=loaded.params | {lora.HEAD: head}, card=rest | own)


def write(backbone: epath.Path, folders: Mapping[str, epath.Path]) -> None:
    """Writes group -> checkpoint beside that of the backbone, where they are not its own yet, and removes all others.

    They hold a head each; with adapters these as well, on the base that the backbone has.
    """
    loaded = checkpoint.load(backbone)
    on_backbone = checkpoint.reference(f"../{backbone.name}", "", loaded.params)
    for path in backbone.parent.iterdir():
        if path not in (backbone, *folders.values()):
            path.rmtree()
    for group, folder in folders.items():
        if checkpoint.load_card(folder).get("fingerprint") != loaded.card["fingerprint"]:
            base = loaded.card["base"] if loaded.model.lora else on_backbone
            checkpoint.save(folder, one_of(loaded, group, base))


def scores(backbone: epath.Path, texts: Mapping[str, Text], dtype: str) -> dict[str, dict[str, np.float32]]:
    """group -> text key -> score by its head, of encoded texts, in one forward pass; {} where there is no backbone."""
    if not checkpoint.is_checkpoint(backbone):
        return {}
    loaded = checkpoint.load(backbone)
    function = score.score_function(loaded.model, dtype)
    values = score.score_texts(function, loaded.params, list(texts.values()))
    return {group: dict(zip(texts, values[:, c], strict=True)) for c, group in enumerate(loaded.model.heads)}
