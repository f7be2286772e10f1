"""What scores the texts of a service: requests of any size in, scores out, whatever waits together in full batches.

One thread encodes texts while another, which owns the models and the devices, scores round after round: of what waits
the texts with the profile of the oldest request, up to a few batches.
"""

import collections
import concurrent.futures
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from scpo_jax import compilations, logs, score, serve_shapes
from scpo_jax.data import encoding
from scpo_jax.data.encoding import Prompt, Text
from scpo_jax.data.packing import Batch
from scpo_jax.errors import InputError
from scpo_jax.judge import Judge
from scpo_jax.serve_blends import Blends
from scpo_jax.steering import Profile

QUEUED = 16384  # texts that wait at most
STEPS_A_ROUND = 4  # full ones


class Busy(Exception):
    """Too many texts wait."""


class Job(NamedTuple):
    """The texts of a request."""

    texts: list[Text]
    profile: Profile
    future: concurrent.futures.Future  # of scores [N] float32


class Engine:
    """Scores texts by any profile of a judge, from `start` to `close`.

    `ready` is set once all programs are compiled; what is asked before waits. If that fails `error` is set and the
    function called that `start` was given. `counts` are totals since the start.
    """

    def __init__(self, judge: Judge, tokens: int | None = None):
        loaded, self._function = judge.default.loaded, judge.default.function
        width, card = self._function.width, loaded.card
        tokens = tokens or score.most_tokens(width, jax.local_devices()[0].platform)
        self._model, self.tokenizer, self.max_length = loaded.model, loaded.tokenizer, card["max_length"]
        self._form = encoding.form(self._model.reads, card["encoding"])
        self.shapes = serve_shapes.choose(width, self.max_length, tokens)
        self._devices = self._function.mesh.size if self._function.mesh else 1
        self._tokens_a_round = STEPS_A_ROUND * tokens * self._devices
        self.blends, self._on_failure = Blends(judge), lambda: None
        self.ready, self.error = threading.Event(), None
        self.queued, self.counts = 0, dict.fromkeys(("texts", "tokens", "batches"), 0)
        self._waiting, self._changed = collections.deque(), threading.Condition()
        self._closed, self._drained, self._compiled = False, False, 0
        self._encoder = concurrent.futures.ThreadPoolExecutor(1, "encode")
        self._thread = threading.Thread(target=self._run, name="score", daemon=True)

    def start(self, on_failure: Callable[[], None] = lambda: None) -> None:
        """Begins to compile, then to score."""
        self._on_failure = on_failure
        self._thread.start()

    @property
    def compiled_after_warm_up(self) -> int:
        """Programs compiled since it is ready: none, if all goes well."""
        return compilations.count(self._thread.ident) - self._compiled if self.ready.is_set() else 0

    def submit(self, texts: Sequence[tuple[Prompt, str]], profile: Profile) -> concurrent.futures.Future:
        """The scores `[N]` float32 of (prompt, response) texts, to come; the future may hold an InputError.

        Raises Busy. `profile` is one that `steering.parse` made.
        """
        with self._changed:
            if self._closed or self.error:
                raise Busy("the service is stopping")
            if self.queued and self.queued + len(texts) > QUEUED:
                raise Busy(f"{self.queued} texts wait already: try again later")
            self.queued += len(texts)
            future = concurrent.futures.Future()
            future.set_running_or_notify_cancel()  # nobody can cancel it
            self._encoder.submit(self._encode, texts, profile, future)
        return future

    def close(self) -> None:
        """Scores what has been submitted, then ends."""
        with self._changed:
            self._closed = True
        self._encoder.shutdown()
        with self._changed:
            self._drained = True
            self._changed.notify()
        self._thread.join()

    def _encode(self, texts: Sequence[tuple[Prompt, str]], profile: Profile, future) -> None:
        """Runs in the encoder's thread."""
        try:
            encoded = self._encoded(texts) if texts else []
        except Exception as error:
            self._answer(future, len(texts), error)
            return
        with self._changed:
            self._waiting.append(Job(encoded, profile, future))
            self._changed.notify()

    def _encoded(self, texts: Sequence[tuple[Prompt, str]]) -> list[Text]:
        prompts, responses = zip(*texts, strict=True)
        encoded = encoding.encode_for_scoring(self.tokenizer, prompts, responses, self.max_length, self._form)
        score.check_length(encoded, self._model)
        longest = max(len(text.input_ids) for text in encoded)
        if longest > self.shapes.longest:
            raise InputError(f"a text has {longest} tokens; this service takes {self.shapes.longest}")
        return encoded

    def _answer(self, future, texts: int, outcome: np.ndarray | Exception) -> None:
        with self._changed:
            self.queued -= texts
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def _run(self) -> None:
        """The thread that owns the devices."""
        try:
            self._warm_up()
        except Exception as error:
            self.error = error
            self._on_failure()
        while jobs := self._take():
            try:
                outcomes = self._scores(jobs)
            except Exception as error:
                outcomes = [error] * len(jobs)
            for job, outcome in zip(jobs, outcomes, strict=True):
                self._answer(job.future, len(job.texts), outcome)

    def _warm_up(self) -> None:
        """Compiles all programs: of every shape, and those that blend."""
        started, shapes = time.perf_counter(), self.shapes.every()
        if self.blends.groups:
            jax.block_until_ready(self.blends(dict.fromkeys(self.blends.groups[:2], 0.25)))
        params = self.blends({})
        for shape, slots in shapes:
            step = [Batch([], [], [], shape, slots)] * self._devices
            score.finish(step, score.start(self._function, params, [], step))
        self._compiled = compilations.count(threading.get_ident())
        self.ready.set()
        logs.say(f"ready: {len(shapes)} shapes compiled in {time.perf_counter() - started:.1f} s")

    def _take(self) -> list[Job]:
        """The jobs of the next round: the oldest one, and others of its profile; none once all is done."""
        with self._changed:
            while not self._waiting and not self._drained:
                self._changed.wait()
            jobs, others, tokens = [], [], 0
            while self._waiting and tokens < self._tokens_a_round:
                job = self._waiting.popleft()
                if jobs and job.profile != jobs[0].profile:
                    others.append(job)
                    continue
                jobs.append(job)
                tokens += sum(len(text.input_ids) for text in job.texts)
            self._waiting.extendleft(reversed(others))
            return jobs

    def _scores(self, jobs: Sequence[Job]) -> list[np.ndarray | InputError]:
        """The outcome of each job; every distinct text is scored once."""
        if self.error:
            raise self.error
        params = self.blends(jobs[0].profile)
        keys = [_key(text) for job in jobs for text in job.texts]
        distinct = dict(zip(keys, (text for job in jobs for text in job.texts), strict=True))
        texts, places = list(distinct.values()), {key: place for place, key in enumerate(distinct)}
        lengths = [len(text.input_ids) for text in texts]
        steps = serve_shapes.plan_steps(lengths, self.shapes, self._devices)
        scores = np.zeros(len(texts), np.float32)
        for indices, values in score.score_steps(self._function, params, texts, steps):
            scores[indices] = values
        self._count(len(keys), sum(lengths), len(steps) * self._devices)
        scores = scores[[places[key] for key in keys]]
        ends = np.cumsum([len(job.texts) for job in jobs])
        return [_checked(own) for own in np.split(scores, ends[:-1])]

    def _count(self, texts: int, tokens: int, batches: int) -> None:
        for name, n in (("texts", texts), ("tokens", tokens), ("batches", batches)):
            self.counts[name] += n


def _key(text: Text) -> tuple[bytes, bytes]:
    return text.input_ids.tobytes(), text.token_type_ids.tobytes()


def _checked(scores: np.ndarray) -> np.ndarray | InputError:
    bad = np.flatnonzero(~np.isfinite(scores))
    return InputError(f"the model gives no finite score to text {bad[0]} by this profile") if len(bad) else scores
