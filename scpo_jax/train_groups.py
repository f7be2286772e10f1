"""The stages that train: the global reward model, and from it one per method and group."""

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from scpo_jax import (
    adapters,
    checkpoint,
    controls,
    distributed,
    logs,
    score,
    scpo,
    sharding,
    stages,
    tokens,
    train_reward,
    train_step,
)  # fmt: skip
from scpo_jax.checkpoint import Loaded, TrainingState
from scpo_jax.controls import Material
from scpo_jax.data import preferences
from scpo_jax.data.batches import Pairs
from scpo_jax.data.encoding import Text
from scpo_jax.errors import InputError
from scpo_jax.models import hf, module
from scpo_jax.models.module import RewardModel
from scpo_jax.train_reward import Training
from scpo_jax.workdir import Workdir, digest, slugs_of


def card_of(config, **own) -> dict:
    """What a checkpoint says of itself."""
    settings = config.model
    return {"max_length": settings.max_length, "encoding": settings.encoding, "dtype": settings.dtype, **own}


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


class Job(NamedTuple):
    """A reward model to train and where it goes."""

    folder: epath.Path
    card: dict
    training: Training

    @property
    def finished(self) -> bool:
        """Whether its checkpoint already stands."""
        return checkpoint.load_card(self.folder).get("fingerprint") == self.card["fingerprint"]


class Trainer:
    """Trains reward models from one set of initial parameters."""

    def __init__(self, config, workdir: Workdir, start: Loaded, rows: list[dict]):
        self._config, self._workdir, self._start = config, workdir, start
        self.adapters = [start.model.lora] if start.model.lora else []
        self._texts = tokens.read(config, workdir, tokens.texts_of(rows), training=True)
        score.check_length(list(self._texts.values()), start.model)
        self._score = score.score_function(start.model, config.model.dtype)
        self._mesh = sharding.make_mesh(config.mesh.group, config.mesh.data, config.mesh.model)
        self._programs, self._metrics, self._shapes = {}, logs.MetricsLog(workdir.root), None

    def choose_shapes(self, lots: Sequence[Sequence[Training]]) -> None:
        """Settles on the shapes that the steps of all these trainings are packed in, so that few are compiled."""
        self._shapes = train_reward.choose_shapes(lots, self._mesh, self._start.model.width)

    def pairs(self, rows: list[dict], weights: np.ndarray) -> Pairs:
        """Encoded pairs of rows of the preference table."""
        return pairs_of(rows, self._texts, weights)

    def produce(self, jobs: list[Job]) -> None:
        """Trains RMs at once, or goes on with them, and writes their checkpoints."""
        folder = self._state_folder(jobs)
        under_way, *finished = distributed.on_writer(
            "checkpoints", lambda: [folder.exists(), *(job.finished for job in jobs)]
        )
        if not under_way:  # else all go on, also those whose checkpoints were written already
            jobs = [job for job, done in zip(jobs, finished, strict=True) if not done]
            finished = [False] * len(jobs)
        if not jobs:
            return
        folder = self._state_folder(jobs)
        for job, done, trained in zip(jobs, finished, self._train(jobs, folder), strict=True):
            if done:
                continue
            pairs = job.training.pairs
            sample = [*pairs.chosen, *pairs.rejected][:: max(2 * len(pairs.weights) // score.STANDARDISED_ON, 1)]
            scores = self.scores(trained.params, sample)
            card = {"base": self._start.card["base"]} if self.adapters else {}
            card |= {"steps": trained.step, "score_mean": float(scores.mean()), "score_std": float(scores.std())}
            loaded = Loaded(self._start.model, trained.params, self._start.tokenizer, job.card | card)
            if distributed.is_writer():
                checkpoint.save(job.folder, loaded)
        if distributed.is_writer() and folder.exists():
            folder.rmtree()
        distributed.barrier("checkpoints")

    def _state_folder(self, jobs: list[Job]) -> epath.Path:
        """Where the state of these very trainings goes; those of the same names under another config have their own."""
        return self._workdir.training / f"{jobs[0].card['method']}-{digest([j.card['fingerprint'] for j in jobs])[:12]}"

    def _train(self, jobs: list[Job], state_folder) -> list[train_reward.Trained]:
        trainings = [job.training for job in jobs]
        program = self._program(trainings[0].options)
        saving = self._config.checkpoint
        state = TrainingState(state_folder, saving.keep) if saving.every_steps else None
        last = max(training.options.max_steps for training in trainings)
        what = trainings[0].name if len(jobs) == 1 else f"{jobs[0].card['method']}, {len(jobs)} groups at once"
        held = train_reward.bytes_held(program, self._start.params, trainings)
        logs.say(f"train {what}: parameters, gradients and optimizer take {held / 2**30:.2f} GiB on each device")
        progress = logs.Progress(last, f"train {what}", "step")
        with contextlib.ExitStack() as opened:
            if state:
                opened.callback(state.close)
            named = trainings if distributed.is_writer() else []
            own = [opened.enter_context(self._metrics.open(t.name, saving.every_steps)) for t in named]

            def log(g: int, step: int, metrics: dict) -> None:
                if own:
                    own[g](step, metrics)
                progress.reach(step)

            trained = self.fit(trainings, log, state, saving.every_steps)
        progress.close()
        return trained

    def fit(
        self,
        trainings: Sequence[Training],
        log: Callable[[int, int, dict], None],
        state: TrainingState | None = None,
        save_every: int = 0,
    ) -> list[train_reward.Trained]:
        """Trains RMs at once and writes no checkpoint; the arguments are those of `train_reward.train`."""
        return train_reward.train(
            self._program(trainings[0].options), self._start.params, trainings,
            log=log, score_function=self._score, shapes=self._shapes, state=state, save_every=save_every,
            max_skipped=self._config.train.max_skipped,
        )  # fmt: skip

    def scores(self, params: dict, texts: Sequence[Text]) -> np.ndarray:
        """Scores `[N]` float32 of texts by an RM with these parameters."""
        return score.score_texts(self._score, params, texts)

    def _program(self, options: train_reward.Options) -> train_step.Program:
        key = tuple(program_settings(options).values())
        if key not in self._programs:
            self._programs[key] = make_program(self._config, self._start.model, self._mesh, options)
        return self._programs[key]

    def close(self) -> None:
        """Removes the training states that trainings under other configs have left."""
        if distributed.is_writer() and self._workdir.training.exists():
            self._workdir.training.rmtree()


def pairs_of(rows: list[dict], texts: dict[str, Text], weights: np.ndarray) -> Pairs:
    """Pairs of rows of the preference table; `texts` holds their encoded texts by `score.text_key`."""
    sides = [[texts[score.text_key(row["prompt"], row[side])] for row in rows] for side in ("chosen", "rejected")]
    margins = np.array([row.get("margin") or 0.0 for row in rows], np.float32)
    return Pairs(*sides, weights, margins, [row["pair_id"] for row in rows])


def program_settings(options: train_reward.Options) -> dict:
    """What of the options is compiled into a training step; trainings that differ elsewhere share one."""
    names = ("dtype", "weight_decay", "max_grad_norm", "center_rewards_coefficient")
    return {name: getattr(options, name) for name in names}


def make_program(config, model: RewardModel, mesh: Mesh, options: train_reward.Options) -> train_step.Program:
    """The training step of these options."""
    how = {"remat": config.train.remat, "shard_parameters": config.mesh.shard_parameters}
    return train_step.make_program(model, mesh, **program_settings(options), **how)


def train(config, workdir: Workdir) -> None:
    """Trains one RM per method or control and group from the global RM, on what the selection says.

    The groups of a method are trained at once.
    """
    table = preferences.read_table(workdir.pairs)
    steered = stages.steered_groups(config, table)
    selection = {row["pair_id"]: row for row in preferences.read_table(workdir.selection).to_pylist()}
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
        remove_other_checkpoints(workdir, {(name, slugs[group]) for name in names for group in of_group})
    at_once = len(of_group) if config.train.groups_per_program == -1 else config.train.groups_per_program
    chunks = []
    for name in names:
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
    inputs = [[row["pair_id"] for row in rows], weights.tolist(), [row["pair_id"] for row in held_out]]
    fingerprint = digest([workdir.fingerprint("score"), dict(vars(options)), inputs, *trainer.adapters])
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
