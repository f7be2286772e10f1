"""Anybody's preference pairs: JSON lines, CSV or Parquet with prompt, chosen and rejected.

Also read are trl's formats: messages for the prompt, and conversations that end with the response for chosen and
rejected, with or without a prompt beside them.
"""

import hashlib
import json
from collections import Counter

from scpo_jax.data import fields, traits
from scpo_jax.data.preferences import Source, as_text, check_groups
from scpo_jax.data.records import Row, read_rows
from scpo_jax.errors import InputError

IDS = ("user_id", "interaction_id", "pair_id", "chosen_id", "rejected_id")
NAMES = ("prompt", "chosen", "rejected", "group", *IDS, "margin")


def read(path, *, group_by: str = "", groups: tuple[str, ...] = (), columns: dict[str, str] | None = None) -> Source:
    """Reads one pair a row; rows with an empty response or two equal ones are dropped and counted.

    Optional fields are group, user_id, interaction_id, pair_id, chosen_id, rejected_id (all rows have one or none has)
    and margin. Missing ids are derived from the row. Without user_id the unit of the split is the prompt, so that no
    prompt is in both splits.

    Args:
        path: a `.csv` or `.parquet` file, JSON lines otherwise.
        group_by: field that names a pair's group; "" for `group` (one group "all" if no row has it), "none" for "all".
        groups: names to look for; unknown ones are reported before anything else.
        columns: our name of a field -> the file's, where they differ.

    Raises:
        InputError: an unknown group or field, a missing or empty file, or a malformed row (the first, with its place).
    """
    columns = _columns(columns or {})
    rows = read_rows(path)
    group_field = _group_field(rows, group_by, columns, str(path))
    readable = any(not isinstance(row, InputError) for _, row in rows)
    known = fields.known_groups(rows, group_field) if group_field else ["all"] * readable
    if known:  # else no row is readable: the first one says why
        check_groups(groups, known)
    _check_columns(rows, columns, str(path))
    pairs, users, dropped, counted = _read_pairs(rows, group_field, group_by, columns)
    owned = ((str(row[columns["user_id"]]), row) for _, row in rows if columns["user_id"] in row)
    return Source(
        pairs=pairs,
        units=list(users),
        unit_groups={user: next(iter(of_user)) if len(of_user) == 1 else "" for user, of_user in users.items()},
        groups=known,
        rows=len(rows),
        dropped=dict(dropped),
        counted=dict(counted),
        traits=traits.of_records(owned, without=columns.values()),
    )


def _columns(columns: dict[str, str]) -> dict[str, str]:
    unknown = [name for name in columns if name not in NAMES]
    if unknown:
        raise InputError(f"config.data.columns: unknown {fields.listing(unknown)}; it maps {fields.listing(NAMES)}")
    return {name: columns.get(name) or name for name in NAMES}


def _group_field(rows: list[Row], group_by: str, columns: dict[str, str], source: str) -> str:
    """The dotted name of the field with the group, "" if all pairs are of one."""
    if group_by == "none":
        return ""
    name = group_by or columns["group"]
    if not group_by and name == "group" and not _filled(rows, name):
        return ""
    fields.check_group_field(rows, name, source)
    return name


def _check_columns(rows: list[Row], columns: dict[str, str], source: str) -> None:
    """A misspelt name of a column must not pass for an optional field that the data lack."""
    names = {name for _, row in rows if not isinstance(row, InputError) for name in row}
    for ours, theirs in columns.items():
        if names and ours not in ("group", theirs) and theirs not in names:
            raise InputError(
                f"{source} has no column {theirs!r}, which config.data.columns gives for {ours};"
                f" there are {fields.listing(sorted(names))}"
            )


def _filled(rows: list[Row], *names: str) -> set[str]:
    """Those of the fields that some row has a value for."""
    records = [row for _, row in rows if not isinstance(row, InputError)]
    return {name for name in names if any(record.get(name) not in (None, "") for record in records)}


def _read_pairs(rows: list[Row], group_field: str, group_by: str, columns: dict[str, str]):
    """The pairs, the groups of every user, rows dropped and rows counted by reason."""
    filled = _filled(rows, *(columns[name] for name in IDS))
    given = [name for name in IDS if columns[name] in filled]
    seen: dict[str, str] = {}
    pairs, users, dropped, counted = [], {}, Counter(), Counter()
    for index, (where, row) in enumerate(rows, start=1):
        if isinstance(row, InputError):
            raise row
        group = _group(row, group_field, not group_by, where)
        pair = _pair(row, index, group, given, columns, where)
        fields.check_unique(pair["pair_id"], "pair_id", where, seen)
        users.setdefault(pair["user_id"], set()).add(group)
        counted["rows_without_group"] += not group
        counted["empty_prompts"] += not pair["prompt"].strip()
        reason = _degenerate(pair)
        if reason:
            dropped[reason] += 1
        else:
            pairs.append(pair)
    counted["rows_without_group_field"] = 0 if group_field or group_by else len(rows)
    return pairs, users, dropped, counted


def _group(row: dict, group_field: str, has_to_be_there: bool, where: str) -> str:
    """The group of a row, "" if it is null: the source's own field is part of every row, another one need not be."""
    if not group_field:
        return "all"
    if has_to_be_there and group_field not in dict(fields.leaves(row)):
        raise InputError(f"{where}: missing field '{group_field}' (a string), which other rows have; name its group")
    return fields.group_value(row, group_field, where) or ""


def _degenerate(pair: dict) -> str:
    if not pair["chosen"].strip() or not pair["rejected"].strip():
        return "empty_response"
    return "equal_responses" if pair["chosen"] == pair["rejected"] else ""


def _pair(row: dict, index: int, group: str, given: list[str], columns: dict[str, str], where: str) -> dict:
    prompt, chosen, rejected = pair_texts(row, columns, where)
    rendered = as_text(prompt)
    topic = f"prompt-{_digest(rendered.strip())}"
    derived = {
        "user_id": topic,
        "interaction_id": topic,
        "pair_id": f"row-{index}",
        "chosen_id": f"text-{_digest(rendered, chosen)}",
        "rejected_id": f"text-{_digest(rendered, rejected)}",
    }
    pair = {name: _identifier(row, columns[name], where) if name in given else derived[name] for name in IDS}
    return pair | {
        "group": group,
        "prompt": rendered,
        "messages": None if isinstance(prompt, str) else prompt,
        "chosen": chosen,
        "rejected": rejected,
        "margin": _margin(row, columns["margin"], where),
    }


def pair_texts(row: dict, columns: dict[str, str], where: str) -> tuple[str | list[dict], str, str]:
    """Prompt, chosen and rejected; what chosen and rejected share before their last message belongs to the prompt."""
    before_chosen, chosen = response(row, columns["chosen"], where)
    before_rejected, rejected = response(row, columns["rejected"], where)
    if before_chosen != before_rejected:
        raise InputError(f"{where}: chosen and rejected differ before their last message; they need one prompt")
    if before_chosen and columns["prompt"] not in row:
        return before_chosen, chosen, rejected
    return _joined(prompt(row, columns["prompt"], where), before_chosen), chosen, rejected


def prompt(row: dict, name: str, where: str) -> str | list[dict]:
    """The prompt in field `name`: a text, or messages."""
    if isinstance(fields.required(row, name, where), list):
        return _messages(row[name], name, where)
    return fields.text(row, name, where)


def response(row: dict, name: str, where: str) -> tuple[list[dict], str]:
    """The messages before the response, and its text."""
    if not isinstance(fields.required(row, name, where), list):
        return [], fields.text(row, name, where)
    *before, last = _messages(row[name], name, where)
    if last["role"] != "assistant":
        raise InputError(f"{where}: the last message of '{name}' is by {last['role']!r}; it has to be the assistant's")
    return before, last["content"]


def _messages(value: list, name: str, where: str) -> list[dict]:
    if not value:
        raise InputError(f"{where}: field '{name}' is an empty list; it needs at least one message")
    for message in value:
        if not isinstance(message, dict):
            raise InputError(f"{where}: a message in '{name}' is {fields.kind(message)}; it has to be an object")
    return [{key: fields.text(message, key, where) for key in ("role", "content")} for message in value]


def _joined(prompt: str | list[dict], before: list[dict]) -> str | list[dict]:
    if not before or not prompt:
        return before or prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    # Many data sets give the prompt twice: by itself and as the beginning of both conversations.
    return before if any(before[i : i + len(messages)] == messages for i in range(len(before))) else messages + before


def _identifier(row: dict, name: str, where: str) -> str:
    """A string or a whole number, as text."""
    value = fields.required(row, name, where)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return fields.identifier(row, name, where)


def _margin(row: dict, name: str, where: str) -> float | None:
    """A finite number, spelt out in a CSV file; None where there is none."""
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        return float(fields.number({name: float(value) if isinstance(value, str) else value}, name, where))
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where}: field '{name}' is {value!r:.40}; it has to be a finite number") from error


def _digest(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
