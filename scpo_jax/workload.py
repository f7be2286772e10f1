"""What a run will compute, planned without its model's weights: from its data where they are, else from lengths alone.

The trainings are planned on every training pair of a group (method "full"): which ones the filter keeps is not known
before the global RM has scored them.
"""

import tempfile
from collections import Counter
from typing import NamedTuple

import numpy as np
from etils import epath
from jax.sharding import Mesh

from scpo_jax import checkpoint, heads, score, scpo, sharding, stages, tokens, train_groups, train_reward, trainer
from scpo_jax.data import batches, lengths, packing, preferences
from scpo_jax.data.batches import Pairs
from scpo_jax.errors import InputError
from scpo_jax.models import hf, module, weights
from scpo_jax.models.module import RewardModel
from scpo_jax.train_reward import Options, Training

Shape = tuple[int, int]  # (R, T)
GLOBAL = "train global"  # the training of the global RM
HEADS = "train heads"  # that of one model with a head for each group
FEWER = 0.8  # of the tokens: a division that computes more than these is not worth a word


class Material(NamedTuple):
    """The model and the texts of a run."""

    model: RewardModel
    trainings: list[Training]  # one for each group that is steered
    global_training: Training | None
    scored: list[int]  # lengths of the texts that the global RM scores
    source: str  # where the lengths come from


class TrainingWork(NamedTuple):
    """Trainings of so many groups at once, one compiled step for each shape; about the same again for each method."""

    name: str
    options: Options
    groups: int  # G, a multiple of the group axis of the mesh
    pairs: int  # b, of a share
    shapes: dict[Shape, int]  # steps in each, of all these trainings
    fill: float  # real tokens / computed tokens
    times: int  # once a method
    validates: bool


class Division(NamedTuple):
    """How a mesh divides its devices between groups and the pairs of a batch."""

    group: int
    data: int
    computed: float  # tokens that a device computes, as a share of those by the division of the config


class ScoringWork(NamedTuple):
    """Texts scored; a program for each (shape, scores to read)."""

    name: str
    batches: dict[tuple[Shape, int], int]  # how many in each
    fill: float


def collect(config) -> Material:
    """The model and texts of a run. Raises InputError; downloads no data, and of a model on the hub no weights."""
    name = config.model.name_or_path
    folder = None if not name or checkpoint.is_checkpoint(name) else model_folder(config)
    absent = missing_data(config)
    if not absent and folder and not any((folder / file).is_file() for file in hf.VOCABULARY_FILES):
        absent = "the model's folder has no tokenizer"
    return from_lengths(config, folder, absent) if absent else from_data(config, folder)


def model_folder(config) -> epath.Path:
    """The folder with the model's `config.json`."""
    try:
        return hf.resolve(config.model.name_or_path, config.model.revision, weights_too=False)
    except InputError as error:
        hint = "a folder with its config.json is enough here: --config.model.name_or_path=FOLDER"
        raise InputError(f"{error}; {hint}") from error


def missing_data(config) -> str:
    """Why the data cannot be read without a download; "" where they can. Raises InputError."""
    data = config.data
    if data.source == "simulated" or epath.Path(data.path).expanduser().exists():
        return ""
    if data.source == "jsonl" or data.path.count("/") != 1 or data.path.startswith(("/", ".", "~")):
        raise InputError(f"config.data.path={data.path}: neither a path that exists nor the id of a data set")
    return f"{data.path} is not here"


def from_data(config, folder) -> Material:
    """From the data themselves; nothing is kept of what reading them writes."""
    with tempfile.TemporaryDirectory() as world:
        table, _, _ = stages.split_source(config, stages.read_source(config, epath.Path(world)))
    tokenizer = hf.load_tokenizer(folder) if folder else make_tokenizer(config, table)
    model, rows = structure(config, folder, tokenizer), table.to_pylist()
    texts = tokens.encode(config, tokenizer, model.reads, tokens.texts_of(rows), training=True)
    trainings = []
    for group in stages.steered_groups(config, table):
        options = train_reward.options_from(config, group)
        own = [row for row in rows if row["group"] == group and row["split"] == "train"]
        share = config.train.validation_size if options.eval_every else 0.0
        own, held_out = train_groups.hold_out(own, share, options.seed)
        if own:
            trainings.append(Training(group, with_equal_weights(own, texts), options, equal_or_none(held_out, texts)))
    majority = stages.majority_groups(config)
    own = [row for row in rows if row["split"] == "train" and (not majority or row["group"] in majority)]
    options = train_reward.global_options_from(config)
    training = Training("global", with_equal_weights(own, texts), options) if config.global_rm.train else None
    wanted = tokens.texts_of(stages.scored_rows(config, table))
    scored = tokens.encode(config, tokenizer, model.reads, wanted, training=False)
    sizes = [len(text.input_ids) for text in scored.values()]
    return Material(model, trainings, training, sizes, "the data")


def make_tokenizer(config, table):
    """The tokenizer of a checkpoint, or for a model from scratch one made of the training texts."""
    name = config.model.name_or_path
    return checkpoint.load(name).tokenizer if name else stages.make_tokenizer(config, table)[0]


def with_equal_weights(rows: list[dict], texts: dict) -> Pairs:
    return trainer.pairs_of(rows, texts, np.ones(len(rows), np.float32))


def equal_or_none(rows: list[dict], texts: dict) -> Pairs | None:
    return with_equal_weights(rows, texts) if rows else None


def from_lengths(config, folder, absent: str) -> Material:
    """From `config.data.length_quantiles`, as many pairs as the steps take."""
    groups = preferences.group_names(config.data.groups)
    if not groups:
        raise InputError(f"{absent}, so which groups there are is not known: name them in --config.data.groups")

    def pairs(count: int, seed: int) -> Pairs:
        return lengths.pairs(config.data.length_quantiles, max(count, 1), config.model.max_length, seed)

    trainings = []
    for group in groups:
        options = train_reward.options_from(config, group)
        count = options.batch_size * options.max_steps
        held_out = pairs(int(count * config.train.validation_size), options.seed + 1) if options.eval_every else None
        trainings.append(Training(group, pairs(count, options.seed), options, held_out))
    options = train_reward.global_options_from(config)
    own = pairs(options.batch_size * options.max_steps, options.seed) if config.global_rm.train else None
    training = Training("global", own, options) if own else None
    scored = np.concatenate([batches.lengths_of(training.pairs).ravel() for training in trainings]).tolist()
    source = f"config.data.length_quantiles ({absent})"
    return Material(structure(config, folder, None), trainings, training, scored, source)


def structure(config, folder, tokenizer) -> RewardModel:
    """The model of the config; one from scratch has a full vocabulary where there are no texts to make one of."""
    if folder:
        return module.build(weights.read_json(folder / "config.json"), str(folder))
    if config.model.name_or_path:
        return checkpoint.load_merged(config.model.name_or_path).model
    if tokenizer:
        return module.build(stages.scratch_config(config, tokenizer))
    tokenizer = stages.vocabulary.make_tokenizer([], 0, config.model.max_length)
    return module.build(stages.scratch_config(config, tokenizer) | {"vocab_size": config.model.scratch.vocab_size})


def trainings_of(config, material: Material, mesh: Mesh) -> list[TrainingWork]:
    """The trainings of a run, one for each number of groups that are trained at once."""
    found = []
    if material.global_training:
        found.append(plan_training(GLOBAL, material, [[material.global_training]], mesh, 1))
    limit = config.train.groups_per_program
    at_once = len(material.trainings) if limit == -1 else limit
    chunks = [material.trainings[i : i + at_once] for i in range(0, len(material.trainings), at_once)]
    alone = [name for name in (*config.scpo.methods, *config.controls) if name != scpo.HEADS]
    if scpo.HEADS in config.scpo.methods:
        found.append(plan_training(HEADS, material, [[heads_training(config, material)]], mesh, 1))
        chunks = chunks if alone else []
    for size in dict.fromkeys(map(len, chunks)):
        same = [chunk for chunk in chunks if len(chunk) == size]
        name = f"train {size} group{'s' * (size > 1)}"
        found.append(plan_training(name, material, same, mesh, len(alone)))
    return found


def denser_divisions(config, material: Material, mesh: Mesh, trainings: list[TrainingWork]) -> list[Division]:
    """Other sizes of the axes group and data by which a device computes far fewer tokens, the fewest first.

    A batch that is shared out over many devices leaves few pairs to each, and these fill the shapes of its rows badly.
    """
    shared, now, found = mesh.shape["group"] * mesh.shape["data"], tokens_of_device(trainings, mesh), []
    useful = range(1, min(shared + 1, 2 * len(material.trainings)))  # more leave half of the devices to inert groups
    for group in (size for size in useful if shared % size == 0 and size != mesh.shape["group"]):
        other = sharding.make_mesh(group, shared // group, mesh.shape["model"], list(mesh.devices.flat))
        computed = tokens_of_device(trainings_of(config, material, other), other)
        if computed < FEWER * now:
            found.append(Division(group, shared // group, computed / now))
    return sorted(found, key=lambda division: division.computed)


def tokens_of_device(trainings: list[TrainingWork], mesh: Mesh) -> int:
    """Tokens, padding among them, that a device computes in all trainings; the axis model shares no tokens out."""

    def of_group(work: TrainingWork) -> int:
        return work.times * sum(rows * size * steps for (rows, size), steps in work.shapes.items())

    return sum(work.groups // mesh.shape["group"] * of_group(work) for work in trainings)


def heads_training(config, material: Material) -> Training:
    """The training of one model with a head for each group."""
    own = material.trainings
    held_out = heads.together([training.held_out or with_equal_weights([], {}) for training in own])
    options = heads.options_from(config, len(own))
    return Training(HEADS, heads.together([t.pairs for t in own]), options, held_out if len(held_out.weights) else None)


def with_heads(model: RewardModel, material: Material) -> RewardModel:
    """The model with a head for each group."""
    names = tuple(training.name for training in material.trainings)
    return module.build(model.config, "config", model.lora, heads=names)


def plan_training(name: str, material: Material, chunks: list[list[Training]], mesh: Mesh, times: int) -> TrainingWork:
    """The shapes of the steps of trainings at once, in the shapes that all of these `chunks` share."""
    dealt, width = [train_reward.deal(trainings, mesh) for trainings in chunks], material.model.width
    shapes = train_reward.choose_shapes(chunks, mesh, width)
    platform = train_reward.platform_of(mesh)
    planned = np.concatenate([packing.assign(own.lengths, shapes, width, platform) for own in dealt])
    real, sets = sum(own.lengths.sum() for own in dealt), dealt[0].lengths.shape[1]
    steps = dict(sorted(Counter(map(tuple, planned.tolist())).items(), key=lambda item: -item[1]))
    validates = any(training.held_out for trainings in chunks for training in trainings)
    _, groups, _, pairs = dealt[0].pairs.shape
    fill = float(real / (planned.prod(1).sum() * sets))
    return TrainingWork(name, chunks[0][0].options, groups, pairs, steps, fill, times, validates)


def scorings_of(material: Material) -> list[ScoringWork]:
    """The scoring of all texts by the global RM, and of the largest group's held-out texts by its RM in training."""
    found = [plan_scoring("score", material.scored, material.model)]
    held_out = [batches.lengths_of(t.held_out).ravel().tolist() for t in material.trainings if t.held_out]
    if held_out:
        found.append(plan_scoring("validate", max(held_out, key=len), material.model))
    return found


def plan_scoring(name: str, sizes: list[int], model: RewardModel) -> ScoringWork:
    """The shapes of the batches of texts of these lengths, as `score.score_batches` plans them."""
    planned = packing.plan_batches(sizes, model.width, score.TOKENS_PER_BATCH)
    computed = sum(rows * columns for _, _, _, (rows, columns), _ in planned)
    return ScoringWork(name, dict(Counter((batch.shape, batch.slots) for batch in planned)), sum(sizes) / computed)
