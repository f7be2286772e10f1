"""Pairs that are only as long as texts are, to plan a run whose texts are not here."""

from collections.abc import Sequence

import numpy as np

from scpo_jax.data.batches import Pairs
from scpo_jax.data.encoding import Text

SHARED = 0.59  # correlation of the lengths of chosen and rejected (PRISM: 0.59, by their prompt)


def draw(quantiles: Sequence[int], count: int, seed: int) -> np.ndarray:
    """Lengths of the two texts of `count` pairs, `[count, 2]`: their distribution is that of the quantiles.

    `quantiles` are of evenly spaced shares from 0 to 1, and lengths between two of them equally frequent. A pure
    function of its arguments.
    """
    draws = np.random.default_rng(seed).normal(size=(3, count))
    sides = np.sqrt(SHARED) * draws[0] + np.sqrt(1 - SHARED) * draws[1:]  # [2, count]
    places = sides.ravel().argsort().argsort().reshape(sides.shape).T
    shares = (places + 0.5) / sides.size
    return np.rint(np.interp(shares, np.linspace(0, 1, len(quantiles)), quantiles)).astype(np.int32)


def pairs(quantiles: Sequence[int], count: int, longest: int, seed: int) -> Pairs:
    """Pairs of texts of such lengths, cut to `longest`; all their tokens are 0."""
    sizes = np.minimum(draw(quantiles, count, seed), longest)
    texts = {size: Text(*[np.zeros(size, np.int32)] * 2, 0) for size in np.unique(sizes).tolist()}
    chosen, rejected = ([texts[size] for size in side] for side in sizes.T.tolist())
    return Pairs(chosen, rejected, np.ones(count, np.float32), np.zeros(count, np.float32))
