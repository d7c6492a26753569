"""The least value of a target: whether a table keeps to it, and whether one is missing.

R rows, N samples, K targets.
"""

from __future__ import annotations

import numpy as np

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.table import Table
from xlstm_tune.data.words import listing
from xlstm_tune.errors import DataError


def check_minimum(table: Table, config: DataConfig) -> list[str]:
    """A sentence on targets that are counts, as far as one can see, and have no minimum; at most one.

    Raises DataError for a target below `data.target_minimum`.
    """
    counts = []
    for name, values, seen in zip(table.target_names, table.targets.T, table.observed.T, strict=True):
        given = values[seen]
        if config.target_minimum is None:
            # A forecast lies within two deviations of the mean for the most part.
            if len(given) and given.min() >= 0 and not (given % 1).any() and given.mean() < 2 * given.std():
                counts.append(f"'{name}'")
            continue
        # A column of float32 holds the minimum as it can.
        low = np.flatnonzero(values < min(config.target_minimum, float(np.float32(config.target_minimum))))
        if len(low):
            more = f", as {len(low) - 1:,} more are" if len(low) > 1 else ""
            raise DataError(
                f"the target '{name}' is {values[low[0]]:g} {_place(table, config, int(low[0]))}, below "
                f"data.target_minimum of {config.target_minimum:g}{more}; mend the value, or lower the minimum or "
                "leave it out"
            )
    if not counts:
        return []
    verb = "holds" if len(counts) == 1 else "hold"
    return [
        f"{listing(counts, 'target')} {verb} whole numbers, none below zero; with data.target_minimum: 0 no forecast "
        "goes below it either"
    ]


def _place(table: Table, config: DataConfig, at: int) -> str:
    """Where a target stands, of row or sequence `at`."""
    if config.task == "regression":
        return f"in the sequence {table.series_name(at)}"
    key = table.series_name(int(np.searchsorted(table.offsets, at, side="right")) - 1)
    where = f"in row {table.time_label(at)}" if table.labels is None else f"at {table.time_label(at)}"
    return f"{where} of {key}" if key else where
