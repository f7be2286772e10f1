"""Texts of users as a page shows them: cut, and in their direction of writing."""

import unicodedata

CHARACTERS = 600  # of a text at most


def beginning(text: str) -> str:
    """A text without what is too long of it."""
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}…"


def end(text: str) -> str:
    """The last part of a text: where the question of a prompt stands."""
    return text if len(text) <= CHARACTERS else f"…{text[-CHARACTERS:]}"


def direction(text: str) -> str:
    """Writing direction of most letters of a text; one foreign name at its start does not turn it."""
    kinds = [unicodedata.bidirectional(letter) for letter in text]
    return "rtl" if sum(kind in ("R", "AL") for kind in kinds) > kinds.count("L") else "ltr"
