"""What can be wrong with the bytes of a file, and what can stand in its place."""

import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

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

# Damages that every command is tried on.
FEW = ("truncated", "latin-1", "nested, closed", "a key twice", "a FIFO", "a folder", "missing", "unreadable")

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


def writes(content: bytes) -> Callable[[pathlib.Path], object]:
    return lambda path: path.write_bytes(content)


def of_lines(rows: list[dict]) -> Iterator[tuple[str, Callable]]:
    """(name, what spoils a path) of every damage that files of JSON lines can have."""
    lines = json_lines(rows).splitlines()
    for name, damage in LINES.items():
        yield name, lambda path, damage=damage: path.write_bytes(damage(lines))
    yield from PLACES.items()
