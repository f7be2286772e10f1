"""What scores the texts of a service: requests of any size in, scores out, whatever waits together in full batches.

One thread encodes texts while another, which owns the models and the devices, scores round after round: of what waits
the texts with the profile of the oldest request, up to a few batches.
"""

import collections
import concurrent.futures
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
ENCODED_AT_ONCE = 64  # texts, about
STEPS_A_ROUND = 4  # full ones


class Busy(Exception):
    """Too many texts wait."""


class Job(NamedTuple):
    """The texts of a request, first as they came, then encoded."""

    texts: Sequence[tuple[Prompt, str]] | list[Text]
    profile: Profile
    future: concurrent.futures.Future  # of scores [N] float32


class Engine:
    """Scores texts by any profile of a judge, from `start` to `close`.

    `ready` is set once all programs are compiled; what is asked before waits. If that fails `error` is set and the
    function called that `start` was given. `counts` are totals since the start.
    """

    def __init__(self, judge: Judge, tokens: int | None = None):
        loaded, self._function = judge.default.loaded, judge.default.function
        self._model, self.tokenizer, card = loaded.model, loaded.tokenizer, loaded.card
        self._how = card["max_length"], encoding.form(loaded.model.reads, card["encoding"])
        width, platform = self._function.width, jax.local_devices()[0].platform
        tokens = tokens or score.most_tokens(width, platform)
        self.shapes = serve_shapes.choose(width, card["max_length"], tokens)
        self._devices = self._function.mesh.size if self._function.mesh else 1
        self._tokens_a_round = STEPS_A_ROUND * tokens * self._devices
        self.blends, self._on_failure = Blends(judge), lambda: None
        self.ready, self.error, self._closed, self._lock = threading.Event(), None, False, threading.Lock()
        self.queued, self.counts, self._compiled = 0, dict.fromkeys(("texts", "tokens", "batches"), 0), 0
        self._asked, self._encoded = queue.SimpleQueue(), queue.SimpleQueue()  # of jobs; None is the last
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._encode, self._score)]

    def start(self, on_failure: Callable[[], None] = lambda: None) -> None:
        """Begins to compile, then to score."""
        self._on_failure = on_failure
        for thread in self._threads:
            thread.start()

    def submit(self, texts: Sequence[tuple[Prompt, str]], profile: Profile) -> concurrent.futures.Future:
        """The scores `[N]` float32 of (prompt, response) texts, to come; the future may hold an InputError.

        Raises Busy. `profile` is one that `steering.parse` made.
        """
        job = Job(texts, profile, concurrent.futures.Future())
        job.future.set_running_or_notify_cancel()  # nobody can cancel it
        with self._lock:
            if self._closed or self.error:
                raise Busy("the service is stopping")
            if self.queued + len(texts) > QUEUED:
                raise Busy(f"{self.queued} texts wait already: try again later")
            self.queued += len(texts)
            self._asked.put(job)
        return job.future

    def close(self) -> None:
        """Scores what has been submitted, then ends."""
        with self._lock:
            self._closed = True
            self._asked.put(None)
        for thread in self._threads:
            thread.join()

    @property
    def compiled_after_warm_up(self) -> int:
        """Programs compiled since it is ready: none, if all goes well."""
        return compilations.count(self._threads[1].ident) - self._compiled if self.ready.is_set() else 0

    def _encode(self) -> None:
        """The first thread."""
        for jobs in _batches(self._asked, ENCODED_AT_ONCE):
            for job, outcome in zip(jobs, self._outcomes(jobs), strict=True):
                if isinstance(outcome, Exception):
                    self._answer(job, outcome)
                else:
                    self._encoded.put(job._replace(texts=outcome))
        self._encoded.put(None)

    def _outcomes(self, jobs: Sequence[Job]) -> list[list[Text] | Exception]:
        """The encoded texts of each job; where there is something wrong with one, all are encoded for themselves."""
        try:
            return _split(self._texts([text for job in jobs for text in job.texts]), jobs)
        except Exception as error:
            return [error] if len(jobs) == 1 else [self._outcomes([job])[0] for job in jobs]

    def _texts(self, texts: Sequence[tuple[Prompt, str]]) -> list[Text]:
        if not texts:
            return []
        encoded = encoding.encode_for_scoring(self.tokenizer, *zip(*texts, strict=True), *self._how)
        score.check_length(encoded, self._model)
        longest = max(len(text.input_ids) for text in encoded)
        if longest > self.shapes.longest:
            raise InputError(f"a text has {longest} tokens; this service takes {self.shapes.longest}")
        return encoded

    def _score(self) -> None:
        """The second thread."""
        try:
            self._warm_up()
        except Exception as error:
            self.error = error
            self._on_failure()
        for jobs in self._rounds():
            try:
                outcomes = self._scores(jobs)
            except Exception as error:
                outcomes = [error] * len(jobs)
            for job, outcome in zip(jobs, outcomes, strict=True):
                self._answer(job, outcome)

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

    def _rounds(self) -> Iterator[list[Job]]:
        """The jobs of each round: the oldest that waits, and others of its profile."""
        waiting, more = collections.deque(), True
        while more or waiting:
            while more and not (waiting and self._encoded.empty()):
                job = self._encoded.get()
                more = job is not None
                waiting.extend([job] if more else [])
            if waiting:
                yield self._next_round(waiting)

    def _next_round(self, waiting: collections.deque) -> list[Job]:
        jobs, others, tokens = [], [], 0
        while waiting and tokens < self._tokens_a_round:
            job = waiting.popleft()
            if jobs and job.profile != jobs[0].profile:
                others.append(job)
            else:
                jobs.append(job)
                tokens += sum(len(text.input_ids) for text in job.texts)
        waiting.extendleft(reversed(others))
        return jobs

    def _scores(self, jobs: Sequence[Job]) -> list[np.ndarray | InputError]:
        """The scores of each job; every distinct text is scored once."""
        if self.error:
            raise self.error
        keys = [_key(text) for job in jobs for text in job.texts]
        distinct = dict(zip(keys, (text for job in jobs for text in job.texts), strict=True))
        texts, places = list(distinct.values()), {key: place for place, key in enumerate(distinct)}
        lengths = [len(text.input_ids) for text in texts]
        steps = serve_shapes.plan_steps(lengths, self.shapes, self._devices)
        scores = np.zeros(len(texts), np.float32)
        for indices, values in score.score_steps(self._function, self.blends(jobs[0].profile), texts, steps):
            scores[indices] = values
        done = {"texts": len(keys), "tokens": sum(lengths), "batches": len(steps) * self._devices}
        self.counts = {name: total + done[name] for name, total in self.counts.items()}
        return [_checked(own) for own in _split(scores[[places[key] for key in keys]], jobs)]

    def _answer(self, job: Job, outcome: np.ndarray | Exception) -> None:
        with self._lock:
            self.queued -= len(job.texts)
        if isinstance(outcome, Exception):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)


def _batches(jobs: queue.SimpleQueue, texts: int) -> Iterator[list[Job]]:
    """The jobs that wait, up to about so many texts at once, until None comes."""
    while (job := jobs.get()) is not None:
        taken, room = [job], texts - len(job.texts)
        while room > 0 and not jobs.empty():
            job = jobs.get()
            if job is None:
                yield taken
                return
            taken.append(job)
            room -= len(job.texts)
        yield taken


def _split(values: Sequence, jobs: Sequence[Job]) -> list[Sequence]:
    """The part of each job in the values of all their texts."""
    ends = np.cumsum([len(job.texts) for job in jobs]).tolist()
    return [values[end - len(job.texts) : end] for end, job in zip(ends, jobs, strict=True)]


def _key(text: Text) -> tuple[bytes, bytes]:
    return text.input_ids.tobytes(), text.token_type_ids.tobytes()


def _checked(scores: np.ndarray) -> np.ndarray | InputError:
    bad = np.flatnonzero(~np.isfinite(scores))
    return InputError(f"the model gives no finite score to text {bad[0]} by this profile") if len(bad) else scores
