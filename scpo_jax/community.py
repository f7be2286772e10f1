"""`scpo steer`: the profile of a community that nothing was trained for, from a few of its preference pairs.

In score space a blend is linear in the strengths s, r = r_g + sum s_c (r_c - r_g), so s is fitted by logistic
regression on score differences of pairs: that of the global RM is the offset, those of the group RMs minus it are the
features. A profile is used in weight space, where it costs one forward pass and where scores are not linear in s. So
what was found is fitted again around itself: offset and features are then those of the line through the blend found so
far and blends near it (Gauss-Newton).

Strengths are not below 0: a profile fitted to few pairs follows groups and does not flee any. Blends that extrapolate
away from a group are the least like score space, and few pairs do not say enough to want one.

The penalty is on |s|^2 as it is: a strength of 1 is a whole RM, so it draws towards {} (the global RM) and keeps blends
near models that were trained. Features are not standardised each for itself, which would invite large strengths of
groups whose RM hardly differs from the global one. Instead all differences are divided by one temperature, chosen with
the penalty: RMs may be surer, or less sure, than their accuracy on this community warrants, and strengths should not be
bent to make up for it. A profile does not depend on the scale of the rewards.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from scpo_jax import checkpoint, files, logistic, logs, metrics, steering
from scpo_jax.data import fields, jsonl
from scpo_jax.errors import InputError
from scpo_jax.judge import Judge
from scpo_jax.workdir import Workdir

MINIMUM_PAIRS = 8
MINIMUM_USERS = 4  # prompts, where the pairs name no users
FOLDS = 32  # as many users or fewer are left out one by one, more in as many parts
PENALTIES = (math.inf, 100.0, 50.0, 20.0, 10.0)  # on |s|^2 / 2, beside the loss summed over pairs; inf is {}
SHARPNESS = (0.5, 1.0, 2.0, 4.0, 8.0)  # root mean square of all RMs' differences over the temperature
TOLERANCE = 0.25  # standard errors of the left-out loss that a stronger penalty may cost
STEPS = (1.0, 0.25, 0.25)  # of each strength, for the slopes at {} and at what was found by the fit before
RESAMPLES = 200  # of users, for the uncertainty of strengths


class Fit(NamedTuple):
    """Strengths and what shows how far to trust them."""

    strengths: np.ndarray  # [K]
    penalty: float  # the one chosen; inf for profile {}
    scale: float  # 1 / temperature
    held_out: np.ndarray  # [B] margin of each pair, over the temperature, by the strengths fitted without its user


def fit(base: np.ndarray, features: np.ndarray, users) -> Fit:
    """Strengths at the strongest penalty whose loss on left-out users is as good as the smallest, within TOLERANCE.

    Of each penalty the temperature of the smallest loss is taken. TOLERANCE, PENALTIES and SHARPNESS were chosen in the
    linear world of `tests/bench/steering.py`, on a seed that it does not use.

    Args:
      base: score difference r+ - r- of each pair by the global RM, `[B]`.
      features: that of each group's RM minus that of the global one, `[B, K]`.
      users: who labelled each pair, `[B]`.
    """
    base, features = np.asarray(base, np.float64), np.asarray(features, np.float64)
    differences = np.column_stack([base, base[:, None] + features])  # by each RM
    size, folds = math.sqrt(np.mean(differences**2)) or 1.0, folds_of(users)
    held_out = {}
    for penalty in PENALTIES:
        tried = {
            scale: left_out(scale * base, scale * features, folds, penalty)
            for scale in (sharpness / size for sharpness in SHARPNESS)
        }
        scale = min(tried, key=lambda scale: loss(tried[scale]).mean())
        held_out[penalty] = scale, tried[scale]
    penalty = choose({penalty: loss(margins) for penalty, (_, margins) in held_out.items()})
    scale, margins = held_out[penalty]
    return Fit(strengths_of(scale * base, scale * features, penalty), penalty, scale, margins)


class Blended(NamedTuple):
    """A fit in weight space, and the straight line that its last step took the margins of blends for."""

    fit: Fit
    base: np.ndarray  # [B] where the line passes strengths 0
    features: np.ndarray  # [B, K] its slopes


def fit_blend(
    start: dict, params_of: Callable[[str], dict], groups: Sequence[str], margins: Callable[[dict], np.ndarray], users
) -> Blended:
    """`fit` to blends of weights: to the line through all RMs, then to that through the blend it found, and again.

    Args:
      start: parameters of the global RM.
      params_of: those of a group's RM; each is read twice in every fit but the first.
      margins: the score difference r+ - r- of each pair by given parameters, `[B]`.
      users: who labelled each pair, `[B]`.
    """
    strengths = np.zeros(len(groups))
    for step in STEPS:
        here = steering.blend(start, dict(zip(groups, strengths.tolist(), strict=True)), params_of)
        at, moved = margins(here), (steering.shift(here, step, params_of(group), start) for group in groups)
        features = np.stack([margins(params) - at for params in moved], axis=1) / step
        base = at - features @ strengths
        fitted = fit(base, features, users)
        strengths = fitted.strengths
        if not strengths.any():
            break
    return Blended(fitted, base, features)


def resampled(fitted: Fit, base: np.ndarray, features: np.ndarray, users) -> np.ndarray:
    """Strengths of resampled users at the penalty and temperature of a fit, `[RESAMPLES, K]`."""
    counts = metrics.bootstrap_counts(np.asarray(users), np.random.default_rng(0), RESAMPLES)
    base, features = fitted.scale * np.asarray(base, np.float64), fitted.scale * np.asarray(features, np.float64)
    return np.array([strengths_of(base, features, fitted.penalty, own) for own in counts])


def loss(margins: np.ndarray) -> np.ndarray:
    """-log sigmoid(margin) of each pair, `[B]`."""
    return np.logaddexp(0, -margins)


def choose(losses: dict[float, np.ndarray]) -> float:
    """The first penalty whose mean loss exceeds the smallest by at most TOLERANCE standard errors of the difference."""
    best = min(losses.values(), key=np.mean)
    excess = {penalty: own - best for penalty, own in losses.items()}
    return next(p for p, own in excess.items() if own.mean() <= TOLERANCE * own.std() / math.sqrt(len(own)))


def strengths_of(base: np.ndarray, features: np.ndarray, penalty: float, weights=None) -> np.ndarray:
    """The strengths >= 0 `[K]` that minimise the loss summed over pairs + penalty / 2 * |s|^2; 0 where it is inf."""
    if penalty == math.inf:
        return np.zeros(features.shape[1])
    return logistic.fit(features, penalty / len(base), weights=weights, offset=base, nonnegative=True)


def folds_of(users) -> np.ndarray:
    """The fold of each pair, `[B]`: users are dealt at random, so that each fold has one where they are few."""
    names, member = np.unique(users, return_inverse=True)
    return np.random.default_rng(0).permutation(len(names))[member] % FOLDS


def left_out(base: np.ndarray, features: np.ndarray, folds: np.ndarray, penalty: float) -> np.ndarray:
    """Margin of each pair by strengths fitted without its fold, `[B]`."""
    margins = np.empty(len(base))
    for fold in np.unique(folds):
        test = folds == fold
        margins[test] = base[test] + features[test] @ strengths_of(base[~test], features[~test], penalty)
    return margins


def steer_file(judge: Judge, source: str, output: str) -> None:
    """Writes the profile of the community whose pairs `source` holds, with its uncertainty; raises InputError."""
    path = files.output_path(output)
    if not judge.groups:
        raise InputError("scpo steer blends the RMs of a method's groups, and here are none: choose another --method")
    found = jsonl.read(source)
    users = [pair["user_id"] for pair in found.pairs]
    if len(users) < MINIMUM_PAIRS or len(set(users)) < MINIMUM_USERS:
        raise InputError(
            f"{source} has {len(users)} usable pairs of {len(set(users))} users (prompts, where no user_id is given): "
            f"a profile needs at least {MINIMUM_PAIRS} of {MINIMUM_USERS}"
        )
    if len(found.groups) > 1:
        logs.say(f"steer: pairs of {fields.listing(found.groups)} are taken for those of one community")
    loaded, groups = judge.default.loaded, list(judge.groups)

    def margins(params: dict) -> np.ndarray:
        return files.margins(judge.default._replace(loaded=loaded._replace(params=params)), found.pairs)

    blended = fit_blend(
        loaded.params, lambda group: checkpoint.load_merged(judge.groups[group]).params, groups, margins, users
    )
    report = report_of(groups, blended, margins(loaded.params), users)
    Workdir.write_json(path, report | {"method": judge.method, "dropped": found.dropped})
    logs.say(summary(report))


def report_of(groups: list[str], blended: Blended, known: np.ndarray, users: list[str]) -> dict:
    """What the file of a fitted profile holds; `known` has the score differences by the global RM, `[B]`.

    "strengths" has the standard deviation and the central 95 % of each strength over resampled users, at the chosen
    penalty and temperature; the penalty draws all of them towards 0. "left_out" has accuracies on left-out users by the
    profile and by the global RM, and their difference with its interval; the penalty was chosen on the same users.
    """
    fitted = blended.fit
    right = {"profile": fitted.held_out > 0, "global": known > 0}
    counts = metrics.bootstrap_counts(np.asarray(users), np.random.default_rng(1))
    strengths = {}
    draws = resampled(fitted, blended.base, blended.features, users)
    for group, strength, samples in zip(groups, fitted.strengths, draws.T, strict=True):
        low, high = metrics.interval(samples)
        strengths[group] = {"strength": float(strength), "std": float(samples.std()), "low": low, "high": high}
    profile = {group: round(own["strength"], 4) for group, own in strengths.items()}
    return {
        "profile": {group: strength for group, strength in profile.items() if strength},
        "strengths": strengths,
        "left_out": {name: float(np.mean(own)) for name, own in right.items()}
        | metrics.mean_difference([right["profile"] - right["global"].astype(float)], [counts]),
        "penalty": None if fitted.penalty == math.inf else fitted.penalty,
        "pairs": len(users),
        "users": len(set(users)),
    }


def summary(report: dict) -> str:
    """A fit for people."""
    profile, found = report["profile"], report["left_out"]
    named = ", ".join(
        f"{group} {strength:+.2f} (std {report['strengths'][group]['std']:.2f})"
        for group, strength in sorted(profile.items(), key=lambda item: -abs(item[1]))
    )
    points = ", ".join(f"{100 * found[key]:.1f}" for key in ("low", "high"))
    return (
        f"steer: {named or 'no group helps: the profile is {}, the global RM'}; accuracy on left-out users "
        f"{100 * found['profile']:.1f} %, the global RM's {100 * found['global']:.1f} %, difference "
        f"{100 * found['difference']:+.1f} [{points}] points, {report['pairs']} pairs of {report['users']} users"
    )
