"""Which pairs make up which step: pure functions of seed and step, so that resuming needs the step number only."""

import functools

import numpy as np

WINDOW = 128  # steps among which an epoch's pairs are exchanged, so that the steps have about equally many tokens


def shuffled(lengths: np.ndarray, batch_size: int, seed: int, steps: int) -> np.ndarray:
    """Indices `[steps, batch_size]` into the pairs whose tokens are counted in `lengths [n]`.

    Every pair comes once an epoch, in a fresh order. The epochs are strung together and a batch may straddle two of
    them, so that all batches are full. More steps continue fewer: a step's pairs do not depend on `steps`.
    """
    epochs = -(-steps * batch_size // len(lengths))
    places = np.concatenate([_epoch(lengths, batch_size, seed, epoch) for epoch in range(epochs)])
    return places[: steps * batch_size].reshape(steps, batch_size)


def _epoch(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """The pairs of an epoch `[n]`: at random, then exchanged among the steps of each window."""
    pairs = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    begin = -epoch * len(pairs) % batch_size  # the pairs before fill the batch that the last epoch left open
    end = len(pairs) - (len(pairs) - begin) % batch_size  # those after it open a batch of the next epoch
    for start in range(begin, end, WINDOW * batch_size):
        window = slice(start, min(start + WINDOW * batch_size, end))
        pairs[window] = _balanced(pairs[window], lengths, batch_size)
    return pairs


def _balanced(pairs: np.ndarray, lengths: np.ndarray, batch_size: int) -> np.ndarray:
    """The same pairs, in batches of about equal length.

    Half of each batch stands as it was drawn, so that no two epochs have the same batches; the others follow, the
    longest first, each to the shortest batch with room.
    """
    batches, drawn = len(pairs) // batch_size, batch_size // 2
    placed, counts = np.empty((batches, batch_size), pairs.dtype), np.full(batches, drawn)
    placed[:, :drawn] = pairs[: batches * drawn].reshape(batches, drawn)
    totals, others = lengths[placed[:, :drawn]].sum(1), pairs[batches * drawn :]
    for pair in others[np.argsort(-lengths[others], kind="stable")]:
        batch = np.argmin(np.where(counts < batch_size, totals, np.inf))
        placed[batch, counts[batch]] = pair
        totals[batch] += lengths[pair]
        counts[batch] += 1
    return placed.reshape(-1)


def reference(n: int, batch_size: int, steps: int) -> np.ndarray:
    """Indices `[steps, batch_size]` of the reference's batches; an epoch's last slice may be short, -1 fills it up.

    The pairs are first reordered by `default_rng(0).permutation(n)`; epoch e takes consecutive slices of torch's
    `randperm` with seed 42 + e (reference/README.md, "Batch order").
    """
    steps_per_epoch = -(-n // batch_size)
    epochs = np.full((-(-steps // steps_per_epoch), steps_per_epoch * batch_size), -1)
    first = np.random.default_rng(0).permutation(n)
    for e, row in enumerate(epochs):
        row[:n] = first[_torch_randperm(n, 42 + e)]
    return epochs.reshape(-1, batch_size)[:steps]


@functools.lru_cache(maxsize=8)
def _torch_randperm(n: int, seed: int) -> np.ndarray:
    """torch.randperm(n) of a CPU generator with this seed: MT19937 and a forward Fisher-Yates shuffle."""
    draws = np.random.RandomState(seed).randint(0, 2**32, size=max(n - 1, 0), dtype=np.uint32)
    permutation = np.arange(n)
    for i, draw in enumerate(draws.astype(np.int64)):
        j = i + draw % (n - i)
        permutation[i], permutation[j] = permutation[j], permutation[i]
    return permutation
