"""What reward models say of a policy's responses: texts of any tokenizer, scored in batches of one compiled shape."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from scpo_jax import distributed, score
from scpo_jax.data import encoding, packing
from scpo_jax.data.encoding import Prompt, Text
from scpo_jax.data.packing import Batch
from scpo_jax.errors import InputError
from scpo_jax.judge import Judge, Scorer
from scpo_jax.ppo import Scale

TOKENS_PER_TEXT = 16  # so many texts at most share a row, on average: a score is read for each
HEADROOM = 1.2  # of a batch over the mean of the reference's samples


class OneShape:
    """A reward model that has its parameters on the devices and scores texts in rows of one shape.

    Args:
      texts: encoded, like those to come; the shape is chosen by their mean length for `batch` texts at once.
    """

    def __init__(self, scorer: Scorer, texts: Sequence[Text], batch: int):
        function, card = scorer.function, scorer.loaded.card
        self._function, self._params = function, function.place(scorer.loaded.params)
        self._devices = function.mesh.size if function.mesh else 1
        self.length = max(packing.power_of_two(card["max_length"]), packing.shortest_row(function.width))
        most = score.most_tokens(function.width, jax.local_devices()[0].platform) // self.length
        tokens = HEADROOM * batch * np.mean([len(text.input_ids) for text in texts])
        rows = math.ceil(tokens / self.length / self._devices / distributed.count())
        self._rows, self._per_row = max(min(rows, most), 1), max(self.length // TOKENS_PER_TEXT, 1)

    def __call__(self, texts: Sequence[Text]) -> np.ndarray:
        """Scores `[n]` float32; every process calls this and gets the same."""
        scores, steps = np.zeros(len(texts), np.float32), self._plan([len(text.input_ids) for text in texts])
        own = steps[distributed.index() :: distributed.count()]
        for indices, values in score.score_steps(self._function, self._params, texts, own):
            scores[indices] = values
        return distributed.summed(scores)

    def _plan(self, lengths: Sequence[int]) -> list[list[Batch]]:
        """Batches that hold all texts, one for each device a step."""
        filled = packing.fill_rows(lengths, self.length, lambda _: self._per_row)
        rows, batches = [texts for _, texts in filled], []
        for first in range(0, len(rows), self._rows):
            part = rows[first : first + self._rows]
            columns = [int(c) for row in part for c in np.cumsum([0, *(lengths[i] for i in row[:-1])])]
            numbers = [number for number, row in enumerate(part) for _ in row]
            indices, shape = [i for row in part for i in row], (self._rows, self.length)
            batches.append(Batch(indices, numbers, columns, shape, self._rows * self._per_row))
        return score.in_steps(batches, self._devices)


class Rewards:
    """The reward models of groups, or the one blend that judges for all of them.

    Each has to be prepared once, with responses of the reference policy: by these its scores are normalised.
    """

    def __init__(self, judge: Judge, groups: Sequence[str]):
        self._owner = {group: group if group in judge.groups else "" for group in groups}
        self._scorers = {owner: judge.scorer(owner) for owner in self._owner.values()}
        self._shaped: dict[str, OneShape] = {}
        self.scales: dict[str, Scale] = {}  # of each group

    def prepare(self, group: str, prompts: Sequence[Prompt], responses: Sequence[str], batch: int) -> None:
        """Takes the scale of a group from responses of the reference; about `batch` texts will be scored at once."""
        owner = self._owner[group]
        if owner not in self._shaped:
            texts = self._encode(owner, prompts, responses)
            self._shaped[owner] = OneShape(self._scorers[owner], texts, batch)
        self.scales[group] = Scale.of(self.scores(prompts, responses, [group] * len(prompts)))

    def scores(self, prompts: Sequence[Prompt], responses: Sequence[str], groups: Sequence[str]) -> np.ndarray:
        """Scores `[n]` float32 of responses, each by the reward model of its group; all are finite."""
        scores, owners = np.zeros(len(prompts), np.float32), np.array([self._owner[group] for group in groups])
        for owner in dict.fromkeys(owners.tolist()):
            places = np.flatnonzero(owners == owner)
            texts = self._encode(owner, [prompts[i] for i in places], [responses[i] for i in places])
            scores[places] = self._shaped[owner](texts)
        if not np.isfinite(scores).all():
            bad = responses[int(np.flatnonzero(~np.isfinite(scores))[0])]
            raise InputError(f"the reward model gives no finite score to the response {bad[:60]!r}: check it")
        return scores

    def normalised(self, scores: np.ndarray, groups: Sequence[str]) -> np.ndarray:
        """Scores `[n]` on the scale of each one's group."""
        return np.array([self.scales[g](s) for g, s in zip(groups, scores, strict=True)], np.float32)

    def _encode(self, owner: str, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Text]:
        loaded = self._scorers[owner].loaded
        how = loaded.card["max_length"], encoding.form(loaded.model.reads, loaded.card["encoding"])
        texts = encoding.encode_for_scoring(loaded.tokenizer, prompts, responses, *how)
        score.check_length(texts, loaded.model)
        if any(len(text.input_ids) > how[0] for text in texts):
            raise InputError(
                "config.model.encoding=reference does not cut texts: a policy needs an RM with encoding pair"
            )
        return texts
