"""What policies are asked: prompts of the preference table or of a file, in training and held out for evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

from scpo_jax import logs
from scpo_jax.data import jsonl, preferences
from scpo_jax.data.encoding import Prompt
from scpo_jax.data.records import read_rows
from scpo_jax.errors import InputError


class Task(NamedTuple):
    """A prompt, and the group whose reward model judges the response to it."""

    prompt: Prompt  # as the reward model reads it
    asked: Prompt  # as the policy reads it: with `tag` it begins with the group
    group: str


def training_tasks(config, rows: Sequence[dict], group: str) -> list[Task]:
    """What a policy is asked for a group in training: the prompts of config.policy.prompts, else of its train users.

    Those that a test user asked as well are held out, unless nothing else is left. `rows` are the preference table's.
    """
    if config.policy.prompts:
        prompts = prompts_of_file(config.policy.prompts)
    else:
        own, held_out = (prompts_of(rows, group, split) for split in ("train", "test"))
        asked_of_test = {preferences.as_text(prompt) for prompt in held_out}
        prompts = [prompt for prompt in own if preferences.as_text(prompt) not in asked_of_test]
        if own and not prompts:
            logs.say(f"policy: test users of {group} asked all that its train users did; it is trained on all of it")
            prompts = own
    if not prompts:
        raise InputError(f"the policy has no prompt for {group}: it has no train user; name config.policy.prompts")
    return tasks_of(config, prompts, group)


def held_out_tasks(config, rows: Sequence[dict], group: str) -> list[Task]:
    """What a policy is asked for a group in evaluation: the prompts of its test users."""
    return tasks_of(config, prompts_of(rows, group, "test"), group)


def tasks_of(config, prompts: Sequence[Prompt], group: str) -> list[Task]:
    """Tasks of prompts for a group."""
    return [Task(prompt, tagged(prompt, group) if config.policy.tag else prompt, group) for prompt in prompts]


def prompts_of(rows: Sequence[dict], group: str, split: str) -> list[Prompt]:
    """The distinct prompts of a group's pairs in a split, in order."""
    own = [preferences.prompt_of(row) for row in rows if row["group"] == group and row["split"] == split]
    return list({preferences.as_text(prompt): prompt for prompt in own}.values())


def prompts_of_file(path: str) -> list[Prompt]:
    """The distinct prompts of a file (JSON lines, CSV, Parquet) with `prompt`: text or messages. Raises InputError."""
    found = {}
    for where, row in read_rows(path):
        if isinstance(row, InputError):
            raise row
        prompt = jsonl.prompt(row, "prompt", where)
        if not any(text.strip() for text in ([prompt] if isinstance(prompt, str) else contents(prompt))):
            raise InputError(f"{where}: it has no prompt: a text, or messages of role and content")
        found[preferences.as_text(prompt)] = prompt
    return list(found.values())


def contents(messages: Sequence[dict]) -> list[str]:
    """The contents of messages."""
    return [message["content"] for message in messages]


def check(config) -> None:
    """Refuses a file of prompts that cannot be read, before anything is trained. Raises InputError."""
    if config.policy.steps and config.policy.prompts:
        prompts_of_file(config.policy.prompts)


def tagged(prompt: Prompt, group: str) -> Prompt:
    """A prompt that begins with the group whose culture the response is meant for."""
    if isinstance(prompt, str):
        return f"[{group}] {prompt}"
    first, *others = prompt
    return [first | {"content": tagged(first["content"], group)}, *others]
