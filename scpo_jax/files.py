"""`scpo score` and `scpo evaluate`: a file of texts or pairs in, a file of scores or accuracies out."""

import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from scpo_jax import distributed, logs, metrics, scored_pairs
from scpo_jax.data import fields, jsonl, records
from scpo_jax.data.encoding import Prompt
from scpo_jax.data.preferences import prompt_of
from scpo_jax.errors import InputError
from scpo_jax.judge import Judge, Scorer
from scpo_jax.workdir import Workdir, check_place, digest

ROWS_PER_CHUNK = 2048  # rows scored and written at once
CHECKED_ROWS = 16  # rows of an unfinished output that are scored again
SCORES = ("score", "score_chosen", "score_rejected")


def score_file(judge: Judge, source: str, output: str) -> None:
    """Writes every row of `source` with its score(s), in order; goes on where an interrupted output of it ends.

    A row is an object with `prompt` and `response`, or with `prompt`, `chosen` and `rejected`; `group`, if it names a
    group of a workdir, chooses that group's RM, unless there is a profile. Raises InputError before anything is written
    if a row is malformed.
    """
    path = output_path(output)
    rows = read_rows(source)
    texts = [_texts(row, where) for where, row in rows]
    done = distributed.on_writer("the output", lambda: _finished_rows(path, rows))
    if done:
        _check_same_model(judge, path, texts[:done], [row for _, row in rows[:done]])
    if done == len(rows):
        logs.say(f"{path} already has the scores of all {done} rows of {source}, nothing to do")
        return
    progress = logs.Progress(len(rows), "score", "row")
    progress.add(done)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for start in range(done, len(rows), ROWS_PER_CHUNK):
            chunk = range(start, min(start + ROWS_PER_CHUNK, len(rows)))
            scores = _score_rows(judge, [texts[i] for i in chunk], [rows[i][1] for i in chunk])
            for i, own in zip(chunk, scores, strict=True):
                file.write(json.dumps(rows[i][1] | own, ensure_ascii=False) + "\n")
            file.flush()
            progress.add(len(chunk))
    progress.close()


def output_path(name: str) -> pathlib.Path:
    """The file to write; refuses a name that cannot become one. Process 0 alone writes it."""
    if not distributed.is_writer():
        return pathlib.Path(os.devnull)
    path = pathlib.Path(name)
    if path.is_dir():
        raise InputError(f"--output={path} is a folder: name a file")
    check_place(path.parent, "--output")
    return path


def read_rows(source: str, flag: str = "--input") -> list[tuple[str, dict]]:
    """(file:line, row) of every row; raises the first error there is."""
    rows = records.read_rows(source)
    for _, row in rows:
        if isinstance(row, InputError):
            raise row
    distributed.check_same(f"{flag}={source}", digest([row for _, row in rows]))
    return rows


def _texts(row: dict, where: str) -> list[tuple[Prompt, str]]:
    """(prompt, response) of the one response, or of chosen and rejected."""
    if "chosen" in row or "rejected" in row:
        prompt, *responses = jsonl.pair_texts(row, {name: name for name in jsonl.NAMES}, where)
    else:
        prompt, responses = jsonl.prompt(row, "prompt", where), [fields.text(row, "response", where)]
    return [(prompt, response) for response in responses]


def _score_rows(judge: Judge, texts: Sequence[list[tuple[Prompt, str]]], rows: Sequence[dict]) -> list[dict]:
    """The score fields of rows."""
    flat = [(*text, str(row.get("group") or "")) for own, row in zip(texts, rows, strict=True) for text in own]
    scores = iter(judge.score(*zip(*flat, strict=True)).tolist())
    names = [SCORES[:1] if len(own) == 1 else SCORES[1:] for own in texts]
    return [{name: next(scores) for name in own} for own in names]


def _finished_rows(path: pathlib.Path, rows: Sequence[tuple[str, dict]]) -> int:
    """Number of rows already in an output, of which a line cut off by a crash is removed; refuses another input's."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    lines = content.split(b"\n")
    tail = lines.pop()
    for number, line in enumerate(lines, start=1):
        written = _parsed(line)
        same = number <= len(rows) and _without_scores(written) == _without_scores(rows[number - 1][1])
        if not same or not any(name in written for name in SCORES):
            raise InputError(f"{path}:{number} is not of this input: name another --output, or remove the file")
    if tail:
        path.write_bytes(content[: len(content) - len(tail)])
    return len(lines)


def _parsed(line: bytes) -> dict:
    """The object in a line; {} if there is none."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _without_scores(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in SCORES}


def _check_same_model(judge: Judge, path: pathlib.Path, texts: Sequence[list], rows: Sequence[dict]) -> None:
    """Refuses to go on with another model's scores: some finished rows have to score as they did."""
    every = slice(None, None, max(len(rows) // CHECKED_ROWS, 1))
    written = distributed.on_writer(
        "finished rows", lambda: [json.loads(line) for line in path.read_bytes().split(b"\n")[: len(rows)][every]]
    )
    for old, new in zip(written, _score_rows(judge, texts[every], rows[every]), strict=True):
        for name, value in new.items():
            if name not in old or abs(old[name] - value) > judge.tolerance * max(1, abs(value)):
                raise InputError(f"{path} holds scores of another model: name another --output, or remove the file")


def evaluate_file(judge: Judge, data: str, output: str) -> None:
    """Writes accuracy records of a model on preference pairs, by group.

    A workdir answers with the RM of each pair's group, or with the blend of a profile, and beside it with its global
    RM, which tells edited from agreed pairs. A single model knows no other: its edited pairs are those that it gets
    wrong itself.
    """
    path = output_path(output)
    source = jsonl.read(data)
    if not source.pairs:
        raise InputError(f"{data} has no usable pair ({fields.listing(source.dropped)}): nothing to evaluate on")
    distributed.check_same(f"--data={data}", digest(list(source.pairs)))
    groups: dict[str, scored_pairs.GroupPairs] = {}
    reference = judge.global_scorer()
    for group in dict.fromkeys(pair["group"] for pair in source.pairs):
        rows = [pair for pair in source.pairs if pair["group"] == group]
        groups[group] = scored_pairs.test_pairs(rows, name=group)
        groups[group].margins[judge.method] = margins(judge.scorer(group), rows)
        groups[group].margins["global"] = margins(reference or judge.default, rows)
    methods = ("global", judge.method) if reference else (judge.method,)
    report = {
        "methods": {method: scored_pairs.records(groups, method if reference else "global") for method in methods},
        "groups": list(groups),
        "too_few_users": [group for group, pairs in groups.items() if pairs.users < metrics.FEW_USERS],
        "rows": source.rows,
        "dropped": source.dropped,
        **({} if judge.profile is None else {"profile": judge.profile}),
    }
    if distributed.is_writer():
        Workdir.write_json(path, report)
    for method, records_of in report["methods"].items():
        for group, record in records_of.items():
            logs.say(f"{method} {group}: accuracy {record['all']['accuracy']:.4f} on {record['all']['n']} pairs")


def margins(scorer: Scorer, rows: Sequence[dict]) -> np.ndarray:
    """R+ - R- of pairs by one RM, `[B]`."""
    prompts = [prompt_of(row) for row in rows]
    chosen, rejected = (scorer(prompts, [row[side] for row in rows]) for side in ("chosen", "rejected"))
    return chosen - rejected
