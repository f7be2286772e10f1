"""`scpo evaluate`: a file of pairs in, a file of accuracies out; and what commands share that read and write files."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from scpo_jax import distributed, logs, metrics, row_files, scored_pairs, storage, untrusted
from scpo_jax.data import fields, jsonl, records
from scpo_jax.data.preferences import prompt_of
from scpo_jax.errors import InputError
from scpo_jax.judge import Judge, Scorer
from scpo_jax.workdir import Workdir, check_place, digest


def output_path(name: str) -> pathlib.Path:
    """The file to write; refuses a name that cannot become one. Process 0 alone writes it."""
    if not distributed.is_writer():
        return pathlib.Path(os.devnull)
    storage.check_local(name, "--output")
    path = pathlib.Path(name)
    if path.is_dir():
        raise InputError(f"--output={path} is a folder: name a file")
    untrusted.check_regular(path)
    check_place(path.parent, "--output")
    return path


def read_rows(source: str, flag: str = "--input") -> list[tuple[str, dict]]:
    """(file:line, row) of every row, all of which JSON lines can hold; raises the first error there is."""
    rows = records.read_rows(source)
    for where, row in rows:
        if isinstance(row, InputError):
            raise row
        row_files.checked_json_line(row, where)
    distributed.check_same(f"{flag}={source}", digest([row for _, row in rows]))
    return rows


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
