"""What is predicted of a new table: the end of each series, every window of it, or each sequence."""

from __future__ import annotations

import numpy as np

from xlstm_tune.data.cut import PARTS
from xlstm_tune.data.split import Split
from xlstm_tune.data.table import Table
from xlstm_tune.data.words import count, count_were
from xlstm_tune.errors import DataError

PREDICTED = PARTS[-1]
"""The part of the split that holds the samples; the others are empty."""


def forecast_origins(table: Table, lookback: int, every: bool) -> Split:
    """A sample for the end of each series; with `every` for each row that has `lookback` rows up to itself.

    Series that are shorter give none, which a note says. Raises DataError where all of them are.
    """
    lengths = np.diff(table.offsets)
    notes: list[str] = []
    short = np.flatnonzero(lengths < lookback)
    if len(short) == len(lengths):
        which = "the series has" if len(lengths) == 1 else "the longest series has"
        raise DataError(
            f"no series is long enough: the model looks at {count(lookback, 'row')}, {which} {lengths.max()}; "
            "give more history"
        )
    if len(short):
        first = table.series_name(int(short[0]))
        notes.append(
            f"{len(short)} of {len(lengths)} series are shorter than the {lookback} rows that the model looks at and "
            f"are left out, the first: {first}"
        )
    first_rows = np.repeat(table.offsets[:-1], lengths)
    last = table.offsets[1:][lengths >= lookback]
    if not every:
        return _split(table.offsets[:-1][lengths >= lookback], last, notes)
    ends = np.flatnonzero(np.arange(len(table.time)) - first_rows + 1 >= lookback) + 1
    # A blank in the last input row was drawn towards the next known value, which is the future itself.
    peeks = table.peeks[ends - 1]
    if peeks.any():
        were = count_were(int(peeks.sum()), "window")
        notes.append(f"{were} left out because interpolation filled the last step from a later one")
        ends = ends[~peeks]
    return _split(first_rows[ends - 1], ends, notes)


def sequences(table: Table, lookback: int, whole: bool) -> Split:
    """A sample for each sequence. whole: the model takes none that is shorter than `lookback`; DataError then."""
    lengths = np.diff(table.offsets)
    if whole and (short := np.flatnonzero(lengths < lookback)).size:
        first = int(short[0])
        raise DataError(
            f"the sequence {table.series_name(first)} has {count(int(lengths[first]), 'row')}, but this model takes "
            f"{lookback} of each; give its other rows or leave it out"
        )
    return _split(table.offsets[:-1].copy(), table.offsets[1:].copy(), [])


def _split(starts: np.ndarray, ends: np.ndarray, notes: list[str]) -> Split:
    none = np.array([], dtype=np.int64)
    parts = {name: np.arange(len(ends)) if name == PREDICTED else none for name in PARTS}
    return Split(parts, starts, ends, np.array([], dtype=bool), tuple(notes))
