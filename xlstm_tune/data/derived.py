"""Inputs that give a regression's target away: columns such as a rate, which were made of it.

R rows, S sequences, K targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from xlstm_tune.data.columns import column_of
from xlstm_tune.data.table import Table
from xlstm_tune.data.words import listing

_CLOSE = 0.99
"""Rank correlation with the target from which an input is told of."""
_FEWEST = 10
"""Sequences that are enough to tell."""


def derived_notes(table: Table) -> list[str]:
    """A sentence on inputs that are constant within each sequence and order the sequences as a target does, at most one
    for each target."""
    notes = []
    inputs = list(_constant_inputs(table))
    for name, values, seen in zip(table.target_names, table.targets.T, table.observed.T, strict=True):
        if seen.sum() < _FEWEST:
            continue
        mine = _ranks(values[seen])
        alike = []
        for one, cells in inputs:
            theirs = _ranks(cells[seen])
            if mine.std() and theirs.std() and abs(correlation := np.corrcoef(mine, theirs)[0, 1]) >= _CLOSE:
                alike.append(f"'{one}' (rank correlation {correlation:.3f})")
        if alike:
            follow = "is an input that follows" if len(alike) == 1 else "are inputs that follow"
            notes.append(
                f"{listing(alike, 'input')} {follow} the target '{name}' from sequence to sequence; what was made of "
                "it gives it away, so name that in data.exclude"
            )
    return notes


def _constant_inputs(table: Table) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values [S] of inputs that have one value in each sequence; values of categories are left out."""
    for column, name in enumerate(table.features):
        if column not in table.one_hot and (values := _constant(table, column)) is not None:
            yield name, values
    for column, name in enumerate(table.static.names):
        if column not in table.static.one_hot:
            yield name, table.static.values[:, column]


def fixed_inputs(table: Table, categories: Sequence[str]) -> list[str]:
    """Columns among the inputs, categories too, that differ from series to series and never change within one."""
    differing: dict[str, bool] = {}
    changing: set[str] = set()
    for column, feature in enumerate(table.features):
        name = column_of(feature, categories) if column in table.one_hot else feature
        if name in changing:
            continue
        if (values := _constant(table, column)) is None:
            changing.add(name)
        else:
            differing[name] = differing.get(name, False) or bool((values != values[0]).any())
    return [name for name, differs in differing.items() if differs and name not in changing]


def _constant(table: Table, column: int) -> np.ndarray | None:
    """What an input is in each sequence or series, [S]; None where it changes within one."""
    cells, first = table.cells(column), table.offsets[:-1]
    low: np.ndarray = np.minimum.reduceat(cells, first)
    return low if (low == np.maximum.reduceat(cells, first)).all() else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Places in order; equal values share the middle of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    shared: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return shared
