"""A small grammar of English responses: attributes -> natural words -> the same attributes again.

A response is a sequence of sentences. Each sentence states one level (+1 or -1) of one attribute, or nothing (0).
In a template `(a|b)` is a choice of words, `{topic}` a slot. Draws come from a numpy Generator; parsing needs none.
"""

import functools
import re

import numpy as np

from scpo_jax.data.phrases import NEUTRAL, OPENERS, PHRASES, PROMPTS, SLOTS

ATTRIBUTES = tuple(PHRASES)
EXPRESSED = 1 / 3  # probability that a response states an attribute at all, either way: about four of twelve
OPENED = 0.25  # share of the responses that open with a word of greeting, in any language
_FIRST = ATTRIBUTES.index("formality")  # a letter or a chat opens in its tone; the other sentences stand in any order

_PART = re.compile(r"\(([^()]*)\)|\{(\w+)\}")  # a choice of words, or a slot


def sample_attributes(rng: np.random.Generator) -> np.ndarray:
    """Levels of one response, `[A]` int8 in {-1, 0, 1}: independent, symmetric."""
    draws = rng.random(len(ATTRIBUTES))
    return (draws < EXPRESSED / 2).astype(np.int8) - (draws > 1 - EXPRESSED / 2).astype(np.int8)


def sample_topic(rng: np.random.Generator) -> str:
    return _pick(rng, SLOTS["topic"])


def sample_prompt(rng: np.random.Generator, topic: str, turn: int) -> str:
    """What the user asks about `topic` in turn 0, or how they go on in a later one."""
    return _fill(rng, _pick(rng, PROMPTS[min(turn, 1)]), topic)


def sample_response(rng: np.random.Generator, attributes: np.ndarray, topic: str) -> str:
    """A text about `topic` that states exactly `attributes` `[A]`."""
    stated = [a for a in np.flatnonzero(attributes) if a != _FIRST]
    sentences = [_pick(rng, NEUTRAL)]
    sentences += [_pick(rng, PHRASES[ATTRIBUTES[a]][attributes[a]]) for a in rng.permutation(stated).astype(int)]
    if attributes[_FIRST]:
        sentences.insert(0, _pick(rng, PHRASES[ATTRIBUTES[_FIRST]][attributes[_FIRST]]))
    if rng.random() < OPENED:
        sentences.insert(0, _pick(rng, OPENERS))
    return " ".join(_fill(rng, sentence, topic) for sentence in sentences)


def attributes_of(text: str) -> np.ndarray | None:
    """Levels `[A]` int8 that `text` states, or None where a part of it is not of the grammar.

    Sentences may come in any order. Saying a thing twice says it once; saying it both ways says nothing.
    """
    text = " ".join(text.split())
    stated, position = set(), 0
    while position < len(text):
        match = _sentences().match(text, position)
        if match is None:
            return None
        stated.add(match.lastgroup)
        position = match.end()
    if not stated:
        return None
    levels = [(f"{name}_plus" in stated) - (f"{name}_minus" in stated) for name in ATTRIBUTES]
    return np.array(levels, np.int8)


@functools.cache
def _sentences() -> re.Pattern:
    """One sentence and the blank after it; the matching group is named by attribute and level."""
    groups = {"neutral": NEUTRAL + OPENERS}
    for name, levels in PHRASES.items():
        groups[f"{name}_plus"], groups[f"{name}_minus"] = levels[1], levels[-1]
    patterns = (f"(?P<{name}>{'|'.join(map(_pattern, templates))})" for name, templates in groups.items())
    return re.compile(f"(?:{'|'.join(patterns)})(?: |$)")


def _pattern(template: str) -> str:
    """The regular expression of everything that `_fill` can make of a template."""
    pieces, end = [], 0
    for part in _PART.finditer(template):
        pieces += [re.escape(template[end : part.start()]), f"(?:{'|'.join(map(re.escape, _options(part)))})"]
        end = part.end()
    return "".join(pieces) + re.escape(template[end:])


def _fill(rng: np.random.Generator, template: str, topic: str) -> str:
    def choose(part: re.Match) -> str:
        return topic if part[2] == "topic" else _pick(rng, _options(part))

    return _PART.sub(choose, template)


def _options(part: re.Match) -> tuple[str, ...]:
    return SLOTS[part[2]] if part[2] else tuple(part[1].split("|"))


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.random() * len(options))]
