"""Blank cells, by the declared policy. Rows here are grouped by series and ordered in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xlstm_tune.data.columns import Columns
from xlstm_tune.data.rows import Rows, series_name
from xlstm_tune.data.words import count, count_were, listing
from xlstm_tune.errors import DataError


def forward_fill(cells: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Each blank (NaN) of float64 [R] takes the last value before it in its series; leading blanks stay blank."""
    rows = np.arange(len(cells))
    last = np.maximum.accumulate(np.where(np.isnan(cells), -1, rows))
    first = np.repeat(offsets[:-1], np.diff(offsets))
    return np.where(last >= first, cells[np.maximum(last, 0)], np.nan)


def backward_fill(cells: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Each blank takes the next value after it in its series; trailing blanks stay blank."""
    return forward_fill(cells[::-1], len(cells) - offsets[::-1])[::-1]


def interpolate(cells: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Blanks lie on the line between their neighbours by row position; the ends take the nearest value.

    A series without any value stays blank.
    """
    filled = cells.copy()
    blank = np.isnan(cells)
    for series in np.flatnonzero(np.logical_or.reduceat(blank, offsets[:-1])):
        part = slice(int(offsets[series]), int(offsets[series + 1]))
        known = np.flatnonzero(~blank[part])
        if len(known):
            holes = np.flatnonzero(blank[part])
            filled[part][holes] = np.interp(holes, known, cells[part][known])
    return filled


@dataclass(frozen=True)
class Filled:
    """Columns without blanks, and the rows that are left."""

    columns: Columns
    rows: Rows
    blank: dict[str, np.ndarray]
    """bool [R] by column: cells that were blank."""
    peeks: np.ndarray
    """bool [R]: rows with a cell that was filled from a later row."""


def without_blank_end(columns: Columns, rows: Rows, targets: Sequence[str], notes: list[str]) -> tuple[Columns, Rows]:
    """Leave out the rows behind the last one of each series that has any target, which `notes` tells.

    A series without any target keeps all its rows.
    """
    blank = np.logical_and.reduce([np.isnan(columns.cells[name]) for name in targets])
    last = np.maximum.reduceat(np.where(blank, -1, np.arange(len(blank))), rows.offsets[:-1])
    behind = np.where(last < 0, 0, rows.offsets[1:] - 1 - last)  # [S]
    if not behind.any():
        return columns, rows
    notes.append(_blank_end_note(behind, rows))
    mask = np.arange(len(blank)) < np.repeat(rows.offsets[1:] - behind, np.diff(rows.offsets))
    return columns.keep(mask), rows.keep(mask)


def _blank_end_note(behind: np.ndarray, rows: Rows) -> str:
    """behind [S]: how many rows of each series are left out."""
    cut = np.flatnonzero(behind)
    number, several = len(cut), len(behind)
    first = series_name(rows.key_names, rows.keys[int(cut[0])])
    which = f"each of {number} of {several} series, the first {first},"
    if number == several:
        which = "the series" if several == 1 else f"each of {several} series"
    elif number == 1:
        which = f"1 of {several} series ({first})"
    least, most = int(behind[cut].min()), int(behind[cut].max())
    many = count(most, "row") if least == most else f"{least} to {most} rows"
    have, are, their = ("has", "is", "its") if most == 1 else ("have", "are", "their")
    return (
        f"{many} at the end of {which} {have} no target and {are} left out, with what {their} other columns hold: "
        "forecasts begin after the last row that has a target"
    )


def fill(columns: Columns, rows: Rows, policy: str, targets: Sequence[str], notes: list[str]) -> Filled:
    """Apply the policy for blanks. targets: those among the columns.

    `notes` grows by a sentence on what was done. Raises DataError where the policy cannot help.
    """
    blank = {name: np.isnan(cells) for name, cells in columns.cells.items()}
    counts = {name: int(mask.sum()) for name, mask in blank.items() if mask.any()}
    peeks = np.zeros(len(rows.order), dtype=bool)
    if not counts:
        return Filled(columns, rows, blank, peeks)
    if policy == "error":
        name, blanks = next(iter(counts.items()))
        others = count(len(counts) - 1, "other column")
        more = f" (and there are some in {others})" if len(counts) > 1 else ""
        what = count(blanks, "blank cell") + (", the first" if blanks > 1 else "")
        raise DataError(
            f"column '{name}' has {what} in {rows.place(int(np.flatnonzero(blank[name])[0]))}{more}; "
            f"set data.missing to forward_fill, interpolate or drop"
        )
    if policy == "drop":
        return _drop(columns, rows, blank, counts, notes)
    filled = dict(columns.cells)
    for name in counts:
        if policy == "forward_fill":
            filled[name] = forward_fill(filled[name], rows.offsets)
        elif name in columns.vocabulary:
            # Between "rain" and "sun" lies nothing, so a category takes the nearest earlier value, else the next.
            filled[name] = backward_fill(forward_fill(filled[name], rows.offsets), rows.offsets)
        else:
            filled[name] = interpolate(filled[name], rows.offsets)
        left = np.flatnonzero(np.isnan(filled[name]))
        if len(left):
            _refuse(name, columns.cells[name], rows, int(left[0]), name in targets)
        if policy == "interpolate":
            numeric = name not in columns.vocabulary
            before = forward_fill(columns.cells[name], rows.offsets)
            after = backward_fill(columns.cells[name], rows.offsets)
            peeks |= blank[name] & ~np.isnan(after) & (numeric | np.isnan(before))
    were = count_were(sum(counts.values()), "blank cell")
    notes.append(f"{were} filled by data.missing: {policy} ({_by_column(counts)})")
    return Filled(Columns(filled, columns.vocabulary), rows, blank, peeks)


def _drop(
    columns: Columns, rows: Rows, blank: dict[str, np.ndarray], counts: dict[str, int], notes: list[str]
) -> Filled:
    mask = ~np.logical_or.reduce([blank[name] for name in counts])
    if not mask.any():
        raise DataError("every row has a blank cell, so data.missing: drop leaves none; exclude the emptiest columns")
    kept = rows.keep(mask)
    lost = len(rows.keys) - len(kept.keys)
    also = f", and with them {lost} of {len(rows.keys)} series or sequences" if lost else ""
    notes.append(f"{(~mask).sum()} of {len(mask)} rows were dropped for a blank cell ({_by_column(counts)}){also}")
    left = {name: cells[mask] for name, cells in columns.cells.items()}
    seen = {name: cells[mask] for name, cells in blank.items()}
    return Filled(Columns(left, columns.vocabulary), kept, seen, np.zeros(len(kept.order), dtype=bool))


def _refuse(name: str, cells: np.ndarray, rows: Rows, row: int, target: bool) -> None:
    """Say why a blank could not be filled: nothing before it, or nothing at all in its series."""
    series = rows.series_of(row)
    if np.isnan(cells[rows.offsets[series] : rows.offsets[series + 1]]).all():
        where = series_name(rows.key_names, rows.keys[series]) or "the series"
        remedy = "take that series out of the data" if target else "name it in data.exclude"
        raise DataError(
            f"{'the target' if target else 'column'} '{name}' has no value at all in {where}, so nothing can fill it; "
            f"set data.missing: drop or {remedy}"
        )
    raise DataError(
        f"column '{name}' is blank in {rows.place(row)}, before its first value, so forward_fill has nothing to carry "
        f"on; set data.missing to interpolate (takes the nearest value) or drop"
    )


def _by_column(counts: dict[str, int]) -> str:
    return listing([f"{number} in '{name}'" for name, number in counts.items()], "column")
