"""Batches of few fixed shapes: whatever a service is asked, it has compiled the programs before.

T tokens a row, R rows, S texts whose scores are read. Rows have the lengths that offline scoring uses; a batch is full,
or a fourth, a 16th or a 32nd of that; its rows of the shortest kind are read at many places or at few, the longer ones,
which hold long texts, at few.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scpo_jax.data import packing
from scpo_jax.data.packing import Batch

PARTS = (1, 4, 16, 32)  # of a full batch
DENSE, SPARSE = 8, 32  # tokens for each score that is read, in rows of the shortest kind


class Shapes(NamedTuple):
    """What is compiled."""

    rows: dict[int, list[int]]  # T -> every R, falling
    shortest: int  # T

    @property
    def longest(self) -> int:
        """T, and so the tokens of a text at most."""
        return max(self.rows)

    def every(self) -> list[tuple[tuple[int, int], int]]:
        """All ((R, T), S)."""
        return [((r, t), r * per_row) for t, rows in self.rows.items() for r in rows for per_row in self.reads(t)]

    def reads(self, row_length: int) -> list[int]:
        """Numbers of texts of a row whose scores are read, rising. Each costs the last layer attention to the row."""
        if row_length > self.shortest:
            return [2 * row_length // self.shortest]
        return sorted({max(row_length // density, 1) for density in (SPARSE, DENSE)})

    def most(self, row_length: int) -> int:
        """Texts in a row at most."""
        return self.reads(row_length)[-1]


def choose(width: int, max_length: int, tokens: int) -> Shapes:
    """Shapes for a model of `width` and texts of at most `max_length` tokens in batches of about `tokens` tokens."""
    shortest = packing.shortest_row(width)
    longest = max(packing.power_of_two(max_length), shortest)
    lengths = [shortest << i for i in range((longest // shortest).bit_length())]
    return Shapes({t: sorted({max(tokens // t // part, 1) for part in PARTS}, reverse=True) for t in lengths}, shortest)


def plan_steps(lengths: Sequence[int], shapes: Shapes, devices: int) -> list[list[Batch]]:
    """Steps of a batch for each device, the batches of a step of one shape, that hold all texts; the longest first."""
    filled, steps = packing.fill_rows(lengths, shapes.shortest, shapes.most), []
    for length, same in itertools.groupby(filled, key=lambda row: row[0]):
        rows = [texts for _, texts in same]
        while rows:
            size = _size(-(-len(rows) // devices), shapes.rows[length])
            parts = [rows[i * size : (i + 1) * size] for i in range(devices)]
            rows = rows[devices * size :]
            texts = max(sum(map(len, part)) for part in parts)
            slots = next(size * reads for reads in shapes.reads(length) if texts <= size * reads)
            steps.append([_batch(part, lengths, (size, length), slots) for part in parts])
    return steps


def _size(rows: int, sizes: Sequence[int]) -> int:
    """Rows of the next batch for so many rows: the most that leave less than a quarter of the batch empty."""
    return next((size for size in sizes if 4 * rows > 3 * size), sizes[-1])


def _batch(rows: Sequence[Sequence[int]], lengths: Sequence[int], shape: tuple[int, int], slots: int) -> Batch:
    columns = [np.cumsum([0, *(lengths[i] for i in row[:-1])]) for row in rows]
    numbers = [number for number, row in enumerate(rows) for _ in row]
    return Batch(list(itertools.chain(*rows)), numbers, [int(c) for own in columns for c in own], shape, slots)
