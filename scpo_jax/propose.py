"""`scpo propose`: which unlabelled pairs to have annotated next, the most uncertain first, from diverse prompts."""

import collections
import itertools
import json
import math
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scpo_jax import distributed, files, logs, scpo, storage
from scpo_jax.data import fields, jsonl
from scpo_jax.data.encoding import Prompt
from scpo_jax.data.preferences import as_text
from scpo_jax.errors import InputError
from scpo_jax.judge import Judge

SIDES = (("response_a", "response_b"), ("chosen", "rejected"))  # fields of the two responses; which is which is unused
ALIKE = 0.5  # cosine from which two prompts count as one
PER_PROMPT = 2  # pairs of a prompt, and of those like it, at most


class Pair(NamedTuple):
    """An unlabelled pair."""

    row: dict  # as in the file
    prompt: Prompt
    responses: tuple[str, str]
    group: str


def propose_file(judge: Judge, source: str, output: str, budget: int, per_prompt: int = PER_PROMPT) -> None:
    """Writes the pairs of `source` to annotate, in order, each with `rank` and `probability`; raises InputError.

    A row is an object with `prompt`, and `response_a` and `response_b` (or `chosen` and `rejected`, whose order is not
    looked at); `group`, if it names a group of a workdir, chooses that group's RM. `probability` is the model's that
    the first response is preferred. Rows with an empty response or two equal ones, and repeated ones, are left out.
    """
    for flag, value in (("budget", budget), ("per_prompt", per_prompt)):
        if value < 1:
            raise InputError(f"--{flag}={value}: it has to be 1 or more")
    path = files.output_path(output)
    rows = [_pair(row, where) for where, row in files.read_rows(source, "--pairs")]
    pairs = usable(rows)
    if not pairs:
        raise InputError(f"{source} has no pair of two different responses among {len(rows)}: nothing to propose")
    if len(pairs) < len(rows):
        logs.say(f"propose: {len(rows) - len(pairs)} of {len(rows)} pairs have empty, equal or repeated responses")
    prompts, groups = [pair.prompt for pair in pairs], [pair.group for pair in pairs]
    scores = [judge.score(prompts, [pair.responses[side] for pair in pairs], groups) for side in (0, 1)]
    prompts = [as_text(prompt) for prompt in prompts]
    chosen = rank(scores[0] - scores[1], prompts, budget, per_prompt)
    if distributed.is_writer():
        probability = scpo.global_probability(*scores)
        added = [{"rank": rank, "probability": float(probability[i])} for rank, i in enumerate(chosen, start=1)]
        _write(path, [pairs[i].row | own for i, own in zip(chosen, added, strict=True)])
    logs.say(f"propose: {len(chosen)} of {len(pairs)} pairs, of {len({prompts[i] for i in chosen})} prompts, to {path}")


def _pair(row: dict, where: str) -> Pair:
    names = next((names for names in SIDES if any(name in row for name in names)), SIDES[0])
    columns = {name: name for name in jsonl.NAMES} | dict(zip(("chosen", "rejected"), names, strict=True))
    prompt, *responses = jsonl.pair_texts(row, columns, where)
    group = fields.group_value(row, "group", where) or ""
    return Pair(row, prompt, tuple(responses), group)


def usable(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs that an annotator could compare, each once, in their order."""
    once = {}
    for pair in pairs:
        if all(response.strip() for response in pair.responses) and len(set(pair.responses)) == 2:
            once.setdefault((pair.group, as_text(pair.prompt), frozenset(pair.responses)), pair)
    return list(once.values())


def rank(differences: np.ndarray, prompts: Sequence[str], budget: int, per_prompt: int) -> list[int]:
    """Indices of at most `budget` pairs to annotate, the most uncertain first.

    Uncertain is a pair with a small |r_a - r_b| (`differences`, `[B]`): uncertainty sampling (Lewis and Gale 1994). In
    that order a pair is taken if fewer than `per_prompt` of those taken have its prompt or one like it. If that leaves
    some of the budget, the pairs passed over follow, still at most `per_prompt` of the very same prompt. Ties keep the
    order of the input, so equal input gives equal output.
    """
    order = np.argsort(np.abs(differences), kind="stable").tolist()
    vectors, members = word_vectors(prompts), _Taken()
    taken, passed_over = [], []
    for i in order:
        if len(taken) == budget:
            break
        if members.alike(prompts[i], vectors[prompts[i]]) < per_prompt:
            members.add(prompts[i], vectors[prompts[i]])
            taken.append(i)
        else:
            passed_over.append(i)
    for i in passed_over:
        if len(taken) < budget and members.count[prompts[i]] < per_prompt:
            members.count[prompts[i]] += 1
            taken.append(i)
    place = {i: position for position, i in enumerate(order)}
    return sorted(taken, key=place.get)


def word_vectors(prompts: Sequence[str]) -> dict[str, dict[str, float]]:
    """prompt -> word -> weight, of length 1: inverse document frequency log(N / n), 0 for what all prompts share."""
    words = {prompt: set(re.findall(r"\w+", prompt.lower())) for prompt in dict.fromkeys(prompts)}
    uses = collections.Counter(itertools.chain.from_iterable(words.values()))
    weights = {word: math.log(len(words) / count) for word, count in uses.items()}
    vectors = {}
    for prompt, own in words.items():
        length = math.sqrt(sum(weights[word] ** 2 for word in own)) or 1.0
        vectors[prompt] = {word: weights[word] / length for word in sorted(own) if weights[word]}
    return vectors


class _Taken:
    """The prompts of pairs taken, by their words."""

    def __init__(self):
        self.count, self._by_word = collections.Counter(), collections.defaultdict(list)

    def alike(self, prompt: str, vector: dict[str, float]) -> int:
        """Pairs taken with this prompt or one whose cosine with it is at least ALIKE."""
        cosines = collections.defaultdict(float)
        for word, weight in vector.items():
            for other, others_weight in self._by_word[word]:
                cosines[other] += weight * others_weight
        like = {other for other, cosine in cosines.items() if cosine >= ALIKE} | {prompt}
        return sum(self.count[other] for other in like)

    def add(self, prompt: str, vector: dict[str, float]) -> None:
        """Counts a pair."""
        if not self.count[prompt]:
            for word, weight in vector.items():
                self._by_word[word].append((prompt, weight))
        self.count[prompt] += 1


def _write(path: pathlib.Path, rows: Sequence[dict]) -> None:
    """Writes JSON lines whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
