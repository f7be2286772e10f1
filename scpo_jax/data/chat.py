"""A prompt and its response as the conversation that causal reward models read: by the tokenizer's chat template.

A tokenizer without a template gets the plain form "prompt, empty line, response".
"""

import contextlib
import os
import signal
import threading
from typing import NamedTuple

from scpo_jax.data.fields import one_line
from scpo_jax.data.preferences import as_text
from scpo_jax.errors import InputError

PLACE = "scporesponse"  # stands for the response where a template is asked what it writes around it
SECONDS = 5.0  # of computing that a template may take for a conversation; it needs milliseconds
PLAIN = "\n\n"  # between prompt and response without a template


class Rendered(NamedTuple):
    """A conversation as text."""

    text: str
    start: int  # of the response in it
    end: int  # of the response in it: what follows is the template's


def render(tokenizer, prompt: str | list[dict], response: str) -> Rendered:
    """Prompt (text, or messages) and the assistant's response as one text. Raises InputError."""
    if not tokenizer.chat_template:
        text = as_text(prompt) + PLAIN + response
        return Rendered(text, len(text) - len(response), len(text))
    messages = messages_of(prompt)
    text = apply(tokenizer, [*messages, {"role": "assistant", "content": response}])
    before, _, after = apply(tokenizer, [*messages, {"role": "assistant", "content": PLACE}]).rpartition(PLACE)
    # most templates write the response as it is or stripped; what one moves counts as response too
    start = len(os.path.commonprefix([text, before]))
    rest = len(os.path.commonprefix([text[start:][::-1], after[::-1]]))
    return Rendered(text, start, len(text) - rest)


def opening(tokenizer, prompt: str | list[dict]) -> str:
    """The text to which a language model writes the response to a prompt (text, or messages). Raises InputError."""
    if not tokenizer.chat_template:
        return as_text(prompt) + PLAIN
    return apply(tokenizer, messages_of(prompt), add_generation_prompt=True)


def messages_of(prompt: str | list[dict]) -> list[dict]:
    """A prompt as messages."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def apply(tokenizer, messages: list[dict], add_generation_prompt: bool = False) -> str:
    """What the template makes of a conversation."""
    try:
        with _limited():
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # a template is a program: it may refuse roles or their order, or just be broken
        raise InputError(
            f"the tokenizer's chat template refuses the prompt {as_text(messages)[:60]!r}: {one_line(error):.200}"
        ) from error


@contextlib.contextmanager
def _limited():
    """Ends what takes longer than `SECONDS` of computing: a template is a program of whoever made the tokenizer.

    Only the main thread can be ended so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_):
        raise TimeoutError(f"it computes for more than {SECONDS} seconds")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def begins(tokenizer) -> bool:
    """Whether texts begin with the BOS token: where the tokenizer puts one before a text by itself.

    Without a template any BOS token is used.
    """
    bos = tokenizer.bos_token_id
    return bos is not None and (not tokenizer.chat_template or tokenizer("a")["input_ids"][:1] == [bos])


def special_ids(tokenizer) -> set[int]:
    """Ids of the tokens that stand for no text; not that of unknown text."""
    added = tokenizer.added_tokens_decoder.items()
    marks = {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}
    return marks - {tokenizer.unk_token_id}
