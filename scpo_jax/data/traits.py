"""What a survey says of users, to see communities inside a group: fields of few values, such as age or religion."""

from collections.abc import Collection, Iterable

import pyarrow as pa

from scpo_jax.data import fields, preferences

MOST_VALUES = 20  # a field with more of them is free text, or a name
LONGEST = 80  # characters of a value

Traits = dict[str, dict[str, str]]  # user -> field -> value


def of_records(records: Iterable[tuple[str, dict]], without: Collection[str] = ()) -> Traits:
    """The strings and booleans of (user, record); nested fields get dotted names.

    Fields that differ between the records of one user are no traits of users and are left out.

    Args:
      without: fields that are no traits, such as the texts of a pair.
    """
    found, varying = {}, set(without)
    for user, record in records:
        own = found.setdefault(user, {})
        for name, value in fields.leaves(record):
            spelt = _spelt(value) if name not in varying else ""
            if spelt and own.setdefault(name, spelt) != spelt:
                varying.add(name)
    return {user: {name: own[name] for name in own if name not in varying} for user, own in found.items()}


def _spelt(value) -> str:
    """A value as text; "" for what is no category, or cannot be written."""
    text = str(value).lower() if isinstance(value, bool) else value.strip() if isinstance(value, str) else ""
    return text if len(text) <= LONGEST and text.isprintable() else ""


def categories(traits: Traits, users: Collection[str]) -> Traits:
    """The fields that have from 2 to `MOST_VALUES` values among these users."""
    values = {}
    for user in users:
        for name, value in traits.get(user, {}).items():
            values.setdefault(name, set()).add(value)
    kept = {name for name, own in values.items() if 2 <= len(own) <= MOST_VALUES}
    return {user: {name: v for name, v in traits.get(user, {}).items() if name in kept} for user in users}


def write(traits: Traits, path) -> None:
    """Writes a row for every user and field."""
    rows = [(user, name, value) for user, own in traits.items() for name, value in own.items()]
    columns = zip(*rows, strict=True) if rows else ([], [], [])
    names = ("user_id", "field", "value")
    preferences.write_table(pa.table({n: pa.array(c, pa.string()) for n, c in zip(names, columns, strict=True)}), path)


def read(path) -> Traits:
    """Reads what `write` wrote; {} where there is nothing."""
    if not path.exists():
        return {}
    traits = {}
    for row in preferences.read_table(path).to_pylist():
        traits.setdefault(row["user_id"], {})[row["field"]] = row["value"]
    return traits
