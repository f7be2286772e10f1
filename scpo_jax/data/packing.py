"""Several texts in one row, so that few tokens of padding are computed; few shapes, so that few programs are compiled.

In training a step's texts are packed for themselves: K steps, M sets of texts a step (one for each group and device),
S texts a set, R rows of T tokens. In scoring any texts share a row.
"""

import bisect
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scpo_jax.data.encoding import Text
from scpo_jax.models.module import TextBatch

MOST_SHAPES = 6  # programs compiled for one training at most
COMPILATION = 16  # a further program has to save the work of so many steps


class Places(NamedTuple):
    """Where texts stand in rows: `rows` and `columns` (of the first token) are `[M, S]`, `used` `[M]` counts rows."""

    rows: np.ndarray
    columns: np.ndarray
    used: np.ndarray


def first_fit(lengths: np.ndarray, row_length: int) -> Places:
    """Places of M sets of S texts of `lengths [M, S]`: the longest first, each in the first row with room.

    Length 0 stands for no text. All sets at once: a training has tens of thousands.
    """
    sets, texts = lengths.shape
    every, room = np.arange(sets), np.full((sets, texts), row_length)
    rows, columns = np.zeros((2, sets, texts), np.int32)
    for text in np.argsort(-lengths, axis=1, kind="stable").T:
        size = lengths[every, text]
        row = np.argmax(room >= size[:, None], axis=1)
        rows[every, text], columns[every, text] = row, row_length - room[every, row]
        room[every, row] -= size
    return Places(rows, columns, (room < row_length).sum(1))


def plan_shapes(lengths: np.ndarray, width: int) -> np.ndarray:
    """The shape (R, T) of each step's rows, `[K, 2]`, at most `MOST_SHAPES` different ones.

    Every set of a step has the same shape. Shapes are chosen greedily by the work of all steps: a row of T tokens of
    a transformer of `width` D costs T (1 + T / 6D), attention having T / 6D of the products of the linear maps.

    Args:
      lengths: tokens of the texts of each step and set, `[K, M, S]`; 0 is no text.
    """
    steps, sets, texts = lengths.shape
    longest = lengths.max((1, 2), initial=1)
    candidates = row_lengths(int(longest.min()), int(longest.max()))
    needed = np.full((steps, len(candidates)), np.iinfo(np.int32).max)  # rows of each length
    for c, row_length in enumerate(candidates):
        fits = longest <= row_length
        used = first_fit(lengths[fits].reshape(-1, texts), row_length).used
        needed[fits, c] = np.maximum(used.reshape(-1, sets).max(1, initial=1), 1)
    shapes = [(c, rows) for c in range(len(candidates)) for rows in np.unique(needed[longest <= candidates[c], c])]
    size = np.array([(rows, candidates[c]) for c, rows in shapes])
    work = size[:, 0] * size[:, 1] * (1 + size[:, 1] / (6 * width))
    fits = np.stack([needed[:, c] <= rows for c, rows in shapes], axis=1)
    cost = np.where(fits, work, np.inf)  # of each step in each shape
    chosen, best = [], np.full(steps, np.inf)
    while len(chosen) < MOST_SHAPES:
        totals = np.minimum(cost, best[:, None]).sum(0)
        shape = int(np.argmin(totals))
        if chosen and best.sum() - totals[shape] < COMPILATION * best.mean():
            break
        chosen.append(shape)
        best = np.minimum(best, cost[:, shape])
    return size[np.array(chosen)[np.argmin(cost[:, chosen], axis=1)]]


def row_lengths(shortest: int, longest: int) -> list[int]:
    """Row lengths worth trying for steps whose longest texts have from `shortest` to `longest` tokens."""
    steps = [16, 24, 32, 48, *range(64, 3 * max(longest, 64) // 2 + 64, 64)]
    return [length for length in steps if length >= shortest]


def pack(texts: Sequence[Text], shape: tuple[int, int]) -> TextBatch:
    """All texts in R rows of T tokens, as `first_fit` places them."""
    places = first_fit(np.array([[len(text.input_ids) for text in texts]]), shape[1])
    return lay_out(texts, places.rows[0], places.columns[0], shape)


def lay_out(texts: Sequence[Text], rows, columns, shape: tuple[int, int], slots: int = 0) -> TextBatch:
    """The batch of texts whose first tokens stand at `rows` and `columns` `[S]`, each in one piece.

    `slots` is how many scores are read, at least S; those beyond the texts are of the first row's first token.
    """
    segment_ids, input_ids, token_type_ids, positions = np.zeros((4, *shape), np.int32)
    for segment, (text, row, start) in enumerate(zip(texts, rows, columns, strict=True), start=1):
        place = row, slice(start, start + len(text.input_ids))
        input_ids[place], token_type_ids[place] = text.input_ids, text.token_type_ids
        segment_ids[place], positions[place] = segment, np.arange(len(text.input_ids))
    read = [np.pad(np.asarray(places, np.int32), (0, max(slots - len(texts), 0))) for places in (rows, columns)]
    return TextBatch(input_ids, token_type_ids, segment_ids, positions, *read)


class Batch(NamedTuple):
    """Texts to score at once: S `indices` of texts, the rows and columns of their first tokens."""

    indices: list[int]
    rows: list[int]
    columns: list[int]
    shape: tuple[int, int]  # (R, T)
    slots: int  # scores to read, at least S


def plan_batches(lengths: Sequence[int], width: int, tokens_per_batch: int) -> list[Batch]:
    """Batches of all texts, the longest first: if memory does not suffice, it is known at once.

    Rows have 2^i tokens, at least a third of the model's `width`: shorter ones are not cheaper, attention being a
    small part of the work. The number of rows depends on T alone but for the last batch of each T.
    """
    rows = fill_rows(lengths, shortest=_power_of_two(max(width // 3, 16)))
    batches = []
    for length, same in itertools.groupby(rows, key=lambda row: row[0]):
        members, most = [texts for _, texts in same], max(tokens_per_batch // length, 1)
        parts = [members[start : start + most] for start in range(0, len(members), most)]
        slots = _power_of_two(max(sum(map(len, part)) for part in parts))
        for part in parts:
            columns = [np.cumsum([0, *(lengths[i] for i in row[:-1])]) for row in part]
            numbers = [r for r, row in enumerate(part) for _ in row]
            shape = min(most, _power_of_two(len(part))), length
            batches.append(Batch(list(itertools.chain(*part)), numbers, list(np.concatenate(columns)), shape, slots))
    return batches


def fill_rows(lengths: Sequence[int], shortest: int) -> list[tuple[int, list[int]]]:
    """(T, which texts) of rows that hold all texts: the longest text left, then whatever is the longest that fits.

    T is the power of two that holds a row's first text, at least `shortest`.
    """
    left, rows = {}, []
    for i in np.argsort(lengths, kind="stable"):
        left.setdefault(int(lengths[i]), []).append(int(i))
    sizes = sorted(left)
    while sizes:
        row_length = max(_power_of_two(sizes[-1]), shortest)
        row, room = [], row_length
        while place := bisect.bisect_right(sizes, room):
            size = sizes[place - 1]
            row.append(left[size].pop())
            room -= size
            if not left[size]:
                del sizes[place - 1]
        rows.append((row_length, row))
    return rows


def _power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def deal(pairs: np.ndarray, lengths: np.ndarray, shares: int) -> np.ndarray:
    """The pairs `[K, B]` of each step dealt to shares of about equal length, `[K, N, b]`; -1 is no pair.

    The longest first, to the shares in turn and back again. `lengths` `[n]` are those of all pairs.
    """
    steps, size = len(pairs), -(-pairs.shape[1] // shares)
    padded = np.pad(pairs, ((0, 0), (0, size * shares - pairs.shape[1])), constant_values=-1)
    tokens = np.where(padded >= 0, lengths[padded], -1)
    ranked = np.take_along_axis(padded, np.argsort(-tokens, axis=1, kind="stable"), 1).reshape(steps, size, shares)
    ranked[:, 1::2] = ranked[:, 1::2, ::-1].copy()
    return ranked.swapaxes(1, 2)
