"""The remote-reward contract of OpenRLHF: what its clients ask `POST /get_reward`, and what they get.

A client sends `{"query": [...], "prompts": [...], "labels": [...]}` (`openrlhf/utils/agent.py`). A query is prompt and
response as the policy's tokenizer decodes them, special tokens and chat template included; of a prompt longer than
the policy takes it has the end. The reward model's own template goes around what was said, so the turns are read
back from the templates of ChatML (Qwen), Llama 3, Gemma and Tulu; any other prompt is taken as plain text.
"""

import re
from collections.abc import Sequence

from scpo_jax import serve_requests
from scpo_jax.data import fields
from scpo_jax.data.encoding import Prompt
from scpo_jax.errors import InputError

TURN = re.compile(
    r"(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|)(system|user|assistant|model|tool)"
    r"(?:<\|end_header_id\|>|\|>)?\n{1,2}"
)
ROLES = {"model": "assistant"}
SPECIAL = r"<\|[a-zA-Z0-9_.-]{1,40}\|>|<｜[^<>｜]{1,40}｜>|<(?:start|end)_of_turn>"  # nobody writes these
AT_ENDS = SPECIAL + r"|</?s>|<(?:bos|eos|pad)>|\[(?:CLS|SEP|PAD)\]"  # these are words elsewhere
SHORTEST_END = 16  # characters that a query has to share with the end of its prompt
TRIES = 100  # places where a prompt may have been cut


def parse(body: bytes, special: Sequence[str]) -> list[tuple[Prompt, str]]:
    """(prompt, response) of each query. `special` are the reward model's special tokens. Raises Refused, InputError."""
    value = serve_requests.parse_json(body)
    if not isinstance(value, dict):
        raise InputError(f"the request is {fields.kind(value)}; it has to be an object with 'query' and 'prompts'")
    queries, prompts = (_strings(value, name) for name in ("query", "prompts"))
    if len(queries) != len(prompts):
        raise InputError(f"{len(queries)} of 'query' and {len(prompts)} of 'prompts': there has to be one for each")
    marks = Marks(special)
    pairs = zip(queries, prompts, strict=True)
    return [marks.text(query, prompt, f"query[{i}]") for i, (query, prompt) in enumerate(pairs)]


def reply(scores: list[float]) -> dict:
    """What clients get: `rewards` to train on, `scores` to filter by, `extra_logs` to log."""
    return {"rewards": scores, "scores": scores, "extra_logs": {"reward_model_score": scores}}


def _strings(value: dict, name: str) -> list[str]:
    """A list of strings; a string is one of them."""
    given = fields.required(value, name, serve_requests.THE_REQUEST)
    given = [given] if isinstance(given, str) else given
    serve_requests.check_count(given, name)
    for i, text in enumerate(given):
        if not isinstance(text, str):
            raise InputError(f"{name}[{i}] is {fields.kind(text)}; it has to be a string")
        if len(text) > serve_requests.CHARACTERS:
            raise serve_requests.Refused(
                413, f"{name}[{i}] has {len(text)} characters: at most {serve_requests.CHARACTERS}"
            )
        fields.valid_text(text, f"{name}[{i}]", serve_requests.THE_REQUEST)
    return given


class Marks:
    """What templates write around the turns of a conversation."""

    def __init__(self, special: Sequence[str]):
        own = [re.escape(token) for token in sorted(special, key=len, reverse=True) if not re.fullmatch(SPECIAL, token)]
        self._anywhere = re.compile("|".join([*own, SPECIAL]))
        self._at_ends = re.compile("|".join([*own, AT_ENDS]))

    def text(self, query: str, prompt: str, where: str) -> tuple[Prompt, str]:
        """(prompt, response) as they were before the policy's template. Raises InputError."""
        said, before = (text[self._inner(text)[0] :] for text in (query, prompt))
        response = said[_end_of_prompt(said, before, where) :]
        turns = self._turns(prompt)
        if not turns:
            return self._plain(before), self._plain(response)
        if turns[-1]["role"] == "assistant":  # the policy was to go on from there
            response = turns.pop()["content"] + response
        if [turn["role"] for turn in turns] == ["user"]:
            return turns[0]["content"], self._plain(response)
        return turns, self._plain(response)

    def _turns(self, prompt: str) -> list[dict]:
        """The messages of a prompt in one of the known templates; none if it is in no template."""
        before, *parts = TURN.split(prompt)
        turns = list(zip(parts[::2], parts[1::2], strict=True))
        if turns and self._plain(before).strip():
            turns.insert(0, ("system", before))
        said = [(ROLES.get(role, role), self._plain(text.removesuffix("\n"))) for role, text in turns]
        return [{"role": role, "content": content} for role, content in said]

    def _plain(self, text: str) -> str:
        """A text without marks."""
        start, end = self._inner(text)
        return self._anywhere.sub("", text[start:end])

    def _inner(self, text: str) -> tuple[int, int]:
        """Where a text begins and ends without the marks at its ends and the line break after each of the last."""
        start, end, spans = 0, len(text), [match.span() for match in self._at_ends.finditer(text)]
        for first, last in spans:
            if first != start:
                break
            start = last
        for first, last in reversed(spans):
            if first < start or text[last:end] not in ("", "\n"):
                break
            end = first
        return start, end


def _end_of_prompt(query: str, prompt: str, where: str) -> int:
    """Where the response begins: after the prompt, or after the end of it that the query begins with."""
    if query.startswith(prompt):
        return len(prompt)
    head, place = query[:SHORTEST_END], -1
    for _ in range(TRIES):
        place = prompt.find(head, place + 1)
        if place < 0 or len(prompt) - place < SHORTEST_END:
            break
        if query.startswith(prompt[place:]):
            return len(prompt) - place
    raise InputError(f"{where} does not begin with its prompt")
