"""Malformed tables of pairs and texts, for all commands that read them."""

import pathlib
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults import whole
from tests.faults.damage import FEW, PLACES, VALUES, Case, Place, changed, json_lines, of_lines, over, without, writes


class Reader(NamedTuple):
    """A command that reads a file of rows."""

    rows: list[dict]
    arguments: Callable[[Place, pathlib.Path], list[str]]
    texts: tuple[str, ...]  # fields that have to be texts, in every row


def score_arguments(place: Place, path: pathlib.Path) -> list[str]:
    return place.whole.score(place.folder, input=path)


READERS = {
    "run": Reader(
        whole.PAIRS,
        lambda place, path: place.whole.run(place.folder, f"--config.data.path={path}"),
        ("prompt", "chosen", "rejected"),
    ),
    "evaluate": Reader(
        whole.PAIRS,
        lambda place, path: place.whole.command("evaluate", place.folder, data=path),
        ("prompt", "chosen", "rejected"),
    ),
    "score": Reader(whole.TEXTS, score_arguments, ("prompt", "response")),
    "propose": Reader(
        whole.UNLABELLED,
        lambda place, path: [*place.whole.command("propose", place.folder, pairs=path), "--budget=2"],
        ("prompt", "response_a", "response_b"),
    ),
    "steer": Reader(
        whole.PAIRS,
        lambda place, path: [
            "steer", f"--workdir={place.whole.workdir}", f"--pairs={path}", f"--output={place.folder / 'profile.json'}"
        ],
        ("chosen",),
    ),
    "prompts": Reader(
        whole.PROMPTS,
        lambda place, path: place.whole.run(place.folder, "--config.policy.steps=1", f"--config.policy.prompts={path}"),
        ("prompt",),
    ),
}  # fmt: skip


def spoilt_table(command: str, name: str, spoil: Callable[[pathlib.Path], object]) -> Callable[[Place], list[str]]:
    """A command on a file `name` that `spoil` makes."""

    def make(place: Place) -> list[str]:
        spoil(place.folder / name)
        return READERS[command].arguments(place, place.folder / name)

    return make


def of_tables() -> Iterator[Case]:
    for command, reader in READERS.items():
        for name, spoil in of_lines(reader.rows):
            if command == "run" or name in FEW:
                yield Case(f"{command}: {name}", spoilt_table(command, "rows.jsonl", spoil), "rows.jsonl")
        for field in reader.texts:
            wrong = {name: value for name, value in VALUES.items() if command == "run" or name == "null"}
            for name, value in wrong.items():
                spoil = writes(changed(reader.rows, 1, **{field: value}))
                yield Case(f"{command}: {field} is {name}", spoilt_table(command, "rows.jsonl", spoil), "rows.jsonl:2")
            spoil = writes(without(reader.rows, 1, field))
            yield Case(f"{command}: no {field}", spoilt_table(command, "rows.jsonl", spoil), "rows.jsonl:2")
            spoil = writes(changed(reader.rows, 1, **{field: "half \ud83d"}))
            yield Case(f"{command}: {field} is no UTF-8", spoilt_table(command, "rows.jsonl", spoil), "rows.jsonl:2")
        messages = {
            "no messages": [],
            "messages of texts": ["a"],
            "a message without content": [{"role": "user"}],
            "a role that is a number": [{"role": 1, "content": "a"}],
            "content that is a list": [{"role": "user", "content": ["a"]}],
            "half a surrogate": [{"role": "user", "content": "\udc00"}],
        }
        for name, value in messages.items():
            if command in ("score", "prompts"):
                spoil = writes(changed(reader.rows, 1, prompt=value))
                yield Case(f"{command}: {name}", spoilt_table(command, "rows.jsonl", spoil), "rows.jsonl:2")
    yield from of_pairs()
    yield from of_extra_fields()
    yield from of_csv()
    yield from of_parquet()
    yield from of_outputs()


def of_pairs() -> Iterator[Case]:
    """What only a run finds in a table of pairs."""
    rows = whole.PAIRS
    spoilt = {
        "an id twice": changed(rows, 5, pair_id="pair 0 0"),
        "a blank id": changed(rows, 5, user_id=" "),
        "an id that is a list": changed(rows, 5, user_id=[]),
        "margin NaN": changed(rows, 2, margin=float("nan")),
        "margin 1e999": json_lines(rows).replace(b'"pair_id": "pair 0 0"', b'"margin": 1e999, "pair_id": "pair 0 0"'),
        "margin huge": changed(rows, 2, margin=10**400),
        "margin a list": changed(rows, 2, margin=[1]),
        "margin true": changed(rows, 2, margin=True),
        "margin a word": changed(rows, 2, margin="much"),
        "no group": without(rows, 2, "group"),
        "conversations that differ": changed(
            rows, 1, chosen=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        ),
        "the user has the last word": changed(rows, 1, chosen=[{"role": "user", "content": "a"}]),
    }
    for name, content in spoilt.items():
        yield Case(f"run: {name}", spoilt_table("run", "rows.jsonl", writes(content)), "rows.jsonl:")


def of_extra_fields() -> Iterator[Case]:
    """Fields that nobody looks at, but that the output has to hold."""
    for command in ("score", "propose"):
        spoil = writes(changed(READERS[command].rows, 1, note="half \ud83d"))
        yield Case(f"{command}: a note that is no UTF-8", spoilt_table(command, "rows.jsonl", spoil), "rows.jsonl:2")


CSV = {
    "ragged": b"prompt,chosen,rejected\na,b,c\na,b\n",
    "too many cells": b"prompt,chosen,rejected\na,b,c,d\n",
    "header only": b"prompt,chosen,rejected\n",
    "no such column": b"prompt,chosen\na,b\n",
    "a column twice": b"prompt,chosen,chosen\na,b,c\n",
    "unclosed quote": b'prompt,chosen,rejected\na,"b,c\n',
    "a quote inside": b'prompt,chosen,rejected\na,"b"x,c\n',
    "latin-1": "prompt,chosen,rejected\na,é,c\n".encode("latin-1"),
    "UTF-16": "prompt,chosen,rejected\na,b,c\n".encode("utf-16"),
    "margin a word": b"prompt,chosen,rejected,margin\na,b,c,much\n",
    "margin nan": b"prompt,chosen,rejected,margin\na,b,c,nan\n",
    "margin inf": b"prompt,chosen,rejected,margin\na,b,c,-inf\n",
    "margin 1e999": b"prompt,chosen,rejected,margin\na,b,c,1e999\n",
    "a cell of 200 KB": b"prompt,chosen,rejected\na," + b"b" * 200_000 + b",c\n",
    "a carriage return": b"prompt,chosen,rejected\na,b\rx,c\n",
    "zeros": bytes(300),
    "empty": b"",
}  # fmt: skip


def of_csv() -> Iterator[Case]:
    for name, content in CSV.items():
        yield Case(f"run: csv, {name}", spoilt_table("run", "rows.csv", writes(content)), "rows.csv")


def table(rows: list[dict] = whole.PAIRS, **columns) -> pa.Table:
    """A table of pairs with columns replaced or added."""
    made = pa.Table.from_pylist([{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows])
    for name, values in columns.items():
        if name in made.column_names:
            made = made.drop_columns(name)
        if values is not None:
            made = made.append_column(name, values)
    return made


def filled(value, kind=None) -> pa.Array:
    return pa.array([value] * len(whole.PAIRS), kind)


def parquet(made: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(made, sink)
    return sink.getvalue().to_pybytes()


def no_utf8() -> pa.Array:
    count = len(whole.PAIRS)
    offsets = pa.py_buffer(np.arange(count + 1, dtype=np.int32).tobytes())
    return pa.Array.from_buffers(pa.string(), count, [None, offsets, pa.py_buffer(b"\xff" * count)])


def parquet_files() -> dict[str, bytes]:
    good = parquet(table())
    twice = table().append_column("chosen", filled("again"))
    return {
        "truncated": good[:-20],
        "cut in half": good[: len(good) // 2],
        "zeros inside": good[:40] + bytes(200) + good[240:],
        "a huge footer": good[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1",
        "another magic": b"PAR2" + good[4:-4] + b"PAR2",
        "text": b"prompt,chosen\n",
        "empty": b"",
        "no rows": parquet(table().slice(0, 0)),
        "no column chosen": parquet(table(chosen=None)),
        "a column twice": parquet(twice),
        "numbers": parquet(table(chosen=filled(3))),
        "binary": parquet(table(chosen=filled(b"a"))),
        "nulls": parquet(table(chosen=filled(None, pa.string()))),
        "a struct": parquet(table(chosen=filled({"role": "user"}))),
        "no UTF-8": parquet(table(chosen=no_utf8())),
        "margin NaN": parquet(table(margin=filled(float("nan")))),
        "margin inf": parquet(table(margin=filled(float("-inf")))),
        "a date past all": parquet(table(day=filled(2**60, pa.timestamp("us")))),
        "a duration past all": parquet(table(day=filled(2**62, pa.duration("s")))),
        "an id of floats": parquet(table(user_id=filled(1.5))),
        "nested": parquet(table(note=nested(120))),
    }  # fmt: skip


def nested(depth: int) -> pa.Array:
    made = filled(1)
    for _ in range(depth):
        made = pa.ListArray.from_arrays(pa.array(range(len(made) + 1), pa.int32()), made)
    return made


def of_parquet() -> Iterator[Case]:
    for name, content in parquet_files().items():
        yield Case(f"run: parquet, {name}", spoilt_table("run", "rows.parquet", writes(content)), "rows.parquet")
    rows, count = whole.UNLABELLED, len(whole.UNLABELLED)
    for name, values in {"bytes": [b"\xff"] * count, "dates": pa.array([1] * count, pa.date32())}.items():
        made = pa.Table.from_pylist(rows).append_column("note", pa.array(values))
        spoil = writes(parquet(made))
        yield Case(f"propose: parquet, {name}", spoilt_table("propose", "rows.parquet", spoil), "rows.parquet")
        made = pa.Table.from_pylist(whole.TEXTS).append_column("note", pa.array(values[: len(whole.TEXTS)]))
        spoil = writes(parquet(made))
        yield Case(f"score: parquet, {name}", spoilt_table("score", "rows.parquet", spoil), "rows.parquet")


def of_outputs() -> Iterator[Case]:
    """What stands where `scpo score` would write."""
    scored = [row | {"score": 0.5} for row in whole.TEXTS]
    outputs = {
        "garbage": b"oops\n",
        "a score that is a word": changed(scored, 0, score="high"),
        "a score that is a list": changed(scored, 0, score=[0.5]),
        "a score that is NaN": changed(scored, 0, score=float("nan")),
        "another score": changed(scored, 0, score=1e6),
        "other rows": changed(scored, 0, prompt="else"),
        "nested": b"[" * 100_000 + b"\n",
        "too many rows": json_lines(scored * 2),
    }

    def on(name: str, spoil: Callable) -> Callable[[Place], list[str]]:
        def make(place: Place) -> list[str]:
            source = over(place.folder, "rows.jsonl", json_lines(whole.TEXTS))
            spoil(place.folder / name)
            return [*place.whole.score(place.folder, input=source)[:-1], f"--output={place.folder / name}"]

        return make

    for name, content in outputs.items():
        yield Case(f"score: the output is {name}", on("out.jsonl", writes(content)), "out.jsonl")
    yield Case("score: the output is no Parquet", on("out.parquet", writes(b"PAR1")), "out.parquet")
    for name in ("a folder", "a FIFO", "a device"):
        yield Case(f"score: the output is {name}", on("out.jsonl", PLACES[name]), "out.jsonl")
