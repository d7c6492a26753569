"""The rows of a file in the order of the table: grouped by series, ordered in time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np

from xlstm_tune.data.clock import cell
from xlstm_tune.data.columns import text_codes
from xlstm_tune.data.read import Source
from xlstm_tune.data.roles import Roles
from xlstm_tune.errors import DataError


@dataclass(frozen=True)
class Rows:
    """Rows of the file in the order of the table."""

    source: Source
    order: np.ndarray
    """int64 [R]: row of the file of each row of the table."""
    offsets: np.ndarray
    """int64 [S + 1]: first row of each series, and the end."""
    keys: tuple[tuple[str, ...], ...]
    key_names: tuple[str, ...]
    kept: np.ndarray
    """int64 [S]: the number that each series had before rows were last dropped."""

    def where(self, row: int) -> str:
        """The row as the file counts it."""
        return self.source.where(int(self.order[row]))

    def series_of(self, row: int) -> int:
        """Number of the series that a row is in."""
        return int(np.searchsorted(self.offsets, row, side="right")) - 1

    def place(self, row: int) -> str:
        """`row 3` with the name of its series where there is one."""
        name = series_name(self.key_names, self.keys[self.series_of(row)])
        return f"{self.where(row)} ({name})" if name else self.where(row)

    def keep(self, mask: np.ndarray) -> Rows:
        """Only the rows of `mask`; series that lose all their rows are gone."""
        counts = np.add.reduceat(mask, self.offsets[:-1], dtype=np.int64)
        kept = np.flatnonzero(counts)
        offsets = np.concatenate([[0], np.cumsum(counts[kept])])
        keys = tuple(self.keys[series] for series in kept)
        return replace(self, order=self.order[mask], offsets=offsets, keys=keys, kept=kept)


def series_name(names: Sequence[str], key: Sequence[str]) -> str:
    """A series in words, such as `county=Pima, year=2006`; empty without key columns."""
    return ", ".join(f"{name}={value}" for name, value in zip(names, key, strict=True)) if names else ""


def group_rows(source: Source, names: Sequence[str], role: str) -> tuple[np.ndarray, tuple[tuple[str, ...], ...]]:
    """Which series each row belongs to, int64 [R] in order of first appearance, and the key of each series."""
    rows = source.table.num_rows
    if not names:
        return np.zeros(rows, dtype=np.int64), (("all",),)
    combined = np.zeros(rows, dtype=np.int64)
    values = []
    for name in names:
        codes, texts = text_codes(source, name)
        if "" in texts:
            row = int(np.flatnonzero(codes == texts.index(""))[0])
            raise DataError(f"column '{name}' of {role} is blank in {source.where(row)}; every row needs its {role}")
        # Renumbered after each column, so that the product of several never overflows.
        combined = np.unique(combined * len(texts) + codes, return_inverse=True)[1].astype(np.int64)
        values.append((codes, texts))
    _, first, inverse = np.unique(combined, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    keys = tuple(tuple(texts[int(codes[row])] for codes, texts in values) for row in first[order])
    return rank[inverse], keys


def arrange(source: Source, roles: Roles, forecast: bool, stamps: np.ndarray, notes: list[str]) -> Rows:
    """Group the rows by series and order them in time; two rows of one moment are refused."""
    role = "data.series" if forecast else "data.sequence"
    group, keys = group_rows(source, roles.keys, role)
    order = np.lexsort((stamps, group))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=len(keys)))]).astype(np.int64)
    rows = Rows(source, order, offsets, keys, roles.keys, np.arange(len(keys)))
    time, series = stamps[order], group[order]
    same = series[1:] == series[:-1]
    twice = np.flatnonzero(same & (time[1:] == time[:-1]))
    if len(twice) and roles.time is not None:
        first = int(twice[0])
        stamp = cell(source.table.column(roles.time), int(order[first]))
        name = series_name(roles.keys, keys[int(series[first])])
        # lexsort is stable, so the earlier row of the file comes first.
        places = f"{rows.where(first)} and {rows.where(first + 1)}"
        apart = f"remove one, or name the columns that tell series apart in {role}"
        remedy = "remove one of them" if roles.keys else apart
        if _repeated_by_a_clock_change(stamp):
            remedy = f"if a clock change repeats this hour, give times their offset ({stamp}+02:00), else {remedy}"
        subject = f"the {'series' if forecast else 'sequence'} {name} has two rows" if name else "two rows stand"
        raise DataError(f"{subject} for '{stamp}' in column '{roles.time}' ({places}); {remedy}")
    moved = series[1:][same & (order[1:] < order[:-1])]
    if len(moved):
        count = len(np.unique(moved))
        what = f" in {count} of {len(keys)} series" if forecast and len(keys) > 1 else ""
        what = f" in {count} of {len(keys)} sequences" if not forecast else what
        notes.append(f"the rows were not in the order of '{roles.time}'{what} and were sorted by it")
    return rows


def _repeated_by_a_clock_change(stamp: str) -> bool:
    """Whether a time without an offset may be one of the hours, on a Sunday night, that clocks show twice a year."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)[ T]0[0-3]:\d\d(:\d\d(\.\d+)?)?", stamp)
    try:
        return found is not None and date.fromisoformat(found[1]).weekday() == 6
    except ValueError:  # written in a format of its own, with the day before the month
        return False
