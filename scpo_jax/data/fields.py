"""Reading one field of a record strictly; every error is one line that says where, what and what to do."""

import contextlib
import math
from collections.abc import Iterable, Iterator

from scpo_jax.errors import InputError

DEEPEST = 64  # levels of lists and objects in a record
KINDS = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}


def text(record: dict, name: str, where: str) -> str:
    """The string in field `name`; it may be empty. Raises InputError if missing, no string or not Unicode."""
    value = required(record, name, where)
    if not isinstance(value, str):
        raise InputError(f"{where}: field '{name}' is {kind(value)}; it has to be a string")
    return valid_text(value, name, where)


def identifier(record: dict, name: str, where: str) -> str:
    """A string that is not blank."""
    value = text(record, name, where)
    if not value.strip():
        raise InputError(f"{where}: field '{name}' is empty; every row needs one")
    return value


def number(record: dict, name: str, where: str) -> int | float:
    """A finite number; True and False are none."""
    value = required(record, name, where)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}: field '{name}' is {kind(value)}; it has to be a number")
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        finite = False
    if not finite:
        raise InputError(f"{where}: field '{name}' is {str(value)[:40]}; it has to be a finite number")
    return value


def required(record: dict, name: str, where: str):
    """The value of a field that has to be there; it may be null."""
    if name not in record:
        raise InputError(f"{where}: missing field '{name}'; this row has {listing(record)}")
    return record[name]


def valid_text(value: str, name: str, where: str) -> str:
    """`value`, if it can be written as UTF-8: JSON can spell half a surrogate pair, which no file can hold."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: field '{name}' is not UTF-8 (character {error.start + 1}); fix it") from error
    return value


def check_unique(value: str, name: str, where: str, seen: dict[str, str]) -> None:
    """Raises InputError if `value` was seen before; `seen` maps each value to its place and is added to."""
    if value in seen:
        raise InputError(f"{where}: duplicate {name} {value!r}, also at {seen[value]}; each may occur once")
    seen[value] = where


def leaves(record: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every scalar of a record with its dotted name ("location.reside_country"); lists are no scalars."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            yield f"{prefix}{name}", value


def group_value(record: dict, name: str, where: str) -> str | None:
    """The group that the field of this dotted name puts a record in; None if it is absent, null or blank."""
    value = dict(leaves(record)).get(name)
    if value is None:
        return None
    spelt = str(value).lower() if isinstance(value, bool) else str(value)
    return valid_text(spelt.strip(), name, where) or None


def known_groups(rows: Iterable[tuple[str, dict | InputError]], name: str) -> list[str]:
    """Every group that some readable row names in the field of this dotted name, sorted."""
    known = set()
    for where, row in rows:
        if not isinstance(row, InputError):
            with contextlib.suppress(InputError):  # a malformed row is reported later, when rows are read in order
                known.add(group_value(row, name, where))
    return sorted(group for group in known if group)


def check_group_field(rows: Iterable[tuple[str, dict | InputError]], name: str, source: str) -> None:
    """Raises InputError, naming the fields to choose from, if no readable row has a field of this dotted name."""
    known = {leaf for _, row in rows if not isinstance(row, InputError) for leaf, _ in leaves(row)}
    if known and name not in known:
        raise InputError(f"{source} has no field {name!r}: config.data.group_by can be {listing(sorted(known))}")


def unique(items: list[tuple[str, object]]) -> dict:
    """The object of these names and values, for `json.loads`, which would keep the last of two equal names."""
    found = dict(items)
    if len(found) < len(items):
        names = [name for name, _ in items]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def check_depth(record: dict, where: str) -> None:
    """Refuses a record nested deeper than `DEEPEST`: what walks through it, or writes it, may be recursive."""
    level = [record]
    for _ in range(DEEPEST):
        inner = (value.values() if isinstance(value, dict) else value for value in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list | tuple)]
        if not level:
            return
    raise InputError(f"{where}: this row is nested more than {DEEPEST} levels deep; flatten it")


def kind(value) -> str:
    """What a value is, in JSON's words."""
    return "null" if value is None else KINDS.get(type(value), type(value).__name__)


def listing(names: Iterable) -> str:
    """Names in one line."""
    return ", ".join(" ".join(str(name).split()) for name in names)


def one_line(error: BaseException) -> str:
    """An exception's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__
