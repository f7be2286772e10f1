"""What requests say: JSON bodies to texts and profiles, strictly; what is wrong is refused in one line."""

import json
from collections.abc import Iterable
from typing import NamedTuple

from scpo_jax import steering
from scpo_jax.data import fields, jsonl
from scpo_jax.data.encoding import Prompt
from scpo_jax.errors import InputError
from scpo_jax.steering import Profile

BODY_BYTES = 8 * 2**20
TEXTS = 1024  # of a request
CHARACTERS = 100_000  # of a text, prompt and response
THE_REQUEST = "the request"
KEYS = ("texts", "prompt", "response", "messages", "profile")


class Refused(Exception):
    """A request that gets an error: its status and a reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


class ScoreRequest(NamedTuple):
    """Texts to score."""

    texts: list[tuple[Prompt, str]]  # prompts and responses
    profile: object = None  # as the request gave it, see `profile_of`; None: it gave none


def parse_json(body: bytes):
    """The value of a JSON document in UTF-8. Raises Refused."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON in UTF-8: {fields.one_line(error):.200}") from error


def _refuse_constant(name: str):
    raise ValueError(f"{name} is no JSON number")


def parse_score(body: bytes) -> ScoreRequest:
    """The request of POST /score. Raises Refused, InputError."""
    value = parse_json(body)
    if isinstance(value, list):
        return ScoreRequest(texts_of(value, "text"))
    _check_object(value, THE_REQUEST)
    unknown = [name for name in value if name not in KEYS]
    if unknown:
        raise InputError(f"{THE_REQUEST}: unknown field {unknown[0][:60]!r}; it can have {', '.join(KEYS)}")
    if "texts" not in value:
        return ScoreRequest([_checked(_text(value, THE_REQUEST), THE_REQUEST)], value.get("profile"))
    if len(value) > ("profile" in value) + 1:
        raise InputError(f"{THE_REQUEST}: beside 'texts' there can be 'profile' alone")
    return ScoreRequest(texts_of(value["texts"], "texts"), value.get("profile"))


def texts_of(rows, name: str) -> list[tuple[Prompt, str]]:
    """(prompt, response) of each object of a list. Raises Refused, InputError."""
    check_count(rows, name)
    return [_checked(_text(row, f"{name}[{i}]"), f"{name}[{i}]") for i, row in enumerate(rows)]


def check_count(values, name: str) -> None:
    """Refuses what is no list, and too long a one."""
    if not isinstance(values, list):
        raise InputError(f"{THE_REQUEST}: field '{name}' is {fields.kind(values)}; it has to be a list")
    if len(values) > TEXTS:
        raise Refused(413, f"{len(values)} texts: at most {TEXTS} a request")


def _text(row, where: str) -> tuple[Prompt, str]:
    """The text of an object with prompt and response, or with messages of which the last is the response."""
    _check_object(row, where)
    if "messages" not in row:
        return jsonl.prompt(row, "prompt", where), fields.text(row, "response", where)
    if "prompt" in row or "response" in row:
        raise InputError(f"{where}: it has 'messages' and 'prompt' or 'response': give one of them")
    before, response = jsonl.response(row, "messages", where)
    if not before:
        raise InputError(f"{where}: field 'messages' has to be a list of at least two, the last by the assistant")
    return before, response


def _check_object(value, where: str) -> None:
    if not isinstance(value, dict):
        raise InputError(f"{where} is {fields.kind(value)}; it has to be an object")


def _checked(text: tuple[Prompt, str], where: str) -> tuple[Prompt, str]:
    prompt, response = text
    size = len(prompt) if isinstance(prompt, str) else sum(len(m["role"]) + len(m["content"]) for m in prompt)
    if size + len(response) > CHARACTERS:
        raise Refused(413, f"{where} has {size + len(response)} characters: at most {CHARACTERS}")
    return text


def profile_of(value, groups: Iterable[str]) -> Profile:
    """The profile that a request gave: an object, or text as for `--profile`, but never a file. Raises InputError."""
    groups = tuple(groups)
    if value in ({}, "{}"):
        return {}
    if not groups:
        raise InputError("profile: this service has a single model, without groups to name; leave the profile out")
    if isinstance(value, str):
        return steering.parse_inline(value, groups, "profile")
    _check_object(value, "profile")
    return steering.check(value, groups, "profile")
