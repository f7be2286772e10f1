"""What can be said of a label without reading: rewards linear in a response's length, or in its characters.

Every reward model has to beat these two, and a data set where either is nearly always right has a leak.
"""

from collections.abc import Callable, Sequence

import numpy as np

from scpo_jax import logistic, metrics

PAIRS = 4000  # of a split at most, evenly spaced
PENALTY = 1e-2  # on coefficients of features of unit root mean square


def length_features(responses: Sequence[str]) -> np.ndarray:
    """log(1 + characters), (that - 5)^2 and log(1 + words): `[N, 3]`; the square lets a middle length be liked best."""
    characters = np.log1p([len(response) for response in responses])
    words = np.log1p([len(response.split()) for response in responses])
    return np.stack([characters, (characters - 5) ** 2, words], 1)


def character_features(responses: Sequence[str]) -> np.ndarray:
    """Which bytes of UTF-8 occur, their shares, the first and the last one: `[N, 1024]`, blind to order and words."""
    features = np.zeros((len(responses), 4, 256), np.float32)
    for row, response in zip(features, responses, strict=True):
        values = np.frombuffer(response.encode(), np.uint8)
        if len(values):
            counts = np.bincount(values, minlength=256)
            row[0], row[1] = counts > 0, counts / len(values)
            row[2, values[0]] = row[3, values[-1]] = 1
    return features.reshape(len(responses), 4 * 256)


FEATURES = {"length": length_features, "characters": character_features}


def records(rows: Sequence[dict]) -> dict[str, dict]:
    """{"length": A, "characters": A}: accuracy on test pairs with interval, and "train_accuracy"; see `record`."""
    return {name: record(rows, features) for name, features in FEATURES.items()}


def record(rows: Sequence[dict], features: Callable[[Sequence[str]], np.ndarray]) -> dict:
    """The record A on test pairs of a logistic regression on training pairs, all groups together.

    A is that of `metrics.accuracy_record` (strict, interval by users), with "train_accuracy" beside it; all are None
    if a split has no pair.
    """
    parts = {split: spaced([row for row in rows if row["split"] == split]) for split in ("train", "test")}
    train, test = (differences(part, features) for part in parts.values())
    users = np.array([row["user_id"] for row in parts["test"]], str)
    if not len(train) or not len(test):
        return metrics.accuracy_record(np.zeros(0), np.zeros((1, 0))) | {"train_accuracy": None}
    scale = np.sqrt(np.mean(train**2, axis=0))  # about 0: what is always on one side has to count
    used = scale > 0
    coefficients = logistic.fit(train[:, used] / scale[used], PENALTY)
    train, test = (x[:, used] / scale[used] @ coefficients for x in (train, test))
    counts = metrics.bootstrap_counts(users, np.random.default_rng(0))
    return metrics.accuracy_record(test, counts) | {"train_accuracy": float(np.mean(train > 0))}


def spaced(rows: Sequence[dict]) -> Sequence[dict]:
    """At most PAIRS rows, evenly spaced."""
    return rows[:: -(-len(rows) // PAIRS) or 1]


def differences(rows: Sequence[dict], features: Callable[[Sequence[str]], np.ndarray]) -> np.ndarray:
    """Features of the chosen minus those of the rejected response, `[B, D]`."""
    chosen, rejected = (features([row[side] for row in rows]) for side in ("chosen", "rejected"))
    return chosen - rejected
