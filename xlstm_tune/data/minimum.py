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
        low = np.flatnonzero(values < config.target_minimum)
        if len(low):
            where = (
                f"row {table.file_rows[low[0]] + 1} of the data"
                if config.task == "forecast"
                else f"the sequence {table.series_name(int(low[0]))}"
            )
            raise DataError(
                f"the target '{name}' is {values[low[0]]:g} in {where}, below data.target_minimum of "
                f"{config.target_minimum:g}; mend the value, or lower the minimum or leave it out"
            )
    if not counts:
        return []
    verb = "holds" if len(counts) == 1 else "hold"
    return [
        f"{listing(counts, 'target')} {verb} whole numbers, none below zero; with data.target_minimum: 0 no forecast "
        "goes below it either"
    ]
