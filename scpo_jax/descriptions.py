"""What a checkpoint says of itself, checked: the file may be damaged, or anybody's."""

import os

from scpo_jax.data import encoding
from scpo_jax.errors import InputError
from scpo_jax.models import lora
from scpo_jax.models.lora import Lora

SHORTEST, LONGEST = 8, 2**24  # tokens of a text, of a card's max_length
BASE = ("name", "revision", "fingerprint")  # what `checkpoint.reference` says


def checked(description: dict, folder: str | os.PathLike) -> dict:
    """What `save` described, each part of the kind that it has; those that are younger than a checkpoint filled in."""
    whole = {"lora": None, "language": None, "heads": []} | description
    for key in ("config", "card", "tokenizer"):
        if not isinstance(whole.get(key), dict):
            _refuse(folder, key)
    check_card(whole["card"], folder)
    if not isinstance(whole["heads"], list) or not all(isinstance(group, str) for group in whole["heads"]):
        _refuse(folder, "heads")
    if not isinstance(whole["language"], bool | None):
        _refuse(folder, "language")
    adapters = whole["lora"]
    if adapters is not None:
        if not isinstance(adapters, dict) or adapters.keys() != set(Lora._fields):
            _refuse(folder, "lora")
        if not isinstance(adapters["targets"], list):
            _refuse(folder, "lora")
        adapters = Lora(**adapters | {"targets": tuple(adapters["targets"])})
        if lora.problem(adapters):
            raise InputError(f"{folder}: {lora.problem(adapters)}")
    return whole | {"lora": adapters, "heads": tuple(whole["heads"]), "language": bool(whole["language"])}


def check_scores(card: dict, source) -> dict:
    """A card that says how texts are to be scored. Raises InputError."""
    for key in ("method", "max_length", "encoding"):
        if key not in card:
            _refuse(source, f"{key} of the card")
    return card


def _refuse(folder: str | os.PathLike, key: str):
    raise InputError(f"{folder} is no checkpoint of scpo: {key} of its description is missing or of another kind")


def check_card(card: dict, source) -> None:
    """Refuses a card whose fields, where it has them, are of another kind than `save` writes. Raises InputError."""
    texts = {key: card[key] for key in ("method", "group", "encoding") if key in card}
    wrong = [key for key, value in texts.items() if not isinstance(value, str)]
    if "encoding" in card and card["encoding"] not in encoding.ENCODINGS:
        wrong.append("encoding")
    length, base = card.get("max_length", SHORTEST), card.get("base", dict.fromkeys(BASE, ""))
    if isinstance(length, bool) or not isinstance(length, int) or not SHORTEST <= length <= LONGEST:
        wrong.append("max_length")
    if not isinstance(base, dict) or not all(isinstance(base.get(key), str) for key in BASE):
        wrong.append("base")
    if wrong:
        raise InputError(f"{source}: its card is not one of scpo: {', '.join(wrong)}")
