"""A corpus of malformed inputs, made by code: each a name, a command that reads it, and what its refusal has to name.

A damage changes the bytes of a small whole file, or what stands in its place; tables cross damages with the files and
the commands that read them. `tests/test_malformed.py` runs all.
"""

import itertools
import json
import os
import pathlib
import shutil
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

from tests.faults import whole
from tests.faults.whole import Whole


class Place(NamedTuple):
    """Where a case works."""

    folder: pathlib.Path  # its own, empty
    whole: Whole


class Case(NamedTuple):
    """A malformed input: makes it, and returns the arguments of the command that has to refuse it."""

    name: str
    make: Callable[[Place], list[str]]
    named: str  # in the refusal


# What can be wrong with the bytes of any file of JSON lines.
LINES = {
    "empty": lambda lines: b"",
    "blank lines": lambda lines: b"\n \n\t\n",
    "truncated": lambda lines: b"\n".join(lines)[:-9],
    "garbage": lambda lines: b"\n".join([*lines, b"oops"]),
    "an array": lambda lines: b"\n".join([b"[1, 2]", *lines]),
    "a number": lambda lines: b"\n".join([b"7", *lines]),
    "a string": lambda lines: b"\n".join([b'"text"', *lines]),
    "null": lambda lines: b"\n".join([*lines, b"null"]),
    "trailing comma": lambda lines: b"\n".join([lines[0][:-1] + b",}", *lines[1:]]),
    "two on a line": lambda lines: b" ".join(lines),
    "single quotes": lambda lines: b"\n".join(lines).replace(b'"', b"'"),
    "unclosed string": lambda lines: b"\n".join([*lines, b'{"prompt": "abc']),
    "a tab in a string": lambda lines: b"\n".join([lines[0][:-1] + b', "note": "a\tb"}', *lines[1:]]),
    "bare NaN": lambda lines: b"\n".join([lines[0][:-1] + b', "note": NaN}', *lines[1:]]),
    "bare Infinity": lambda lines: b"\n".join([lines[0][:-1] + b', "note": [-Infinity]}', *lines[1:]]),
    "latin-1": lambda lines: b"\n".join([*lines, '{"prompt": "é"}'.encode("latin-1")]),
    "UTF-16": lambda lines: b"\n".join(lines).decode().encode("utf-16"),
    "BOM inside": lambda lines: b"\n".join([lines[0], b"\xef\xbb\xbf" + lines[1], *lines[2:]]),
    "NUL bytes": lambda lines: b"\n".join([*lines, bytes(200)]),
    "all zeros": lambda lines: bytes(500),
    "compressed": lambda lines: b"\x1f\x8b\x08\x00" + bytes(range(256)),
    "nested arrays": lambda lines: b"\n".join([lines[0][:-1] + b', "note": ' + b"[" * 100_000, *lines[1:]]),
    "nested objects": lambda lines: b"\n".join([lines[0][:-1] + b', "note": ' + b'{"a":' * 100_000, *lines[1:]]),
    "nested, closed": lambda lines: b"\n".join(
        [lines[0][:-1] + b', "note": ' + b'{"a":' * 600 + b"1" + b"}" * 601, *lines[1:]]
    ),
    "a key twice": lambda lines: b"\n".join([lines[0][:-1] + b", " + lines[0][1:], *lines[1:]]),
    "a huge integer": lambda lines: b"\n".join([lines[0][:-1] + b', "note": ' + b"9" * 5000 + b"}", *lines[1:]]),
    "a line of 10 MB": lambda lines: b"\n".join([*lines, b"x" * 10_000_000]),
    "CSV": lambda lines: b"prompt,chosen\na,b\n",
    "HTML": lambda lines: b"<!doctype html><title>404</title>\n",
}  # fmt: skip


def put_fifo(path: pathlib.Path) -> None:
    os.mkfifo(path)


def put_unreadable(path: pathlib.Path) -> None:
    """A file that cannot be read, by root neither."""
    path.symlink_to("/proc/self/mem")


# What can stand in a file's place.
PLACES = {
    "missing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a FIFO": put_fifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "unreadable": put_unreadable,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a loop of links": lambda path: path.symlink_to(path.name),
}  # fmt: skip

# A row's field with a value that is none of its type.
VALUES = {"null": None, "a number": 5, "a list": [1], "an object": {"a": 1}, "true": True}


def over(folder: pathlib.Path, name: str, content: bytes) -> pathlib.Path:
    """A file with this content."""
    (folder / name).write_bytes(content)
    return folder / name


def json_lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def changed(rows: list[dict], index: int, **fields) -> bytes:
    """JSON lines with the fields of one row changed."""
    return json_lines([row | fields if i == index else row for i, row in enumerate(rows)])


def without(rows: list[dict], index: int, field: str) -> bytes:
    """JSON lines with one row lacking a field."""
    rows = [dict(row) for row in rows]
    del rows[index][field]
    return json_lines(rows)


# --- data of a run -------------------------------------------------------------------------------------------------


def prism(place: Place) -> list[str]:
    return place.whole.run(place.folder, "--config.data.source=prism", f"--config.data.path={place.folder}")


def spoilt_prism(file: str, spoil: Callable[[pathlib.Path], object]) -> Callable[[Place], list[str]]:
    """`scpo run` on PRISM's two files, one of them replaced by what `spoil` puts in its place."""

    def make(place: Place) -> list[str]:
        for name in whole.PRISM:
            if name != file:
                over(place.folder, name, json_lines(whole.PRISM[name]))
        spoil(place.folder / file)
        return prism(place)

    return make


def writes(content: bytes) -> Callable[[pathlib.Path], object]:
    return lambda path: path.write_bytes(content)


def of_lines(rows: list[dict]) -> Iterator[tuple[str, Callable]]:
    """(name, what spoils a path) of every damage that files of JSON lines can have."""
    lines = json_lines(rows).splitlines()
    for name, damage in LINES.items():
        yield name, lambda path, damage=damage: path.write_bytes(damage(lines))
    yield from PLACES.items()


def of_prism() -> Iterator[Case]:
    for file, rows in whole.PRISM.items():
        for name, spoil in of_lines(rows):
            yield Case(f"{file}: {name}", spoilt_prism(file, spoil), file)
    survey, utterances = whole.PRISM.values()
    texts = ("utterance_id", "user_id", "interaction_id", "user_prompt", "model_response")
    for field in (*texts, "score"):
        yield Case(
            f"utterances.jsonl: no {field}",
            spoilt_prism("utterances.jsonl", writes(without(utterances, 2, field))),
            "utterances.jsonl:3",
        )
        for name, value in VALUES.items():
            if (field, name) != ("score", "a number"):
                bad = writes(changed(utterances, 2, **{field: value}))
                yield Case(
                    f"utterances.jsonl: {field} is {name}", spoilt_prism("utterances.jsonl", bad), "utterances.jsonl:3"
                )
    bad_utterances = {
        "score 1e999": b'{"score": 1e999, ' + json_lines([{k: v for k, v in utterances[0].items() if k != "score"}])[1:],
        "score NaN": changed(utterances, 1, score=float("nan")),
        "score as text": changed(utterances, 1, score="70"),
        "a huge score": changed(utterances, 1, score=10**400),
        "an id twice": changed(utterances, 3, utterance_id="u0"),
        "a blank id": changed(utterances, 3, utterance_id="  "),
        "an unknown user": changed(utterances, 3, user_id="nobody"),
        "another prompt": changed(utterances, 1, user_prompt="else"),
        "half a surrogate": changed(utterances, 1, model_response="\ud800"),
    }  # fmt: skip
    for name, content in bad_utterances.items():
        yield Case(f"utterances.jsonl: {name}", spoilt_prism("utterances.jsonl", writes(content)), "utterances.jsonl:")
    bad_survey = {
        "no user_id": without(survey, 0, "user_id"),
        "no location": without(survey, 1, "location"),
        "a user twice": changed(survey, 1, user_id="p0"),
        "location is text": changed(survey, 1, location="Chile"),
        "no country": changed(survey, 1, location={}),
        "country is a number": changed(survey, 1, location={"reside_country": 7}),
        "country is a list": changed(survey, 1, location={"reside_country": ["Chile"]}),
        "country is half a surrogate": changed(survey, 1, location={"reside_country": "\udfff"}),
        "user_id is a number": changed(survey, 1, user_id=3),
    }  # fmt: skip
    for name, content in bad_survey.items():
        yield Case(f"survey.jsonl: {name}", spoilt_prism("survey.jsonl", writes(content)), "survey.jsonl")


# --- tables of pairs and texts, and the commands that read them ------------------------------------------------------


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
FEW = ("truncated", "latin-1", "nested, closed", "a key twice", "a FIFO", "a folder", "missing", "unreadable")


def spoilt_table(command: str, name: str, spoil: Callable[[pathlib.Path], object]) -> Callable[[Place], list[str]]:
    """A command on a file `name` that `spoil` makes."""

    def make(place: Place) -> list[str]:
        spoil(place.folder / name)
        return READERS[command].arguments(place, place.folder / name)

    return make


def of_tables() -> Iterator[Case]:
    for command, reader in READERS.items():
        for name, spoil in of_lines(reader.rows):
            if command in ("run", "score") or name in FEW:
                yield Case(f"{command}: {name}", spoilt_table(command, "rows.jsonl", spoil), "rows.jsonl")
        for field in reader.texts:
            wrong = {name: value for name, value in VALUES.items() if command in ("run", "score") or name == "null"}
            for name, value in wrong.items():
                spoil = writes(changed(reader.rows, 1, **{field: value}))
                yield Case(
                    f"{command}: {field} is {name}", spoilt_table(command, "rows.jsonl", spoil), "rows.jsonl:2"
                )
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


# --- GlobalOpinionQA ------------------------------------------------------------------------------------------------


def opinion(**fields) -> bytes:
    """A csv of two questions, the second with other fields."""
    rows = [whole.OPINION, whole.OPINION | {"question": "And this?"} | fields]
    cells = [",".join('"' + value.replace('"', '""') + '"' for value in row.values()) for row in rows]
    return "\n".join([",".join(whole.OPINION), *cells, ""]).encode()


OPINIONS = {
    "selections is a list": opinion(selections="[0.5, 0.5]"),
    "selections is code": opinion(selections="__import__('os').system('true')"),
    "selections is a call": opinion(selections="dict(a=[1])"),
    "selections is cut off": opinion(selections="{'Chile': [0.5,"),
    "selections is empty": opinion(selections=""),
    "an unhashable country": opinion(selections="{['Chile']: [0.5, 0.5]}"),
    "a country that is a number": opinion(selections="{7: [0.5, 0.5]}"),
    "shares below 0": opinion(selections="{'Chile': [-0.5, 1.5]}"),
    "shares of nan": opinion(selections="{'Chile': [nan, 0.5]}"),
    "shares of 1e999": opinion(selections="{'Chile': [1e999, 0.5]}"),
    "shares that are words": opinion(selections="{'Chile': ['a', 'b']}"),
    "shares that are true": opinion(selections="{'Chile': [True, False]}"),
    "huge shares": opinion(selections="{'Chile': [1" + "0" * 400 + ", 1]}"),
    "nested selections": opinion(selections="(" * 5000 + ")" * 5000),
    "signs": opinion(selections="-" * 100_000 + "1"),
    "options is an object": opinion(options="{'a': 1}"),
    "options is a word": opinion(options="yes"),
    "a huge hexadecimal option": opinion(options="[0x" + "f" * 6000 + ", 'b']"),
    "an option that is no UTF-8": opinion(options="['\\ud800', 'b']"),
    "no question": opinion(question=" "),
    "a country that is no UTF-8": opinion(selections="{'\\ud800': [0.5, 0.5]}"),
    "latin-1": opinion() + '"é","{}","[]"\n'.encode("latin-1"),
    "no column options": b"question,selections\na,b\n",
    "header only": b"question,selections,options\n",
    "ragged": b"question,selections,options\na,b\n",
    "empty": b"",
}


def of_opinions() -> Iterator[Case]:
    def by_run(spoil: Callable) -> Callable[[Place], list[str]]:
        def make(place: Place) -> list[str]:
            spoil(place.folder / "q.csv")
            path = f"--config.data.path={place.folder / 'q.csv'}"
            return place.whole.run(place.folder, "--config.data.source=global_opinions", path)

        return make

    def by_evaluate(spoil: Callable) -> Callable[[Place], list[str]]:
        def make(place: Place) -> list[str]:
            spoil(place.folder / "q.csv")
            own = place.whole.command("evaluate", place.folder, data=place.folder / "q.csv")
            return [*own, "--source=global_opinions"]

        return make

    for name, content in OPINIONS.items():
        yield Case(f"global_opinions: {name}", by_run(writes(content)), "q.csv")
    for name in ("an unhashable country", "huge shares", "a huge hexadecimal option", "empty"):
        yield Case(f"evaluate, global_opinions: {name}", by_evaluate(writes(OPINIONS[name])), "q.csv")
    for name in ("a FIFO", "unreadable", "missing"):
        yield Case(f"evaluate, global_opinions: {name}", by_evaluate(PLACES[name]), "q.csv")


# --- configs --------------------------------------------------------------------------------------------------------

BASED = "from scpo_jax.configs import base\ndef get_config():\n c = base.get_config()\n {}\n return c\n"
CONFIGS = {
    "not Python": b"def get_config(:\n",
    "NUL bytes": b"\0\0",
    "not UTF-8": b"x = '\xff'\n",
    "empty": b"",
    "raises": b"raise RuntimeError('no')\n",
    "exits": b"import sys\nsys.exit(0)\n",
    "exits later": b"def get_config():\n raise SystemExit(3)\n",
    "recurses": b"def get_config():\n return get_config()\n",
    "asserts": b"def get_config():\n assert False\n",
    "is no function": b"get_config = 3\n",
    "wants arguments": b"def get_config(size):\n return size\n",
    "returns None": b"def get_config():\n return None\n",
    "returns an object": b"def get_config():\n return {'seed': 1}\n",
    "parentheses": b"x = " + b"(" * 5000 + b")" * 5000,
    "an unknown key": BASED.format("c.scpo.tao = 1").encode(),
    "a key that is gone": BASED.format("del c.scpo.tau").encode(),
    "a wrong type": BASED.format("c.seed = 'a'").encode(),
    "a type that was unlocked": BASED.format("c.scpo.unlock(); c.scpo.ignore_type; c.scpo.__dict__").encode(),
    "text for a number": BASED.format("with c.ignore_type(): c.scpo.tau = 'high'").encode(),
    "a list for a number": BASED.format("with c.ignore_type(): c.train.batch_size = [8]").encode(),
    "None for a number": BASED.format("with c.ignore_type(): c.train.max_steps = None").encode(),
    "a number for text": BASED.format("with c.ignore_type(): c.data.path = 7").encode(),
    "a number for groups": BASED.format("with c.ignore_type(): c.data.groups = 7").encode(),
    "a float for a whole number": BASED.format("with c.ignore_type(): c.train.max_steps = 2.5").encode(),
    "a number for a section": BASED.format("with c.ignore_type(): c.scpo = 7").encode(),
    "a set in groups": BASED.format("c.data.groups = ({1},)").encode(),
    "an object in groups": BASED.format("c.data.groups = (object(),)").encode(),
    "numbers in groups": BASED.format("c.data.groups = (1, 2)").encode(),
    "bytes in methods": BASED.format("c.scpo.methods = (b'scpo',)").encode(),
    "lists in methods": BASED.format("c.scpo.methods = (['scpo'],)").encode(),
    "numbers in quantiles": BASED.format("c.data.length_quantiles = ('a', 'b')").encode(),
    "a huge seed": BASED.format("c.seed = 10 ** 5000").encode(),
}  # fmt: skip

FLAGS = {
    "an unknown key": "--config.scpo.tao=1",
    "an unknown section": "--config.nothing.at.all=1",
    "a section": "--config.scpo=1",
    "no key": "--config.=1",
    "dots": "--config...=1",
    "no value": "--config.seed",
    "a word for a number": "--config.seed=one",
    "an exponent for a whole number": "--config.train.max_steps=1e3",
    "nan": "--config.scpo.tau=nan",
    "inf": "--config.scpo.beta=inf",
    "a huge float": "--config.train.learning_rate=1e999",
    "a word for a truth": "--config.global_rm.train=perhaps",
    "an unclosed tuple": "--config.data.groups=('a',",
    "code in a tuple": "--config.data.groups=(__import__('os').getcwd(),)",
    "a set in a tuple": "--config.data.groups=({1},)",
    "bytes in a tuple": "--config.data.groups=(b'a',)",
    "a complex number in a tuple": "--config.data.groups=(1j,)",
    "an ellipsis in a tuple": "--config.scpo.methods=(...,)",
    "an unhashable in a tuple": "--config.data.groups=({[]: 1},)",
    "signs in a tuple": "--config.data.groups=(" + "-" * 50_000 + "1,)",
    "numbers for methods": "--config.scpo.methods=(1,)",
    "lists for controls": "--config.controls=(['pooled'],)",
    "numbers for allow": "--config.allow=(1,)",
    "per_group of numbers": "--config.per_group=(1, 2, 3)",
    "per_group with a list": "--config.per_group=(('World', ['tau'], 0.5),)",
    "per_group with a huge number": "--config.per_group=(('World', 'beta', 1" + "0" * 400 + "),)",
    "per_group with tau above 1": "--config.per_group=(('World', 'tau', 5),)",
    "per_group with a truth": "--config.per_group=(('World', 'tau', True),)",
    "per_group with half a surrogate": "--config.per_group=(('\\ud800', 'tau', 0.5),)",
    "quantiles that fall": "--config.data.length_quantiles=(9,3)",
    "unbalanced quotes in groups": '--config.data.groups="Chile',
    "a name too long for a file": "--config.data.path=" + "a" * 5000,
    "a model's name too long for a file": "--config.model.name_or_path=" + "a" * 5000,
    "a workdir's name too long for a file": "--workdir=" + "a" * 5000,
    "an empty stage": "--stages=,",
    "a stage that is none": "--stages=bake",
    "a stage twice of none": "--stages=prepare,prepar",
    "coordinator of nonsense": "--processes=2",
}  # fmt: skip

# What a number of the config must not be: key -> values
NUMBERS = {
    key: values
    for keys, values in (
        (("model.scratch.hidden_size", "model.scratch.num_hidden_layers", "model.scratch.num_attention_heads",
          "model.scratch.intermediate_size", "model.scratch.vocab_size", "model.max_length"), (-1, 0, 10**12)),
        (("train.batch_size", "train.max_steps", "global_rm.batch_size", "global_rm.max_steps", "checkpoint.keep",
          "distributed.heartbeat_seconds", "data.simulated.users_per_group"), (-1, 0, 10**15)),
        (("scpo.tau", "scpo.tau_test", "scpo.trim", "data.test_size", "data.max_dropped", "train.validation_size",
          "data.simulated.extreme_share"), (-0.1, 1.1)),
        (("train.learning_rate", "global_rm.learning_rate", "train.weight_decay", "data.min_share_gap"), (-1.0,)),
        (("model.scratch.dropout", "train.lora.dropout"), (-0.5, 1.5)),
        (("data.max_pairs_per_cell", "data.min_users"), (-1,)),
        (("mesh.data", "mesh.model", "mesh.group"), (0, -2, 10**6)),
        (("train.groups_per_program", "train.max_skipped"), (0, -7)),
        (("seed", "data.split_seed"), (10**400,)),
    )
    for key in keys
}  # fmt: skip


def of_configs() -> Iterator[Case]:
    def with_file(content: bytes) -> Callable[[Place], list[str]]:
        def make(place: Place) -> list[str]:
            path = over(place.folder, "mine.py", content)
            own = ["--config.data.source=jsonl", f"--config.data.path={place.whole.pairs}"]
            return ["run", f"--config={path}", f"--workdir={place.folder / 'work'}", "--stages=prepare", *own]

        return make

    def in_place(spoil: Callable) -> Callable[[Place], list[str]]:
        def make(place: Place) -> list[str]:
            spoil(place.folder / "mine.py")
            return ["run", f"--config={place.folder / 'mine.py'}", f"--workdir={place.folder / 'work'}"]

        return make

    for name, content in CONFIGS.items():
        yield Case(f"config: {name}", with_file(content), "config")
    for name, spoil in PLACES.items():
        yield Case(f"config: {name}", in_place(spoil), "mine.py")
    for name, flag in FLAGS.items():
        key = flag.split("=")[0].lstrip("-")
        yield Case(f"flag: {name}", lambda place, flag=flag: place.whole.run(place.folder, flag), key.rstrip("."))
    for key, values in NUMBERS.items():
        for value in values:
            flag = f"--config.{key}={value}"
            yield Case(f"flag: {flag:.60}", lambda place, flag=flag: place.whole.run(place.folder, flag), f"config.{key}")


# --- model folders --------------------------------------------------------------------------------------------------


def set_config(**values) -> Callable[[pathlib.Path], object]:
    def spoil(folder: pathlib.Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def set_file(name: str, content: bytes) -> Callable[[pathlib.Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def change_file(name: str, change: Callable[[bytes], bytes]) -> Callable[[pathlib.Path], object]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def replace_file(name: str, put: Callable[[pathlib.Path], object]) -> Callable[[pathlib.Path], object]:
    def spoil(folder: pathlib.Path) -> None:
        (folder / name).unlink()
        put(folder / name)

    return spoil


def set_tensors(change: Callable[[dict], dict]) -> Callable[[pathlib.Path], object]:
    def spoil(folder: pathlib.Path) -> None:
        path = folder / "model.safetensors"
        safetensors.numpy.save_file(change(safetensors.numpy.load_file(path)), path)

    return spoil


def sharded(**weight_map) -> Callable[[pathlib.Path], object]:
    """The weights as one shard, of an index with changes."""

    def spoil(folder: pathlib.Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        index = {"weight_map": {"a": "model-1.safetensors"} | weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def link_out(name: str) -> Callable[[pathlib.Path], object]:
    """A file that is a link to the same content outside of the folder."""

    def spoil(folder: pathlib.Path) -> None:
        outside = folder.parent / "outside"
        outside.mkdir()
        shutil.move(folder / name, outside / name)
        (folder / name).symlink_to(outside / name)

    return spoil


def set_tokenizer(**values) -> Callable[[pathlib.Path], object]:
    def spoil(folder: pathlib.Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def header(content: bytes, size: int | None = None) -> bytes:
    """A safetensors file of a header alone."""
    return struct.pack("<Q", len(content) if size is None else size) + content


REMOTE = "open({!r}, 'w').write('code ran')\nclass Evil:\n pass\n"


def remote_code(folder: pathlib.Path) -> None:
    """Code beside the model that its config asks to be run; it would leave a file."""
    (folder / "evil.py").write_text(REMOTE.format(str(folder / "ran")))
    own = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoConfig": "evil.Evil"}}
    set_config(model_type="evil", **own)(folder)
    set_tokenizer(tokenizer_class="Evil", **own)(folder)


def remote_tokenizer(folder: pathlib.Path) -> None:
    """Code that the tokenizer alone asks for."""
    (folder / "evil.py").write_text(REMOTE.format(str(folder / "ran")))
    set_tokenizer(tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})(folder)


def pickled(folder: pathlib.Path) -> None:
    """A torch file that would run code; it would leave a file."""
    import pickle

    class Evil:
        def __reduce__(self):
            return pathlib.Path.touch, (folder / "ran",)

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}))


def poisoned(value: float) -> Callable[[dict], dict]:
    """A tensor with one value that is no number."""

    def change(tensors: dict) -> dict:
        name = next(name for name in sorted(tensors) if name.endswith("query.weight"))
        tensor = tensors[name].copy()
        tensor[1, 2] = value
        return tensors | {name: tensor}

    return change


MODELS = {
    **{f"config.json, {name}": (replace_file("config.json", put), "config.json") for name, put in PLACES.items()},
    **{
        f"config.json, {name}": (set_file("config.json", content), "config.json")
        for name, content in {
            "empty": b"", "an array": b"[]", "truncated": b'{"model_type": "be', "latin-1": b'{"a": "\xe9"}',
            "nested": b'{"a": ' + b"[" * 100_000, "zeros": bytes(99), "UTF-16": '{"a": 1}'.encode("utf-16"),
            "huge integer": b'{"vocab_size": ' + b"9" * 5000 + b"}",
        }.items()
    },
    **{
        f"config.json, {name} {json.dumps(value):.20}": (set_config(**{name: value}), name)
        for name, values in {
            "model_type": ("gpt2", None, ["bert"], {}, 7), "hidden_size": (0, -16, 15, "16", 10**30, None, True, 16.0),
            "num_hidden_layers": (0, -1, 10**9, [1]), "num_attention_heads": (0, -2, 3, 10**9),
            "vocab_size": (0, -5, 10**12, 10), "intermediate_size": (0, -1), "type_vocab_size": (-1, 0),
            "max_position_embeddings": (0, -1, 10**12), "hidden_act": ("nothing", 3), "is_decoder": (True,),
            "position_embedding_type": ("relative_key",), "layer_norm_eps": ("tiny", -1.0, 1e999),
            "id2label": (5, {"0": "a", "1": "b"}, ["a", "b"]), "num_labels": (2, "one", 0),
            "hidden_dropout_prob": (1.5, -1, "0.1"), "initializer_range": (float("nan"),),
        }.items()
        for value in values
    },
    **{
        f"model.safetensors, {name}": (spoil, "model.safetensors")
        for name, spoil in {
            "truncated": change_file("model.safetensors", lambda b: b[:-100]), "empty": set_file("model.safetensors", b""),
            "longer": change_file("model.safetensors", lambda b: b + bytes(7)),
            "huge header": set_file("model.safetensors", header(b"{}", 2**63)),
            "long header": set_file("model.safetensors", header(b"{}", 2**30)),
            "no JSON": set_file("model.safetensors", header(b"oops")), "a list": set_file("model.safetensors", header(b"[]")),
            "nested header": set_file("model.safetensors", header(b'{"a":' * 50_000)),
            "offsets past the end": set_file("model.safetensors", header(
                b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}')),
            "offsets backwards": set_file("model.safetensors", header(
                b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}') + bytes(8)),
            "a shape that overflows": set_file("model.safetensors", header(
                b'{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 8]}}') + bytes(8)),
            "an unknown type": set_file("model.safetensors", header(
                b'{"a": {"dtype": "F3", "shape": [2], "data_offsets": [0, 8]}}') + bytes(8)),
            "a pickle": set_file("model.safetensors", b"\x80\x04\x95" + bytes(64)),
        }.items()
    },
    **{
        f"weights, {name}": (spoil, named)
        for name, (spoil, named) in {
            "a tensor missing": (set_tensors(lambda t: dict(list(t.items())[1:])), "missing"),
            "a tensor too many": (set_tensors(lambda t: t | {"more": np.zeros(2, np.float32)}), "more"),
            "all shapes wrong": (set_tensors(lambda t: {k: v[None] for k, v in t.items()}), "wrong shape"),
            "whole numbers": (set_tensors(lambda t: {k: np.ones(v.shape, np.int8) for k, v in t.items()}), "int8"),
            "truths": (set_tensors(lambda t: {k: v > 0 for k, v in t.items()}), "bool"),
            "complex numbers": (set_tensors(lambda t: {k: v.astype(np.complex64) for k, v in t.items()}), "weights"),
            "NaN": (set_tensors(poisoned(np.nan)), "query.weight"),
            "inf": (set_tensors(poisoned(np.inf)), "query.weight"),
            "-inf": (set_tensors(poisoned(-np.inf)), "query.weight"),
            "past float32": (set_tensors(lambda t: {k: v.astype(np.float64) + 1e300 for k, v in t.items()}), "not finite"),
            "none": (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
            "a FIFO": (replace_file("model.safetensors", put_fifo), "weights"),
            "a pickle": (pickled, "pytorch_model.bin"),
            "a link out": (link_out("model.safetensors"), "model.safetensors"),
        }.items()
    },
    **{
        f"index, {name}": (spoil, "index.json")
        for name, spoil in {
            "absolute": sharded(b="/etc/passwd"), "upwards": sharded(b="../model/model-1.safetensors"),
            "a folder below": sharded(b="sub/model-1.safetensors"), "a backslash": sharded(b="..\\a"),
            "dots": sharded(b=".."), "no name": sharded(b=""), "a number": sharded(b=7), "a list": sharded(b=["a"]),
            "missing shard": sharded(b="model-2.safetensors"), "too long": sharded(b="a" * 5000),
            "a NUL": sharded(b="a\0b"), "half a surrogate": sharded(b="\ud800"),
        }.items()
    },
    **{
        f"{file}, a link out": (link_out(file), file) for file in ("config.json", "tokenizer.json", "tokenizer_config.json")
    },
    **{
        f"tokenizer.json, {name}": (set_file("tokenizer.json", content), "tokenizer")
        for name, content in {
            "empty": b"", "truncated": b'{"version": "1.0", "mod', "an array": b"[]", "zeros": bytes(50),
            "another model": b'{"version": "1.0", "model": {"type": "Nothing"}}', "nested": b"[" * 100_000,
            "a bad regex": b'{"version":"1.0","pre_tokenizer":{"type":"Split","pattern":{"Regex":"("},'
                           b'"behavior":"Isolated","invert":false},"model":{"type":"WordLevel","vocab":{},"unk_token":"a"}}',
            "ids past 32 bits": b'{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":99999999999},"unk_token":"a"}}',
        }.items()
    },
    "tokenizer, none": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
    "tokenizer, a FIFO": (replace_file("tokenizer.json", put_fifo), "tokenizer"),
    "tokenizer_config.json, an array": (set_file("tokenizer_config.json", b"[]"), "tokenizer"),
    "tokenizer_config.json, truncated": (set_file("tokenizer_config.json", b'{"a'), "tokenizer"),
    "tokenizer_config.json, remote code": (remote_tokenizer, "model"),
    "remote code": (remote_code, "evil"),
    **{
        f"scpo.json, {name}": (set_file("scpo.json", content), "scpo.json")
        for name, content in {
            "truncated": b'{"max_len', "an array": b"[]", "nested": b"[" * 100_000,
            "max_length a word": b'{"max_length": "long"}', "max_length 0": b'{"max_length": 0}',
            "another encoding": b'{"encoding": "rot13"}', "a group that is a number": b'{"group": 3}',
        }.items()
    },
}  # fmt: skip


def of_models() -> Iterator[Case]:
    def scored(spoil: Callable) -> Callable[[Place], list[str]]:
        def make(place: Place) -> list[str]:
            model = shutil.copytree(place.whole.model, place.folder / "model")
            spoil(model)
            return place.whole.score(place.folder, model=model)

        return make

    for name, (spoil, named) in MODELS.items():
        yield Case(f"model: {name}", scored(spoil), named)
    for name, (spoil, named) in TEMPLATES.items():
        yield Case(f"causal model: {name}", causal(spoil), named)
    for name, (spoil, named) in ADAPTERS.items():
        yield Case(f"adapters: {name}", adapters(spoil), named)


def template(text: str) -> Callable[[pathlib.Path], object]:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


TEMPLATES = {
    "a template that does not end": (
        template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"), "chat template"
    ),
    "a template that counts far": (template("{% for a in range(10 ** 12) %}{% endfor %}"), "chat template"),
    "a template that reads attributes": (template("{{ messages.__class__.__mro__ }}"), "chat template"),
    "a template that reads globals": (
        template("{{ cycler.__init__.__globals__.os.popen('id').read() }}"), "chat template"
    ),
    "a template that appends": (template("{{ messages.append(1) }}"), "chat template"),
    "a template that includes": (template("{% include '/etc/passwd' %}"), "chat template"),
    "a template that is none": (template("{% for %}"), "chat template"),
    "a template that recurses": (template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), "chat template"),
    "a template that raises": (template("{{ raise_exception('never') }}"), "chat template"),
    "a template that divides by 0": (template("{{ 1 // 0 }}"), "chat template"),
    "a link out": (link_out("chat_template.jinja"), "chat_template.jinja"),
    "rope of words": (set_config(rope_theta="far"), "rope_theta"),
    "rope of a huge number": (set_config(rope_theta=10**400), "rope_theta"),
    "rope below 0": (set_config(rope_theta=-1.0), "rope"),
    "an odd head": (set_config(head_dim=7), "head_dim"),
    "huge heads": (set_config(head_dim=2**40), "head_dim"),
    "no key heads": (set_config(num_key_value_heads=0), "heads"),
    "scaling of nothing": (set_config(rope_scaling={"rope_type": "yarn"}), "rope_type"),
    "scaling without factor": (set_config(rope_scaling={"rope_type": "llama3"}), "factor"),
    "scaling of a list": (set_config(rope_scaling=[1]), "rope_scaling"),
    "scaling of lists": (set_config(rope_scaling={"rope_type": ["llama3"]}), "rope_type"),
    "layers of numbers": (set_config(layer_types=[5]), "layer_types"),
}  # fmt: skip


def causal(spoil: Callable) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        model = shutil.copytree(place.whole.causal, place.folder / "model")
        spoil(model)
        return place.whole.score(place.folder, model=model)

    return make


def set_adapter(**values) -> Callable[[pathlib.Path], object]:
    def spoil(folder: pathlib.Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def poison_adapter(folder: pathlib.Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = np.full_like(tensors[name], np.nan)
    safetensors.numpy.save_file(tensors, path)


ADAPTERS = {
    "config truncated": (set_file("adapter_config.json", b'{"r'), "adapter_config.json"),
    "config an array": (set_file("adapter_config.json", b"[]"), "adapter_config.json"),
    "r a word": (set_adapter(r="8"), "adapter_config.json"),
    "r below 1": (set_adapter(r=0), "adapter_config.json"),
    "r huge": (set_adapter(r=10**30), "adapter_config.json"),
    "r true": (set_adapter(r=True), "adapter_config.json"),
    "lora_alpha huge": (set_adapter(lora_alpha=10**400), "adapter_config.json"),
    "lora_dropout a word": (set_adapter(lora_dropout="often"), "adapter_config.json"),
    "no targets": (set_adapter(target_modules=None), "adapter_config.json"),
    "targets of numbers": (set_adapter(target_modules=[1]), "adapter_config.json"),
    "unknown targets": (set_adapter(target_modules=["nothing"]), "nothing"),
    "another kind": (set_adapter(peft_type="IA3"), "IA3"),
    "no base": (set_adapter(base_model_name_or_path=None), "base"),
    "a base that is a number": (set_adapter(base_model_name_or_path=7), "base"),
    "a base that is not here": (set_adapter(base_model_name_or_path="../../etc"), "base"),
    "a base of a long name": (set_adapter(base_model_name_or_path="a" * 5000), "base"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
    "weights truncated": (
        change_file("adapter_model.safetensors", lambda b: b[:-30]), "adapter_model.safetensors"
    ),
    "weights of NaN": (poison_adapter, "lora_A"),
    "a link out": (link_out("adapter_model.safetensors"), "adapter_model.safetensors"),
}  # fmt: skip


def adapters(spoil: Callable) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        folder = shutil.copytree(place.whole.adapters, place.folder / "adapters")
        spoil(folder)
        return place.whole.score(place.folder, model=folder)

    return make


# --- checkpoints, workdirs, profiles ----------------------------------------------------------------------------------


def metadata(folder: pathlib.Path) -> pathlib.Path:
    """The file that describes the model of a checkpoint."""
    return folder / "model" / "metadata"


def describe(**values) -> Callable[[pathlib.Path], object]:
    """The description of a checkpoint with other values; ... removes one."""

    def spoil(folder: pathlib.Path) -> None:
        description = json.loads(metadata(folder).read_text()) | values
        content = {key: value for key, value in description.items() if value is not ...}
        metadata(folder).write_text(json.dumps(content))

    return spoil


def describe_in(part: str, **values) -> Callable[[pathlib.Path], object]:
    """The same, of a part of the description."""

    def spoil(folder: pathlib.Path) -> None:
        own = json.loads(metadata(folder).read_text())[part] | values
        describe(**{part: {key: value for key, value in own.items() if value is not ...}})(folder)

    return spoil


def link_params(folder: pathlib.Path) -> None:
    shutil.move(folder / "params", folder.parent / "elsewhere")
    (folder / "params").symlink_to(folder.parent / "elsewhere")


def cut_arrays(folder: pathlib.Path) -> None:
    for path in (folder / "params").rglob("*"):
        if path.is_file() and path.stat().st_size > 500:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


CHECKPOINTS = {
    "another schema": describe(schema_version=99),
    "a schema that is a list": describe(schema_version=[1]),
    **{f"no {key}": describe(**{key: ...}) for key in ("schema_version", "config", "card", "tokenizer")},
    **{
        f"{key} is {name}": describe(**{key: value})
        for key in ("config", "card", "tokenizer", "lora", "heads", "language")
        for name, value in {"a number": 7, "a list": [7], "a word": "much"}.items()
        if (key, name) not in (("heads", "a word"), ("language", ""))
    },
    "an empty description": lambda folder: metadata(folder).write_text("{}"),
    "a description that is a list": lambda folder: metadata(folder).write_text("[1]"),
    "a description that is null": lambda folder: metadata(folder).write_text("null"),
    "a description cut off": lambda folder: metadata(folder).write_text('{"schema_version": 1, "co'),
    "a nested description": lambda folder: metadata(folder).write_text("[" * 100_000),
    "no description": lambda folder: metadata(folder).unlink(),
    "zeros as description": lambda folder: metadata(folder).write_bytes(bytes(300)),
    "another hidden size": describe_in("config", hidden_size=32),
    "another depth": describe_in("config", num_hidden_layers=2),
    "another family": describe_in("config", model_type="gpt2"),
    "no size": describe_in("config", hidden_size="wide"),
    "huge depth": describe_in("config", num_hidden_layers=10**9),
    "max_length a word": describe_in("card", max_length="long"),
    "max_length 0": describe_in("card", max_length=0),
    "no max_length": describe_in("card", max_length=...),
    "another encoding": describe_in("card", encoding="rot13"),
    "a base that is a list": describe_in("card", base=[1]),
    "a base without name": describe_in("card", base={"revision": "", "fingerprint": ""}),
    "a base that is not there": describe_in("card", base={"name": "../../gone", "revision": "", "fingerprint": "0"}),
    **{
        f"the tokenizer file {name!r:.20}": describe_in("tokenizer", **{name: "YQ=="})
        for name in ("../evil", "/tmp/evil", "a/b", "..", ".", "", "a\\b", "a\0b", "n" * 5000)
    },
    "a tokenizer that is no base64": describe_in("tokenizer", **{"tokenizer.json": "é"}),
    "a tokenizer of numbers": describe_in("tokenizer", **{"tokenizer.json": 7}),
    "a tokenizer that is none": describe_in("tokenizer", **{"tokenizer.json": "YQ=="}),
    "adapters of nothing": describe(lora={}),
    "adapters of rank 0": describe(lora={"rank": 0, "alpha": 1.0, "targets": ["query"], "dropout": 0.0}),
    "adapters of words": describe(lora={"rank": "a", "alpha": "b", "targets": ["query"], "dropout": 0.0}),
    "adapters with more": describe(lora={"rank": 1, "alpha": 1.0, "targets": ["query"], "dropout": 0.0, "x": 1}),
    "heads that are numbers": describe(heads=[1, 2]),
    "empty arrays": lambda folder: [shutil.rmtree(folder / "params"), (folder / "params").mkdir()],
    "cut arrays": cut_arrays,
    "a link out": link_params,
}


def of_checkpoints() -> Iterator[Case]:
    def scored(spoil: Callable) -> Callable[[Place], list[str]]:
        def make(place: Place) -> list[str]:
            folder = shutil.copytree(place.whole.checkpoint, place.folder / "rm")
            spoil(folder)
            return place.whole.score(place.folder, model=folder)

        return make

    for name, spoil in CHECKPOINTS.items():
        yield Case(f"checkpoint: {name}", scored(spoil), "/rm")


RECORDS = {
    "empty": b"", "an array": b"[]", "null": b"null", "truncated": b'{"schema_version": 2, "st', "latin-1": b'"\xe9"',
    "nested": b"[" * 100_000, "another schema": b'{"schema_version": 99, "stages": {}}',
    "no stages": b'{"schema_version": 2}', "stages a number": b'{"schema_version": 2, "stages": 3}',
    "stages a list": b'{"schema_version": 2, "stages": [1]}',
    "a stage that is a number": b'{"schema_version": 2, "stages": {"prepare": 5}}',
    "a stage that is empty": b'{"schema_version": 2, "stages": {"prepare": {}}}',
    "a stage of words": b'{"schema_version": 2, "stages": {"prepare": {"fingerprint": 3, "config": "x"}}}',
    "a schema that is a list": b'{"schema_version": [2], "stages": {}}',
}  # fmt: skip


def of_records() -> Iterator[Case]:
    """`run.json` of the workdir that a run goes on in, and of one that answers as a model."""

    def by_run(spoil: Callable) -> Callable[[Place], list[str]]:
        def make(place: Place) -> list[str]:
            (place.folder / "work").mkdir()
            spoil(place.folder / "work" / "run.json")
            return place.whole.run(place.folder)

        return make

    def by_score(spoil: Callable) -> Callable[[Place], list[str]]:
        def make(place: Place) -> list[str]:
            (place.folder / "work").mkdir()
            spoil(place.folder / "work" / "run.json")
            return place.whole.score(place.folder, model=place.folder / "work")

        return make

    for name, content in RECORDS.items():
        yield Case(f"run.json: {name}", by_run(writes(content)), "run.json")
        yield Case(f"score, run.json: {name}", by_score(writes(content)), "work")
    for name in ("a folder", "a FIFO", "unreadable"):
        yield Case(f"run.json: {name}", by_run(PLACES[name]), "run.json")


PROFILES = {
    "no strength": "A=1,B=", "no group": "=1", "no sign": "A", "a word": "Chile=much", "nan": "Chile=nan",
    "inf": "Chile=inf", "too large": "Chile=101", "twice": "Chile=1,Chile=2", "unknown": "Chilee=1", "empty": " ",
    "commas": ",,,", "JSON cut off": '{"Chile": 1', "JSON twice": '{"Chile": 1, "Chile": 2}', "JSON NaN": '{"Chile": NaN}',
    "JSON text": '{"Chile": "1"}', "JSON truth": '{"Chile": true}', "JSON null": '{"Chile": null}',
    "JSON list": '{"Chile": [1]}', "JSON huge": '{"Chile": 1' + "0" * 400 + "}", "JSON 1e999": '{"Chile": 1e999}',
    "JSON nested": '{"a":' * 50_000, "half a surrogate": '{"\\ud800": 1}', "a file that is not there": "@gone.json",
    "a folder": "@{folder}", "a FIFO": "@{folder}/fifo", "no UTF-8": "@{folder}/latin", "too long": "@" + "a" * 5000,
    "a file of a list": "@{folder}/list.json", "a device": "@/dev/zero",
}  # fmt: skip


def of_profiles() -> Iterator[Case]:
    def make(place: Place, text: str) -> list[str]:
        put_fifo(place.folder / "fifo")
        over(place.folder, "latin", b"\xe9")
        over(place.folder, "list.json", b"[1]")
        text = text.replace("{folder}", str(place.folder))
        return [*place.whole.score(place.folder, model=place.whole.workdir), f"--profile={text}"]

    for name, text in PROFILES.items():
        yield Case(f"profile: {name}", lambda place, text=text: make(place, text), "--profile")


OTHERS = {
    "score: a model that is not there": (["score", "--model={folder}/gone"], "gone"),
    "score: a model that is a file": (["score", "--model={whole}/pairs.jsonl"], "pairs.jsonl"),
    "score: a model of a long name": (["score", f"--model={'a' * 5000}"], "aaa"),
    "score: max_length 0": (["score", "--model={whole}/model", "--max_length=0"], "--max_length"),
    "score: max_length a word": (["score", "--model={whole}/model", "--max_length=long"], "max_length"),
    "score: unknown columns": (["score", "--model={whole}/model", "--columns=refs"], "--columns"),
    "score: tau nan": (["score", "--model={whole}/model", "--columns=ref", "--tau=nan"], "--tau"),
    "score: beta 0": (["score", "--model={whole}/model", "--columns=ref", "--beta=0"], "--beta"),
    "score: another method": (["score", "--model={whole}/work", "--method=../../x"], "method"),
    "export: no checkpoint": (["export", "--checkpoint={whole}", "--output={folder}/out"], "--checkpoint"),
    "export: a FIFO in the output's place": (
        ["export", "--checkpoint={whole}/checkpoint", "--output={folder}/fifo"], "--output"
    ),
    "propose: budget 0": (
        ["propose", "--model={whole}/model", "--pairs={whole}/pairs.jsonl", "--budget=0", "--output={folder}/o"],
        "--budget",
    ),
    "steer: no workdir": (
        ["steer", "--workdir={whole}", "--pairs={whole}/pairs.jsonl", "--output={folder}/o"], "--workdir"
    ),
    "preflight: a slice that is none": (["preflight", "--config={whole}/config.py", "--topology=v9:2x2"], "v9"),
    "benchmark: seeds of words": (
        ["benchmark", "--config={whole}/config.py", "--workdir={folder}/w", "--seeds=a"], "--seeds"
    ),
    "benchmark: fractions of nan": (
        ["benchmark", "--config={whole}/config.py", "--workdir={folder}/w", "--fractions=nan"], "--fractions"
    ),
    "a file of flags that is not there": (["run", "--flagfile={folder}/gone"], "gone"),
    "a file of flags that is a folder": (["run", "--flagfile={folder}"], "lder"),
}  # fmt: skip


def of_others() -> Iterator[Case]:
    def make(place: Place, arguments: list[str]) -> list[str]:
        put_fifo(place.folder / "fifo")
        own = [part.replace("{folder}", str(place.folder)).replace("{whole}", str(place.whole.folder)) for part in arguments]
        files = [f"--input={place.whole.texts}", f"--output={place.folder / 'out.jsonl'}"]
        return own + files if own[0] == "score" else own

    for name, (arguments, named) in OTHERS.items():
        yield Case(name, lambda place, arguments=arguments: make(place, arguments), named)


CASES = list(
    itertools.chain(
        of_prism(), of_tables(), of_opinions(), of_configs(), of_models(), of_checkpoints(), of_records(),
        of_profiles(), of_others(),
    )
)  # fmt: skip
