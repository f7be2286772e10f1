"""PRISM (Kirk et al. 2024, hub id HannahRoseKirk/prism-alignment): participants who score responses in live chats.

`survey.jsonl` holds a participant a row, `utterances.jsonl` a response a row; the responses to one prompt share an
interaction. Pairs are the reference's (shared/reference/README.md, "Pairs"), its oddities included: only the current
prompt counts, never the earlier turns, and equal or empty texts stay.
"""

from collections import Counter

from etils import epath

from scpo_jax.data import fields, hub, traits
from scpo_jax.data.preferences import Source, check_groups
from scpo_jax.data.records import Row, read_rows
from scpo_jax.errors import InputError

FILES = ("survey.jsonl", "utterances.jsonl")
COUNTRY = "location.reside_country"
EMPTY = "EMPTY STRING"  # PRISM's marker of a response without text


def fetch(path_or_id: str, revision: str = "") -> epath.Path:
    """The folder with PRISM's two files: a local one as it is, else a snapshot from the hub (see `hub.fetch`)."""
    folder = hub.fetch(path_or_id, revision, FILES)
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: give the folder that holds {' and '.join(FILES)}")
    return folder


def read(folder, *, group_by: str = "", groups: tuple[str, ...] = ()) -> Source:
    """Reads PRISM's survey and utterances; the units of the split are all participants of the survey, in file order.

    Args:
        folder: holds `survey.jsonl` and `utterances.jsonl`.
        group_by: field of the survey that names a participant's group, with dots into objects ("religion.simplified");
            "" for the country of residence, "none" for one group "all".
        groups: names to look for in the survey; unknown ones are reported before anything else.

    Raises:
        InputError: an unknown group or field, a missing or empty file, or a malformed row (the first, with file:line).
    """
    survey = read_rows(epath.Path(folder) / "survey.jsonl")
    known = ["all"]
    if group_by != "none":
        fields.check_group_field(survey, group_by or COUNTRY, str(folder))
        known = fields.known_groups(survey, group_by or COUNTRY)
    if known:  # else no row is readable: the first one says why
        check_groups(groups, known)
    unit_groups = _unit_groups(survey, group_by)
    interactions, rows = _interactions(read_rows(epath.Path(folder) / "utterances.jsonl"), unit_groups)
    source = _source(interactions, unit_groups, known, rows)
    source.traits = traits.of_records(((row["user_id"], row) for _, row in survey), without=("user_id",))
    return source


def _unit_groups(survey: list[Row], group_by: str) -> dict[str, str]:
    """Participant -> group, "" where the field is null."""
    unit_groups: dict[str, str] = {}
    seen: dict[str, str] = {}
    for where, row in survey:
        if isinstance(row, InputError):
            raise row
        user = fields.identifier(row, "user_id", where)
        fields.check_unique(user, "user_id", where, seen)
        if not group_by:
            _check_country(row, where)
        group = "all" if group_by == "none" else fields.group_value(row, group_by or COUNTRY, where)
        unit_groups[user] = group or ""
    return unit_groups


def _check_country(row: dict, where: str) -> None:
    """The country is part of PRISM's schema: it may be null, but not a number, nor left out."""
    parent, name = COUNTRY.split(".")
    location = fields.required(row, parent, where)
    if location is not None and not isinstance(location, dict):
        raise InputError(f"{where}: field '{parent}' is {fields.kind(location)}; it has to be an object")
    if location is not None and fields.required(location, name, where) is not None:
        fields.text(location, name, where)


def _interactions(rows: list[Row], users: dict[str, str]) -> tuple[dict[tuple[str, str], list[dict]], int]:
    """Utterances by (user, interaction), in the order of the file, and their number."""
    interactions: dict[tuple[str, str], list[dict]] = {}
    seen: dict[str, str] = {}
    for where, row in rows:
        if isinstance(row, InputError):
            raise row
        utterance = _utterance(row, where)
        fields.check_unique(utterance["id"], "utterance_id", where, seen)
        if utterance["user"] not in users:
            raise InputError(f"{where}: user {utterance['user']!r} is not in survey.jsonl; add it or drop the row")
        others = interactions.setdefault((utterance["user"], utterance["interaction"]), [])
        if others and others[0]["prompt"] != utterance["prompt"]:
            raise InputError(
                f"{where}: another user_prompt than utterance {others[0]['id']!r} of the same interaction"
                f" {utterance['interaction']!r}; responses are compared under one prompt"
            )
        others.append(utterance)
    return interactions, len(rows)


def _utterance(row: dict, where: str) -> dict:
    return {
        "id": fields.identifier(row, "utterance_id", where),
        "user": fields.identifier(row, "user_id", where),
        "interaction": fields.identifier(row, "interaction_id", where),
        "prompt": fields.text(row, "user_prompt", where),
        "response": fields.text(row, "model_response", where),
        "score": fields.number(row, "score", where),
    }


def _source(interactions: dict, unit_groups: dict[str, str], known: list[str], rows: int) -> Source:
    pairs, ties = [], Counter()
    for (user, _), utterances in interactions.items():
        made = [_pair(a, b, unit_groups[user]) for i, a in enumerate(utterances) for b in utterances[i + 1 :]]
        pairs += [pair for pair in made if pair]
        ties[user] += made.count(None)
    texts = [utterance["response"].strip() for utterances in interactions.values() for utterance in utterances]
    counted = {
        "ties": ties.total(),
        "equal_texts": sum(pair["chosen"] == pair["rejected"] for pair in pairs),
        "empty_texts": sum(text in ("", EMPTY) for text in texts),
        "single_utterance_interactions": sum(len(utterances) == 1 for utterances in interactions.values()),
        "users_without_group": sum(not group for group in unit_groups.values()),
        "users_without_utterances": len(unit_groups.keys() - {user for user, _ in interactions}),
    }
    return Source(pairs, list(unit_groups), unit_groups, known, rows, dropped={}, counted=counted, ties=dict(ties))


def _pair(first: dict, second: dict, group: str) -> dict | None:
    """The one with the higher score is chosen; None for a tie."""
    if first["score"] == second["score"]:
        return None
    chosen, rejected = (first, second) if first["score"] > second["score"] else (second, first)
    return {
        "pair_id": f"{chosen['id']}-{rejected['id']}",
        "group": group,
        "user_id": chosen["user"],
        "interaction_id": chosen["interaction"],
        "prompt": chosen["prompt"],
        "messages": None,
        "chosen": chosen["response"],
        "rejected": rejected["response"],
        "chosen_id": chosen["id"],
        "rejected_id": rejected["id"],
        "margin": None,
        "score_chosen": float(chosen["score"]),
        "score_rejected": float(rejected["score"]),
    }
