"""Several texts in one row, so that a training step computes few tokens of padding."""

from collections.abc import Sequence

import numpy as np

from scpo_jax.data.encoding import Text, ladder_length
from scpo_jax.models.module import TextBatch

SHORTEST_ROW = 128  # shorter rows cannot be filled well; longer ones cost more in attention
ROW_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # R is one of these, so that few programs are compiled


def pack_batch(texts: Sequence[Text]) -> TextBatch:
    """All texts in rows of one length, each text in one piece; rows and columns say where text s begins, `[S]`."""
    length = ladder_length(max(SHORTEST_ROW, *(len(text.input_ids) for text in texts)))
    rows = fill_rows([len(text.input_ids) for text in texts], length)
    size = next((count for count in ROW_COUNTS if count >= len(rows)), len(rows))
    batch = TextBatch(*(np.zeros((size, length), np.int32) for _ in range(4)), *np.zeros((2, len(texts)), np.int32))
    for row, members in enumerate(rows):
        start = 0
        for segment, s in enumerate(members, start=1):
            end = start + len(texts[s].input_ids)
            batch.input_ids[row, start:end] = texts[s].input_ids
            batch.token_type_ids[row, start:end] = texts[s].token_type_ids
            batch.segment_ids[row, start:end] = segment
            batch.positions[row, start:end] = np.arange(end - start)
            batch.rows[s], batch.columns[s] = row, start
            start = end
    return batch


def fill_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Which texts share a row: first-fit decreasing, the longest first, each in the first row with room."""
    rows, room = [], []
    for s in sorted(range(len(lengths)), key=lambda s: -lengths[s]):
        row = next((row for row, left in enumerate(room) if left >= lengths[s]), None)
        if row is None:
            rows.append([])
            room.append(row_length)
            row = len(rows) - 1
        rows[row].append(s)
        room[row] -= lengths[s]
    return rows
