"""Values so far from all others of a column that they may be no measurements: typing errors, codes for blanks."""

from __future__ import annotations

import numpy as np

from xlstm_tune.data.words import count, listing

_FAR = 50.0
"""Deviations from the mean beyond which a single value is told of."""
_ALIEN = 1000.0
"""Deviations of the training part from its mean beyond which a value outside of it is told of."""
_APART = 5.0
"""Times the range of all others that a repeated value lies away from them where it may stand for a blank."""
_NINES_APART = 0.5
"""The same of one that is written with nines alone, such as -999 and 99.9, as blanks of station data are."""
_FEW = 10
"""Distinct values, at most, of what is rather a code or a state than a measurement."""


class Extremes:
    """What is told of columns, of their training part above all, gathered column by column."""

    def __init__(self) -> None:
        self._codes: list[str] = []
        self._lone: list[str] = []
        self._alien: list[str] = []

    def look(self, name: str, cells: np.ndarray, mean: float, std: float, rows: np.ndarray | None = None) -> None:
        """At the float64 cells [n] of one column.

        rows: their rows in the data, from 0; None for the targets of a regression, one of a sequence.
        """
        if (code := _code(cells)) is not None:
            value, times, low, high = code
            where = count(times, "sequence" if rows is None else "row")
            self._codes.append(f"'{name}' is {value:g} in {where} and {low:g} to {high:g} in all others")
        elif rows is not None and (far := _lone(cells, mean, std)) is not None:
            self._lone.append(f"'{name}' {cells[far]:g} in row {int(rows[far]) + 1} of the data")

    def look_outside(
        self, name: str, cells: np.ndarray, mean: float, std: float, rows: np.ndarray | None = None
    ) -> None:
        """At the cells [n] of the other parts, NaN where there is none. mean, std: of the training part."""
        away = np.nan_to_num(np.abs(cells - mean) / std)
        if len(away) and away.max() > _ALIEN:
            far = int(away.argmax())
            where = "a sequence" if rows is None else f"row {int(rows[far]) + 1} of the data"
            self._alien.append(f"'{name}' {cells[far]:g} in {where}")

    def notes(self) -> list[str]:
        """A sentence for each kind."""
        told = []
        if self._codes:
            told.append(
                f"in the training part {listing(self._codes, 'column')}; if that stands for a blank, leave such cells "
                "empty and set data.missing"
            )
        if self._lone:
            lie = "a value lies" if len(self._lone) == 1 else "values lie"
            told.append(
                f"{lie} so far from the rest of the training part that it hides how the rest differs: "
                f"{listing(self._lone, 'column')}; mend what is wrong"
            )
        if self._alien:
            lie = "a value lies" if len(self._alien) == 1 else "values lie"
            told.append(
                f"outside of the training part {lie} more than {_ALIEN:,.0f} of its deviations away, which decides all "
                f"figures of the part that it is in: {listing(self._alien, 'column')}; mend what is wrong"
            )
        return told


def _code(cells: np.ndarray) -> tuple[float, int, float, float] | None:
    """What may stand for a blank: the value, how often it comes, and the range of all others; None where nothing does.

    It is the lowest or the highest value, and lies apart from all others, which differ.
    """
    for value in (cells.min(), cells.max()):
        others = cells != value
        times = len(cells) - int(others.sum())
        if times == len(cells):
            return None
        low, high = cells.min(where=others, initial=np.inf), cells.max(where=others, initial=-np.inf)
        away, width = max(low - value, value - high), high - low
        if not width:
            continue
        if _nines(value):
            fewest = 3 if value > 0 else 2  # a count of 99 may be just that
            apart = away > _NINES_APART * width or value < 0 <= low
            told = apart and (times > 1 or len(_digits(value)) >= fewest)
        else:  # what comes again and again far from numbers of many values; of few, and at 0, it is rather a state
            told = times > 1 and value != 0 and away > _APART * width and len(np.unique(cells[others])) > _FEW
        if told:
            return float(value), times, float(low), float(high)
    return None


def _nines(value: float) -> bool:
    """Whether it is written with nines alone, as 99, -99.9 and 9999 are."""
    return abs(value) >= 99 and set(_digits(value)) == {"9"}


def _digits(value: float) -> str:
    return f"{abs(value):g}".replace(".", "")


def _lone(cells: np.ndarray, mean: float, std: float) -> int | None:
    """Place of the cell that lies furthest from the mean, where it drowns the others; None where none does.

    Of n cells none can lie more than √(n - 1) deviations away; where one nearly does, the others hardly differ beside
    it. Where they do not differ at all, as in a column of zeros with one event, it is all that the column says.
    """
    far = int(np.abs(cells - mean).argmax())
    away = abs(cells[far] - mean) / std
    if away <= min(_FAR, np.sqrt(0.999 * (len(cells) - 1))):
        return None
    others = np.delete(cells, far)
    return far if len(others) and others.min() < others.max() else None
