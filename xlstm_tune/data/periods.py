"""Which part each sequence of a regression belongs to in time: whole periods, or values of a column of its key.

A sequence spans the time from its first row to its last; S sequences.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from xlstm_tune.data.clock import parse_moment, to_nanoseconds
from xlstm_tune.data.config import SplitConfig
from xlstm_tune.data.cut import NOUNS, PARTS, Cut, cut_time
from xlstm_tune.data.table import Table
from xlstm_tune.errors import DataError

_PARTED = re.compile(r"\d{4}[_-]?[Ww]?\d{1,2}")
"""A year and a week or month of it, such as 2006_1."""


def moment_position(text: str, stamps: np.ndarray, table: Table) -> int:
    """Number of the first of the sorted `stamps` at or after a moment written in the search file; ValueError."""
    position = int(np.searchsorted(stamps, parse_moment(text, table.time_kind)))
    if position == len(stamps):
        last = table.time_label(int(np.argmax(table.time)))
        raise ValueError(f"'{text}' is after the last time stamp, {last}; give a moment inside the data")
    return position


def note_left_out(cut: Cut, unit: str, notes: list[str]) -> None:
    """Say what lies outside all parts."""
    if cut.left_out:
        notes.append(f"{cut.left_out} of {cut.total} {unit} lie outside all three parts and are left out")


def sequence_parts(table: Table, split: SplitConfig, notes: list[str]) -> np.ndarray:
    """Part of each sequence, int8 [S], -1 none: nothing of a part is over before all of the part before it is.

    Raises DataError when the sequences do not follow each other, or a part would be empty.
    """
    if split.order is not None:
        return _by_values(table, split, split.order, notes)
    names = ", ".join(table.key_names)
    remedy = f"name an ordered one of data.sequence ({names}) in data.split.order, or split by whole groups of them"
    if table.time_kind == "order":
        raise DataError(
            f"data.split.by: time needs the time of each sequence, but data.time is not set; name the date column in "
            f"data.time, {remedy}"
        )
    first, last = spans(table)
    if len(first) > 1 and first.max() <= last.min():
        moment = table.time_label(int(table.offsets[int(np.argmax(first))]))
        raise DataError(
            f"data.split.by: time cannot tell earlier sequences from later ones, because all {len(first)} of them have "
            f"rows around the same time ({moment}), as where the time is a day of the year; {remedy}"
        )
    period = periods_of(first, last)
    sizes = np.bincount(period)
    if len(sizes) < len(PARTS) or (sizes.max() > len(first) / 2 and not _share_a_moment(first, last, period)):
        return _by_ends(table, split, first, last, notes)
    ends = np.maximum.reduceat(last[np.argsort(period, kind="stable")], np.cumsum(sizes) - sizes)
    cut = cut_time(split, len(ends), lambda text: moment_position(text, ends, table), "periods of sequences")
    note_left_out(cut, "periods of sequences", notes)
    return cut.part_of(period)


def spans(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """First and last stamp of each sequence, int64 [S]."""
    return table.time[table.offsets[:-1]], table.time[table.offsets[1:] - 1]


def periods_of(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Number of the period of each sequence, int64 [S], in the order of time.

    Sequences whose spans overlap are in one period, and so are those that others between them join.
    """
    order = np.argsort(first, kind="stable")
    over = np.maximum.accumulate(last[order])
    begins = np.concatenate([[False], first[order][1:] > over[:-1]])
    period = np.empty(len(first), dtype=np.int64)
    period[order] = np.cumsum(begins)
    return period


def _share_a_moment(first: np.ndarray, last: np.ndarray, period: np.ndarray) -> bool:
    """Whether the sequences of the largest period all overlap each other."""
    mine = period == np.bincount(period).argmax()
    return bool(first[mine].max() <= last[mine].min())


def _by_ends(table: Table, split: SplitConfig, first: np.ndarray, last: np.ndarray, notes: list[str]) -> np.ndarray:
    """Sequences that overlap all along, such as a month before each day: cut between their ends.

    Those that had begun when the part before was not over are in no part.
    """
    unit = "distinct ends of sequences"
    stamps, position = np.unique(last, return_inverse=True)
    cut = cut_time(split, len(stamps), lambda text: moment_position(text, stamps, table), unit)
    note_left_out(cut, unit, notes)
    part = cut.part_of(position)
    across = np.zeros(len(part), dtype=bool)
    for number in (1, 2):
        across |= (part >= number) & (first <= stamps[cut.bounds[number] - 1])
    lost = int(across.sum())
    if lost > len(part) / 2:
        raise DataError(
            f"data.split.by: time finds no moment to cut at: {lost} of {len(part)} sequences begin in one part and end "
            f"in another; make the sequences shorter, name an ordered one of data.sequence in data.split.order, or "
            f"split by whole groups of them"
        )
    if lost:
        notes.append(
            f"{lost} of {len(part)} sequences begin in one part and end in a later one and are left out, because the "
            f"sequences overlap in time"
        )
    kept = np.where(across, -1, part).astype(np.int8)
    for number, name in enumerate(PARTS):
        if not (kept == number).any():
            raise DataError(
                f"data.split leaves no sequence for the {NOUNS[name]} part, because all of its sequences begin before "
                f"the part before it is over; make the part larger"
            )
    return kept


def _by_values(table: Table, split: SplitConfig, name: str, notes: list[str]) -> np.ndarray:
    values, parse = ordered_values(table, name)
    distinct, position = np.unique(values, return_inverse=True)
    unit = f"values of '{name}'"
    for part in PARTS:
        size = getattr(split, part)
        if isinstance(size, int) and size > len(distinct):
            raise DataError(
                f"data.split.{part}: {size} is how many {unit} the part has, and there are {len(distinct)}; for the "
                f"value where the part begins write '{size}' in quotes"
            )

    def begin(text: str) -> int:
        place = int(np.searchsorted(distinct, parse(text)))
        if place == len(distinct):
            largest = table.keys[int(np.argmax(values))][table.key_names.index(name)]
            raise ValueError(f"'{text}' is after the last value of '{name}', {largest}; give one inside the data")
        return place

    cut = cut_time(split, len(distinct), begin, unit)
    note_left_out(cut, unit, notes)
    return cut.part_of(position)


def ordered_values(table: Table, name: str) -> tuple[np.ndarray, Callable[[str], float]]:
    """What orders the sequences by a column of their keys, float64 or int64 [S], and how to read such a value.

    Raises DataError where they are neither numbers nor ISO dates.
    """
    column = table.key_names.index(name)
    texts = [key[column] for key in table.keys]
    try:
        values = np.array([_number(text, name) for text in texts])
    except ValueError:
        pass
    else:
        return values, lambda text: _number(text, name)
    try:
        return to_nanoseconds(pa.chunked_array([texts])), lambda text: parse_moment(text, "date")
    except pa.ArrowException:
        odd = next((text for text in texts if not _is_date(text)), texts[0])
        remedy = "name another column of data.sequence"
        if _PARTED.fullmatch(odd):
            remedy = f"write weeks and months as numbers of as many digits, such as 200601, or {remedy}"
        raise DataError(
            f"data.split.order: '{odd}' in column '{name}' is neither a number nor an ISO date, so its values have no "
            f"order; {remedy}"
        ) from None


def _number(text: str, name: str) -> float:
    try:
        # Python passes over underscores: 2006_10 would be 200610, and later than 2007_1, 20071.
        value = float(text.replace("_", "?"))
    except ValueError:
        raise ValueError(f"'{text}' is not a number, as the values of '{name}' are") from None
    if not np.isfinite(value):
        raise ValueError(f"'{text}' is not a finite number")
    return value


def _is_date(text: str) -> bool:
    try:
        to_nanoseconds(pa.chunked_array([[text]]))
    except pa.ArrowException:
        return False
    return True
