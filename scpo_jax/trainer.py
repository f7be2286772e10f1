"""Trains reward models at once from one set of initial parameters and writes their checkpoints."""

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jax.sharding import Mesh

from scpo_jax import checkpoint, distributed, logs, preemption, score, sharding, tokens, train_reward, train_step
from scpo_jax.checkpoint import Loaded
from scpo_jax.controls import Material
from scpo_jax.data.batches import Pairs
from scpo_jax.data.encoding import Text
from scpo_jax.models.module import RewardModel
from scpo_jax.train_reward import Training
from scpo_jax.training_state import TrainingState
from scpo_jax.workdir import Workdir, digest


def card_of(config, **own) -> dict:
    """What a checkpoint says of itself."""
    settings = config.model
    return {"max_length": settings.max_length, "encoding": settings.encoding, "dtype": settings.dtype, **own}


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
        self._config, self._workdir, self.start = config, workdir, start
        self.adapters = [start.model.lora] if start.model.lora else []
        self._texts = tokens.read(config, workdir, tokens.texts_of(rows), training=True)
        score.check_length(list(self._texts.values()), start.model)
        self._score = score.score_function(start.model, config.model.dtype)
        self._mesh = sharding.make_mesh(config.mesh.group, config.mesh.data, config.mesh.model)
        self._metrics, self._shapes = logs.MetricsLog(workdir.root), None

    def starting_from(self, start: Loaded) -> "Trainer":
        """The same trainer of models of another structure; texts stay encoded."""
        other = copy.copy(self)
        other.start, other._shapes = start, None
        other._score = score.score_function(start.model, self._config.model.dtype)
        return other

    def choose_shapes(self, lots: Sequence[Sequence[Training]]) -> None:
        """Settles on the shapes that the steps of all these trainings are packed in, so that few are compiled."""
        self._shapes = train_reward.choose_shapes(lots, self._mesh, self.start.model.width)

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
            card = {"base": self.start.card["base"]} if self.adapters else {}
            card |= {"steps": trained.step, "score_mean": scores.mean(0).tolist(), "score_std": scores.std(0).tolist()}
            loaded = Loaded(self.start.model, trained.params, self.start.tokenizer, job.card | card)
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
        program = make_program(self._config, self.start.model, self._mesh, trainings[0].options)
        saving = self._config.checkpoint
        state = TrainingState(state_folder, saving.keep, saving.every_steps) if saving.every_steps else None
        last = max(training.options.max_steps for training in trainings)
        what = trainings[0].name if len(jobs) == 1 else f"{jobs[0].card['method']}, {len(jobs)} groups at once"
        held = train_reward.bytes_held(program, self.start.params, trainings)
        logs.say(f"train {what}: parameters, gradients and optimizer take {held / 2**30:.2f} GiB on each device")
        progress = logs.Progress(last, f"train {what}", "step")
        with contextlib.ExitStack() as opened:
            opened.enter_context(preemption.training(state is not None))
            if state:
                opened.callback(state.close)
            named = trainings if distributed.is_writer() else []
            own = [opened.enter_context(self._metrics.open(t.name, saving.every_steps)) for t in named]

            def log(g: int, step: int, metrics: dict) -> None:
                if own:
                    own[g](step, metrics)
                progress.reach(step)

            trained = self.fit(trainings, log, state)
        progress.close()
        return trained

    def fit(
        self,
        trainings: Sequence[Training],
        log: Callable[[int, int, dict], None],
        state: TrainingState | None = None,
    ) -> list[train_reward.Trained]:
        """Trains RMs at once and writes no checkpoint; the arguments are those of `train_reward.train`."""
        return train_reward.train(
            make_program(self._config, self.start.model, self._mesh, trainings[0].options), self.start.params,
            trainings, log=log, score_function=self._score, shapes=self._shapes, state=state,
            max_skipped=self._config.train.max_skipped,
        )  # fmt: skip

    def scores(self, params: dict, texts: Sequence[Text]) -> np.ndarray:
        """Scores `[N]`, with heads `[N, C]`, float32 of texts by an RM with these parameters."""
        return score.score_texts(self._score, params, texts)

    def close(self) -> None:
        """Removes the training states that trainings under other configs have left."""
        if distributed.is_writer() and self._workdir.training.exists():
            self._workdir.training.rmtree()


def pairs_of(rows: list[dict], texts: dict[str, Text], weights: np.ndarray) -> Pairs:
    """Pairs of rows of the preference table; `texts` holds their encoded texts by `score.text_key`."""
    sides = [[texts[score.text_key(row["prompt"], row[side])] for row in rows] for side in ("chosen", "rejected")]
    margins = np.array([row.get("margin") or 0.0 for row in rows], np.float32)
    return Pairs(*sides, weights, margins, [row["pair_id"] for row in rows])


def make_program(config, model: RewardModel, mesh: Mesh, options: train_reward.Options) -> train_step.Program:
    """The training step of these options; trainings that differ in others than those named here share one."""
    return train_step.make_program(
        model, mesh, dtype=options.dtype, weight_decay=options.weight_decay, max_grad_norm=options.max_grad_norm,
        center_rewards_coefficient=options.center_rewards_coefficient, remat=config.train.remat,
        shard_parameters=config.mesh.shard_parameters,
    )  # fmt: skip


def inputs_of(material: Material) -> list:
    """What names the pairs that an RM learns from."""
    training, held_out = ([row["pair_id"] for row in rows] for rows in (material.rows, material.held_out))
    return [training, material.weights.tolist(), held_out]


def fingerprint_of(workdir: Workdir, options: train_reward.Options, inputs: list, trainer: Trainer) -> str:
    """Name of what a training computes."""
    return digest([workdir.fingerprint("score"), dict(vars(options)), inputs, *trainer.adapters])
