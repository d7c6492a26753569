"""Where in the year, the week and the day a row stands, as inputs that a model can use.

Each cycle becomes two columns, sine and cosine of its phase, so that its end lies next to its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xlstm_tune.data.clock import Kind
from xlstm_tune.data.weeks import WEEKS
from xlstm_tune.errors import DataError

_DAY = 86_400 * 1_000_000_000
_YEAR_DAYS = 365.2425
_MONDAY = 4  # 1970-01-05, in days since 1970


def cycle_names(cycles: Sequence[str]) -> dict[str, str]:
    """The columns that are made of these cycles, in their order, and the cycle of each."""
    return {f"{cycle}_{wave}": cycle for cycle in cycles for wave in ("sin", "cos")}


def cycle_columns(time: np.ndarray, kind: Kind, cycles: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """[R, 2 × cycles] float32 in -1..1 and the columns' names.

    time: int64 [R] stamps of `kind`: nanoseconds since 1970 or consecutive weeks.
    cycles: of `year`, `week`, `day`.
    Raises DataError where the time column cannot tell: row order, or a week or day asked of weekly data.
    """
    columns: list[np.ndarray] = []
    names: list[str] = []
    for cycle in cycles:
        phase = 2 * np.pi * _share(time, kind, cycle)
        columns += [np.sin(phase), np.cos(phase)]
        names += cycle_names([cycle])
    return np.stack(columns, axis=1).astype(np.float32), tuple(names)


def _share(time: np.ndarray, kind: Kind, cycle: str) -> np.ndarray:
    """[R] float64: how much of the cycle has passed; whole numbers do not matter."""
    if kind == "order":
        raise DataError(f"data.calendar: {cycle} needs the date of each row; name the time column in data.time")
    if kind in WEEKS:
        if cycle != "year":
            raise DataError(f"data.calendar: {cycle} cannot be told from weeks; only 'year' can")
        return time * 7 / _YEAR_DAYS
    # In two parts: float64 of nanoseconds since 1970 would lose a quarter of a microsecond.
    days = time // _DAY + (time % _DAY) / _DAY
    if cycle == "year":
        return days / _YEAR_DAYS
    return (days - _MONDAY) / 7 if cycle == "week" else days % 1
