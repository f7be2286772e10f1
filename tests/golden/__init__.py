"""The reference's numbers (`make.py` writes them), read."""

import functools
import pathlib

import numpy as np


@functools.cache
def reference() -> dict[str, np.ndarray]:
    """All arrays of `reference.npz`."""
    with np.load(pathlib.Path(__file__).with_name("reference.npz")) as file:
        return {name: file[name] for name in file.files}


COUNTRIES = ("Chile", "South Africa", "New Zealand", "Australia", "Mexico", "Israel", "Canada")


def ragged(flat: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The rows of a flat array."""
    return np.split(flat, np.cumsum(lengths)[:-1])
