"""Several texts in one row, so that few tokens of padding are computed; few shapes, so that few programs are compiled.

In training a step's texts are packed for themselves: K steps, M sets of texts a step (one for each group and device),
S texts a set, R rows of T tokens. In scoring any texts share a row.
"""

import bisect
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from scpo_jax.data.encoding import Text
from scpo_jax.models.module import TextBatch

MOST_SHAPES = 6  # programs compiled for one training at most
COMPILATION, COMPILATION_ON_CPU = 100, 4  # a further program has to save the work of so many steps
# T * T float32 in 1 MiB; DeBERTa-base's step takes 1.5 times as long for a token in rows of 528 as of 432
CACHED_LENGTH = 448


def balance(lengths: np.ndarray, rows: int) -> np.ndarray:
    """The row of each text, `[M, S]`, so that the longest row of a set is short; texts of M sets have `lengths [M, S]`.

    The largest differencing method (Karmarkar and Karp 1982): begin with a solution for each text alone, then join the
    two most uneven ones, the longest rows of one with the shortest of the other. How long the rows become does not
    depend on the order of the texts. All sets at once: a training has tens of thousands.
    """
    sets, texts = lengths.shape
    every, falling = np.arange(sets), np.argsort(-lengths, axis=1, kind="stable")
    lengths = np.take_along_axis(lengths, falling, 1)
    loads = np.zeros((sets, texts, rows), lengths.dtype)  # rows of every solution, the longest first
    loads[:, :, 0] = lengths
    spread, solution = lengths.copy(), np.tile(np.arange(texts), (sets, 1))
    row = np.zeros((sets, texts), np.int32)
    for _ in range(texts - 1):
        first = spread.argmax(1)
        spread[every, first] = -1
        second = spread.argmax(1)
        joined = loads[every, first] + loads[every, second, ::-1]
        ranked = np.argsort(-joined, axis=1, kind="stable")
        row = np.where(solution == second[:, None], rows - 1 - row, row)
        solution = np.where(solution == second[:, None], first[:, None], solution)
        row = np.where(solution == first[:, None], np.take_along_axis(np.argsort(ranked, axis=1), row, 1), row)
        loads[every, first] = np.take_along_axis(joined, ranked, 1)
        spread[every, first] = loads[every, first, 0] - loads[every, first, -1]
        spread[every, second] = -1
    return np.take_along_axis(row, np.argsort(falling, axis=1), 1)


def longest_rows(lengths: np.ndarray, rows: int) -> np.ndarray:
    """Tokens of the longest row of each step, `[K]`, its sets of texts of `lengths [K, M, S]` balanced over rows."""
    sets = lengths.reshape(-1, lengths.shape[-1])
    placed = balance(sets, rows)
    loads = np.stack([np.where(placed == row, sets, 0).sum(1) for row in range(rows)])
    return loads.max(0).reshape(len(lengths), -1).max(1)


def work(rows, row_length, width: int, platform: str):
    """What rows of T tokens cost a transformer of `width` D: T (1 + T / 4D) each.

    Attention takes T / 6D of the products of the linear maps, and more time than these for each; on a "cpu" twice as
    much again where a head's scores do not fit in the cache of a core.
    """
    slow = np.where((platform == "cpu") & (np.asarray(row_length) > CACHED_LENGTH), 2, 1)
    return rows * row_length * (1 + slow * row_length / (4 * width))


def choose_shapes(trainings: Sequence[np.ndarray], width: int, platform: str) -> np.ndarray:
    """The shapes (R, T) to compile for trainings, `[n, 2]`, n at most `MOST_SHAPES`: greedily by the work of all steps.

    Args:
      trainings: of each the tokens of the texts of each step and set, `[K, M, S]`; 0 is no text. K and M may differ.
      width: of the model, see `work`.
      platform: of the devices, see `work`; on a "cpu" compiling takes as long as few steps.
    """
    least = COMPILATION_ON_CPU if platform == "cpu" else COMPILATION
    longest, total = (
        np.concatenate([reduce(lengths).reshape(len(lengths), -1).max(1) for lengths in trainings])
        for reduce in (lambda lengths: lengths, lambda lengths: lengths.sum(-1))
    )
    needed = {
        rows: round_up(np.concatenate([longest_rows(lengths, rows) for lengths in trainings]))
        for rows in rows_worth_trying(longest, total, width, platform)
    }
    shapes = np.array([(rows, length) for rows, lengths in needed.items() for length in np.unique(lengths)])
    fits = np.stack([needed[rows] <= length for rows, length in shapes], axis=1)
    cost = np.where(fits, work(*shapes.T, width, platform), np.inf)  # of each step in each shape
    chosen, best = [], np.full(len(cost), np.inf)
    while len(chosen) < MOST_SHAPES:
        totals = np.minimum(cost, best[:, None]).sum(0)
        shape = int(np.argmin(totals))
        if chosen and best.sum() - totals[shape] < least * best.mean():
            break
        chosen.append(shape)
        best = np.minimum(best, cost[:, shape])
    return shapes[chosen]


def rows_worth_trying(longest: np.ndarray, total: np.ndarray, width: int, platform: str) -> list[int]:
    """Numbers of rows that could be the cheapest for steps of these longest texts and longest sets, both `[K]`."""
    most = int(np.ceil(total / np.maximum(longest, 1)).max())
    least = [
        work(rows, np.maximum(longest, total / rows), width, platform).sum() for rows in range(1, max(most, 1) + 1)
    ]
    return [rows for rows, bound in enumerate(least, start=1) if bound <= 1.1 * min(least)]


def round_up(lengths: np.ndarray) -> np.ndarray:
    """Row lengths that are compiled: multiples of 16."""
    return np.maximum(-(-lengths // 16) * 16, 16)


def assign(lengths: np.ndarray, shapes: np.ndarray, width: int, platform: str) -> np.ndarray:
    """The cheapest of `shapes [n, 2]` that holds the sets of each step, `[K, 2]`; `lengths` is `[K, M, S]`."""
    longest = {rows: longest_rows(lengths, rows) for rows in np.unique(shapes[:, 0])}
    fits = np.stack([longest[rows] <= length for rows, length in shapes], axis=1)
    assert fits.any(1).all(), "a step that the shapes were not chosen for"
    return shapes[np.argmin(np.where(fits, work(*shapes.T, width, platform), np.inf), axis=1)]


def rows_of(lengths: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """The row of each text in the shape of its step, as `balance` places it, `[K, M, S]`.

    Of all steps at once, which is far faster than of each for itself; `lengths` is `[K, M, S]`, `shapes` `[K, 2]`.
    """
    placed = np.zeros(lengths.shape, np.int32)
    for rows in np.unique(shapes[:, 0]):
        own = shapes[:, 0] == rows
        sets = lengths[own]
        placed[own] = balance(sets.reshape(-1, sets.shape[-1]), rows).reshape(sets.shape)
    return placed


def pack(texts: Sequence[Text], rows: np.ndarray, shape: tuple[int, int]) -> TextBatch:
    """Texts in their `rows` `[S]` of R, of T tokens each, side by side in the order of the texts."""
    columns, used = [], [0] * shape[0]
    for text, row in zip(texts, rows.tolist(), strict=True):
        columns.append(used[row] if len(text.input_ids) else 0)
        used[row] += len(text.input_ids)
    return lay_out(texts, rows, columns, shape)


def lay_out(texts: Sequence[Text], rows, columns, shape: tuple[int, int], slots: int = 0) -> TextBatch:
    """The batch of texts whose first tokens stand at `rows` and `columns` `[S]`, each in one piece.

    `slots` is how many scores are read, at least S; those beyond the texts are of the first row's first token.
    """
    read = np.zeros((2, max(slots, len(texts))), np.int32)
    read[:, : len(texts)] = rows, columns
    lengths = np.array([len(text.input_ids) for text in texts], np.int32)
    first_rows, first_columns = read[:, : len(texts)]
    assert (first_columns + lengths <= shape[1]).all(), "a text that does not fit in its row"
    positions = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
    places = np.repeat(first_rows * shape[1] + first_columns, lengths) + positions
    fields = np.zeros((4, shape[0] * shape[1]), np.int32)
    if len(places):
        fields[0, places] = np.concatenate([text.input_ids for text in texts])
        fields[1, places] = np.concatenate([text.token_type_ids for text in texts])
        fields[2, places] = np.repeat(np.arange(1, len(texts) + 1), lengths)
        fields[3, places] = positions
    return TextBatch(*fields.reshape(4, *shape), *read)


class Batch(NamedTuple):
    """Texts to score at once: S `indices` of texts, the rows and columns of their first tokens."""

    indices: list[int]
    rows: list[int]
    columns: list[int]
    shape: tuple[int, int]  # (R, T)
    slots: int  # scores to read, at least S


def plan_batches(lengths: Sequence[int], width: int, tokens_per_batch: int) -> list[Batch]:
    """Batches of all texts, the longest first: if memory does not suffice, it is known at once.

    Rows have 2^i tokens, at least a third of the model's `width` or 128: shorter ones are harder to fill and hardly
    cheaper, attention being a small part of the work. The number of rows is one of few for each T, see `parts_of`.
    """
    rows = fill_rows(lengths, shortest_row(width))
    batches = []
    for length, same in itertools.groupby(rows, key=lambda row: row[0]):
        parts = parts_of([texts for _, texts in same], max(tokens_per_batch // length, 1))
        slots = power_of_two(max(sum(map(len, part)) for _, part in parts))
        for size, part in parts:
            columns = [itertools.accumulate((lengths[i] for i in row[:-1]), initial=0) for row in part]
            numbers = [r for r, row in enumerate(part) for _ in row]
            flat = (list(itertools.chain(*own)) for own in (part, [numbers], columns))
            batches.append(Batch(*flat, (size, length), slots))
    return batches


def parts_of(rows: Sequence, most: int) -> list[tuple[int, Sequence]]:
    """(R, rows) of batches of all `rows`: R is `most`, or that over 8, 64 and so on where less than half is filled.

    Each R is a program to compile; with every power of two for the last batch it would be thrice as many.
    """
    parts, first = [], 0
    while first < len(rows):
        size = most
        while size > 1 and 2 * (len(rows) - first) < size:
            size = max(size // 8, 1)
        parts.append((size, rows[first : first + size]))
        first += size
    return parts


def shortest_row(width: int) -> int:
    """Tokens of the shortest rows that scoring fills."""
    return power_of_two(min(max(width // 3, 16), 128))


def fill_rows(lengths: Sequence[int], shortest: int, most: Callable[[int], int] = int) -> list[tuple[int, list[int]]]:
    """(T, which texts) of rows that hold all texts: the longest text left, then whatever is the longest that fits.

    T is the power of two that holds a row's first text, at least `shortest`. A row has at most `most(T)` texts.
    """
    left, rows = {}, []
    for i in np.argsort(lengths, kind="stable"):
        left.setdefault(int(lengths[i]), []).append(int(i))
    sizes = sorted(left)
    while sizes:
        row_length = max(power_of_two(sizes[-1]), shortest)
        row, room = [], row_length
        limit = most(row_length)
        while len(row) < limit and (place := bisect.bisect_right(sizes, room)):
            size = sizes[place - 1]
            row.append(left[size].pop())
            room -= size
            if not left[size]:
                del sizes[place - 1]
        rows.append((row_length, row))
    return rows


def power_of_two(n: int) -> int:
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
