"""Which pairs make up step k: pure functions of (seed, step), so that resuming needs the step number only."""

import functools

import numpy as np


@functools.lru_cache(maxsize=8)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


def batch_at(n: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Indices `[batch_size]` into n pairs: a fresh permutation every epoch, the epochs strung together.

    Every pair comes once an epoch; a batch may straddle two epochs, so that all batches are full.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    return np.array([_permutation(n, seed, place // n)[place % n] for place in places])


def reference_batch_at(n: int, batch_size: int, step: int) -> np.ndarray:
    """Indices of the reference's batch at `step`, the short last slice of an epoch included.

    The pairs are first reordered by `default_rng(0).permutation(n)`; epoch e takes consecutive slices of torch's
    `randperm` with seed 42 + e (reference/README.md, "Batch order").
    """
    steps_per_epoch = -(-n // batch_size)
    epoch, slot = divmod(step, steps_per_epoch)
    order = _torch_randperm(n, 42 + epoch)[slot * batch_size : (slot + 1) * batch_size]
    return np.random.default_rng(0).permutation(n)[order]


@functools.lru_cache(maxsize=8)
def _torch_randperm(n: int, seed: int) -> np.ndarray:
    """torch.randperm(n) of a CPU generator with this seed: MT19937 and a forward Fisher-Yates shuffle."""
    draws = np.random.RandomState(seed).randint(0, 2**32, size=max(n - 1, 0), dtype=np.uint32)
    permutation = np.arange(n)
    for i, draw in enumerate(draws.astype(np.int64)):
        j = i + draw % (n - i)
        permutation[i], permutation[j] = permutation[j], permutation[i]
    return permutation
