"""The one table of preferences: from what an adapter read to rows with a split, plus the names of groups.

Adapters (`prism`, `jsonl`, `global_opinions`) return a `Source`; `build` splits its units, keeps the groups wanted and
returns the table that every later stage reads.
"""

import csv
import dataclasses
import difflib
import hashlib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from scpo_jax import storage
from scpo_jax.data.fields import one_line
from scpo_jax.errors import InputError

TEXT_COLUMNS = (
    "pair_id", "group", "user_id", "interaction_id", "split",
    "prompt", "chosen", "rejected", "chosen_id", "rejected_id",
)  # fmt: skip
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
OPTIONAL_COLUMNS = {  # in the table if some pair has one; scores are the annotator's
    "margin": pa.float64(), "score_chosen": pa.float64(), "score_rejected": pa.float64(), "messages": MESSAGES,
}  # fmt: skip

LISTED = 30  # names of groups that fit an error message


@dataclasses.dataclass
class Source:
    """What an adapter read, before the split.

    A unit is what the split keeps together: a user, or a battery of survey questions.
    """

    pairs: list[dict]  # in file order; the table's columns except split, and messages, margin (both may be None)
    units: list[str]  # in file order, each once, also those without pairs
    unit_groups: dict[str, str]  # unit -> its group; "" if it has none, or several
    groups: list[str]  # every group the data know, also those without a pair
    rows: int  # rows read
    dropped: dict[str, int]  # rows that are unusable, by reason; they count against max_dropped
    counted: dict[str, int]  # what was kept but is worth knowing, by reason
    ties: dict[str, int] = dataclasses.field(default_factory=dict)  # unit -> pairs skipped for equal scores
    traits: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)  # user -> field of the survey -> value


def split_units(units: Sequence[str], test_size: float, seed: int) -> tuple[list[str], list[str]]:
    """Train and test units, in the order of `datasets.train_test_split(test_size=test_size, seed=seed)`."""
    if not 0 <= test_size < 1:
        raise InputError(f"config.data.test_size={test_size}: it is a share, from 0 to below 1")
    n_test = math.ceil(test_size * len(units))
    permutation = np.random.default_rng(seed).permutation(len(units))
    return [units[i] for i in permutation[n_test:]], [units[i] for i in permutation[:n_test]]


def build(
    source: Source, *, groups: tuple[str, ...], min_users: int, test_size: float, split_seed: int, max_dropped: float
) -> tuple[pa.Table, dict, dict]:
    """The table of preferences, the split and the counts.

    The split is over all units, whatever their group, so that it doesn't depend on the groups chosen.

    Args:
        source: what an adapter read.
        groups: groups to keep; () for all that have at least `min_users` units.
        min_users: see `groups`; without effect on named groups.
        test_size: share of the units in the test split.
        split_seed: seed of the split.
        max_dropped: largest share of rows that may be unusable.

    Raises:
        InputError: an unknown group, too many rows dropped, repeated pair ids, or no pair left.
    """
    users = _users_of_groups(source)
    check_groups(groups, users)
    _check_dropped(source, max_dropped)
    train, test = split_units(source.units, test_size, split_seed)
    split_of = dict.fromkeys(train, "train") | dict.fromkeys(test, "test")
    kept = groups or tuple(sorted(group for group in users if len(users[group]) >= min_users))
    pairs = [pair | {"split": split_of[pair["user_id"]]} for pair in source.pairs if pair["group"] in set(kept)]
    if not pairs:
        raise InputError(f"no preference pairs in any of {len(kept)} groups: check config.data.groups and the data")
    _check_pair_ids(pairs)
    split = {"train": train, "test": test, "test_size": test_size, "seed": split_seed}
    return _table(pairs), split, _summary(source, pairs, {group: users[group] for group in kept}, split_of)


def render_messages(messages: Iterable[dict]) -> str:
    """A conversation as the text that encoders read: one "role: content" line a message."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def as_text(prompt: str | list[dict]) -> str:
    """A prompt as the text that encoders read, whether it is text or messages."""
    return prompt if isinstance(prompt, str) else render_messages(prompt)


def prompt_of(row: Mapping) -> str | list[dict]:
    """The prompt of a pair: its messages where it has them, else its text."""
    return row.get("messages") or row["prompt"]


def write_table(table: pa.Table, path) -> None:
    """Writes Parquet to a local path or `gs://`; whoever finds the file finds it whole."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write(path, sink.getvalue().to_pybytes())


def read_table(path) -> pa.Table:
    """Reads what `write_table` wrote."""
    path = epath.Path(path)
    try:
        return pq.read_table(pa.BufferReader(path.read_bytes()))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} is no table ({one_line(error)}); run the stage that writes it") from error


def group_names(value: Sequence[str] | str) -> tuple[str, ...]:
    """Names of groups from the config, each once: a comma splits a string, double quotes keep a comma in a name."""
    strings = [value] if isinstance(value, str) else value
    names = [name.strip() for string in strings for name in _split_at_commas(string)]
    return tuple(dict.fromkeys(name for name in names if name))


def check_groups(wanted: Iterable[str] | Mapping[str, str], existing: Iterable[str]) -> None:
    """Raises InputError if a wanted group doesn't exist, naming those that do, the most similar first.

    A mapping gives the config key that names each group; names without are those of config.data.groups.
    """
    existing = sorted(set(existing))
    keys = wanted if isinstance(wanted, Mapping) else dict.fromkeys(wanted, "config.data.groups")
    unknown = [name for name in keys if name not in existing]
    if not unknown:
        return
    what = keys[unknown[0]]
    unknown = [name for name in unknown if keys[name] == what]
    close = [match for name in unknown for match in difflib.get_close_matches(name, existing)]
    names = list(dict.fromkeys(close + existing))
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    raise InputError(f"{what}: there is no group {_quoted(unknown)}; there are {_quoted(names[:LISTED])}{more}")


def slug(group: str) -> str:
    """A group's name as a folder name: ASCII lower case, digits and single hyphens ("South Africa": south-africa).

    It is never empty. Where the name alone would not do (letters without an ASCII form, too long) a hash of it follows.
    """
    decomposed = [letter for letter in unicodedata.normalize("NFKD", group) if not unicodedata.combining(letter)]
    plain = re.sub("[^a-z0-9]+", "-", "".join(decomposed).encode("ascii", "replace").decode().lower()).strip("-")
    lossy = any(letter.isalnum() and not letter.isascii() for letter in decomposed)
    # A name that ends like one of our hashes gets its own, so that `slugs` cannot collide with it.
    if not plain or lossy or len(plain) > 60 or re.search("-[0-9a-f]{8}$", plain):
        return _hashed(plain, group)
    return plain


def slugs(groups: Iterable[str]) -> dict[str, str]:
    """A slug for each group, no two alike: groups whose slugs would collide get a hash of their name each."""
    plain = {group: slug(group) for group in groups}
    uses = Counter(plain.values())
    return {group: _hashed(name, group) if uses[name] > 1 else name for group, name in plain.items()}


def _split_at_commas(string: str) -> list[str]:
    try:
        return next(csv.reader([string], skipinitialspace=True), [])
    except csv.Error as error:
        raise InputError(f"config.data.groups: {string!r} is no list of names ({one_line(error)})") from error


def _hashed(plain: str, group: str) -> str:
    digest = hashlib.sha256(group.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain[:51].strip('-') or 'group'}-{digest}"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(json.dumps(name, ensure_ascii=False) for name in names)


def _users_of_groups(source: Source) -> dict[str, set[str]]:
    users: dict[str, set[str]] = {group: set() for group in source.groups}
    memberships = [*source.unit_groups.items(), *((pair["user_id"], pair["group"]) for pair in source.pairs)]
    for unit, group in memberships:
        if group:
            users[group].add(unit)
    return users


def _check_dropped(source: Source, max_dropped: float) -> None:
    dropped = sum(source.dropped.values())
    if dropped > max_dropped * source.rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in source.dropped.items() if count)
        raise InputError(
            f"{dropped} of {source.rows} rows are unusable ({reasons}): more than the share of"
            f" config.data.max_dropped={max_dropped}; fix the data or raise it"
        )


def _check_pair_ids(pairs: list[dict]) -> None:
    pair_id, uses = Counter(pair["pair_id"] for pair in pairs).most_common(1)[0]
    if uses > 1:
        raise InputError(f"{uses} pairs have the id {pair_id!r}: make the ids of the data unique")


def _table(pairs: list[dict]) -> pa.Table:
    schema = [(name, pa.string()) for name in TEXT_COLUMNS]
    for name, kind in OPTIONAL_COLUMNS.items():
        if any(pair.get(name) is not None for pair in pairs):
            schema.append((name, kind))
    return pa.Table.from_pylist(pairs, schema=pa.schema(schema))


def _summary(source: Source, pairs: list[dict], users: dict[str, set[str]], split_of: dict[str, str]) -> dict:
    counts = {group: _group_counts(source, pairs, group, users[group], split_of) for group in users}
    return {
        "rows": source.rows,
        "pairs": len(pairs),
        "dropped": dict(source.dropped),
        "counted": dict(source.counted),
        "groups": counts,
        "without_users": [group for group in counts if not users[group]],
        "without_train_pairs": [group for group in counts if not counts[group]["pairs_train"]],
        "without_test_pairs": [group for group in counts if not counts[group]["pairs_test"]],
    }


def _group_counts(source: Source, pairs: list[dict], group: str, users: set[str], split_of: dict[str, str]) -> dict:
    own = [pair for pair in pairs if pair["group"] == group]
    # An interaction counts if a pair comes from it: single responses and mere ties don't.
    counts = {"interactions": len({(pair["user_id"], pair["interaction_id"]) for pair in own})}
    for split in ("train", "test"):
        units = [unit for unit in users if split_of[unit] == split]
        counts[f"users_{split}"] = len(units)
        counts[f"pairs_{split}"] = sum(pair["split"] == split for pair in own)
        counts[f"ties_{split}"] = sum(source.ties.get(unit, 0) for unit in units)
    return counts
