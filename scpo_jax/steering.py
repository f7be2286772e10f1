"""Steering profiles: how strongly to follow which groups, and the blend of reward models that this names.

A profile is a dict group -> strength. `{}` is the global RM, `{"Chile": 1}` the Chilean one, 0.5 half-way, more than 1
goes on in the same direction, less than 0 away from the group; strengths of several groups add up.
"""

import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from scpo_jax import untrusted
from scpo_jax.data.fields import kind, one_line, unique
from scpo_jax.data.preferences import check_groups
from scpo_jax.errors import InputError

Profile = dict[str, float]

LARGEST = 100.0  # strength, either way; far beyond what means anything, far from what float32 cannot hold


def parse(text: str, groups: Iterable[str], flag: str = "--profile") -> Profile:
    """The profile that a user wrote, without zeros and sorted by group; raises InputError.

    Args:
      text: JSON (`{"Chile": 0.7, "Mexico": 0.3}`), a list (`Chile=0.7,Mexico=0.3`), or a file with JSON
        (`@profile.json` or `profile.json`), which may be what `scpo steer` wrote: an object with the key "profile".
      groups: that have a reward model.
      flag: names the text in errors.
    """
    text = text.strip()
    if not _is_inline(text):
        path = text.removeprefix("@")
        flag, text = f"{flag}={path}", _content(path, flag)
        return check(_json(text, flag), groups, flag)
    return parse_inline(text, groups, flag)


def parse_inline(text: str, groups: Iterable[str], flag: str) -> Profile:
    """`parse` without files: what comes from elsewhere must not name any."""
    text = text.strip()
    if not _is_inline(text):
        raise InputError(f'{flag}: no profile, which is like {{"Chile":0.7,"Mexico":0.3}} or Chile=0.7,Mexico=0.3')
    return check(_json(text, flag) if text.startswith("{") else _listed(text, flag), groups, flag)


def check(strengths: Mapping, groups: Iterable[str], flag: str) -> Profile:
    """The profile of these strengths, without zeros and sorted by group; raises InputError."""
    checked = {group: _strength(value, group, flag) for group, value in strengths.items()}
    check_groups(dict.fromkeys(checked, flag), groups)
    return {group: checked[group] for group in sorted(checked) if checked[group]}


def _is_inline(text: str) -> bool:
    return text.startswith("{") or ("=" in text and not text.startswith("@"))


def _content(path: str, flag: str) -> str:
    try:
        untrusted.check_regular(pathlib.Path(path))
        return pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError, InputError) as error:  # ValueError: not UTF-8, or a name that no file can have
        raise InputError(
            f"{flag}={path}: neither a file that can be read ({one_line(error)}) nor a profile, which is "
            'like {"Chile":0.7,"Mexico":0.3} or Chile=0.7,Mexico=0.3'
        ) from error


def _json(text: str, flag: str) -> dict:
    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=_refused_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{flag}: not a profile in JSON ({one_line(error)})") from error
    if isinstance(value, dict) and isinstance(value.get("profile"), dict):
        value = value["profile"]
    if not isinstance(value, dict):
        raise InputError(f"{flag}: {kind(value)} is no profile; it has to be an object of groups and strengths")
    return value


def _refused_constant(name: str):
    raise ValueError(f"{name} is no JSON number")


def _listed(text: str, flag: str) -> dict[str, float]:
    """The strengths of `Chile=0.7,Mexico=0.3`."""
    items = []
    for part in text.split(","):
        group, separator, value = part.rpartition("=")
        if not separator or not group.strip():
            raise InputError(f"{flag}: {part.strip()!r} is no GROUP=STRENGTH, as in Chile=0.7,Mexico=0.3")
        try:
            items.append((group.strip(), float(value)))
        except ValueError as error:
            raise InputError(f"{flag}: the strength of {group.strip()!r} is {value!r}, not a number") from error
    try:
        return unique(items)
    except ValueError as error:
        raise InputError(f"{flag}: {error}") from error


def _strength(value, group: str, flag: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{flag}: the strength of {group!r} is {kind(value)}, not a number")
    if not -LARGEST <= value <= LARGEST:  # nan is not
        raise InputError(f"{flag}: the strength of {group!r} is {str(value)[:60]}: it has to be from -100 to 100")
    return float(value)


def blend(start: dict, profile: Profile, params_of: Callable[[str], dict]) -> dict:
    """Weight space: (1 - sum of strengths) * start + sum of strength * params_of(group), leaf by leaf in float32.

    Bitwise exact at both ends: of {} and zeros it is `start`, of a single 1 that group's own parameters. Groups are
    read one after the other, so that two models are held at a time.
    """
    profile = {group: strength for group, strength in sorted(profile.items()) if strength}
    if not profile:
        return start
    if list(profile.values()) == [1.0]:
        return params_of(next(iter(profile)))
    blended = _scaled(start, 1 - math.fsum(profile.values()))
    for group, strength in profile.items():
        blended = jax.tree.map(jnp.add, blended, _scaled(params_of(group), strength))
    return blended


def shift(params: dict, strength: float, group: dict, start: dict) -> dict:
    """params + strength * (group - start), leaf by leaf in float32."""
    return jax.tree.map(jnp.add, params, _scaled(jax.tree.map(jnp.subtract, group, start), strength))


def _scaled(params: dict, factor: float) -> dict:
    return jax.tree.map(lambda leaf: jnp.float32(factor) * jnp.asarray(leaf, jnp.float32), params)


def blend_scores(start: np.ndarray, scores: Mapping[str, np.ndarray], profile: Profile) -> np.ndarray:
    """Score space: r_g + sum of strength * (r_c - r_g), from the scores of each RM; also of score differences, `[N]`.

    It takes a forward pass for each group, and is what weight space is compared with.
    """
    return start + sum(strength * (scores[group] - start) for group, strength in profile.items())
