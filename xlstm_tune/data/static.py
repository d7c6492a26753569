"""Inputs that a series or sequence has once, such as a county's size: read from columns that do not change within it.

S series or sequences, C static inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xlstm_tune.data.columns import category_codes, numbers
from xlstm_tune.data.roles import Roles
from xlstm_tune.data.rows import Rows, series_name
from xlstm_tune.errors import DataError


@dataclass(frozen=True)
class Static:
    """In the columns' own units."""

    values: np.ndarray
    """[S, C] float64; C = 0 without `data.static`."""
    names: tuple[str, ...]
    """C names; `zone=dry` for a value of a category."""
    one_hot: tuple[int, ...]
    """Which of them are one value of a category."""


def read_static(rows: Rows, roles: Roles) -> Static:
    """The columns of `data.static`. A blank cell takes the value of the others of its series.

    Raises DataError where a column changes within a series, or has no value at all in one.
    """
    values: list[np.ndarray] = []
    names: list[str] = []
    one_hot: list[int] = []
    for name in roles.static:
        if name in roles.categories:
            codes, texts = category_codes(rows.source, name)
            mine = _one_per_series(name, codes[rows.order], rows).astype(np.int64)
            one_hot += range(len(names), len(names) + len(texts))
            names += [f"{name}={text}" for text in texts]
            values.append(np.eye(len(texts))[mine])
        else:
            names.append(name)
            values.append(_one_per_series(name, numbers(rows.source, name, False)[rows.order], rows)[:, None])
    stacked = np.concatenate(values, axis=1) if values else np.empty((len(rows.keys), 0))
    return Static(stacked, tuple(names), tuple(one_hot))


def _one_per_series(name: str, cells: np.ndarray, rows: Rows) -> np.ndarray:
    """[S] the one value of each series of cells [R] (NaN where blank)."""
    low = np.fmin.reduceat(cells, rows.offsets[:-1])
    blank = np.flatnonzero(np.isnan(low))
    if len(blank):
        first = series_name(rows.key_names, rows.keys[int(blank[0])])
        more = f" and {len(blank) - 1} more" if len(blank) > 1 else ""
        raise DataError(
            f"the static column '{name}' has no value at all in {first}{more}; fill it in or name it in data.exclude"
        )
    varied = np.flatnonzero(low < np.fmax.reduceat(cells, rows.offsets[:-1]))
    if len(varied):
        start, end = int(rows.offsets[varied[0]]), int(rows.offsets[varied[0] + 1])
        known = start + np.flatnonzero(~np.isnan(cells[start:end]))
        other = int(known[np.flatnonzero(cells[known] != cells[known[0]])[0]])
        raise DataError(
            f"the static column '{name}' changes within {series_name(rows.key_names, rows.keys[int(varied[0])])} "
            f"({rows.where(int(known[0]))} and {rows.where(other)} differ); take it out of data.static to make it an "
            f"input of every step"
        )
    return low
