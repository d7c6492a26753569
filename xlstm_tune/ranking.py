"""What trials are scored by, which of them have a score, and which is best: for training, tables and reports alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Row = TypeVar("Row", bound=Mapping[str, Any])
METRICS: tuple[str, ...] = ("rmse", "mae", "mse_standardised", "mae_standardised")
"""Of each part of the data, as `training.metrics` has them; all are better when smaller."""
SCORED = ("completed", "pruned")
"""How trials end whose best epoch counts. Duplicates have the score of another; what failed has none."""


def has_score(row: Mapping[str, Any], objective: str) -> bool:
    """Whether a row of the trials table has one. objective: with its `val_`."""
    return row["status"] in SCORED and row[objective] is not None


def scored(rows: Iterable[Row], objective: str) -> list[Row]:
    """The rows of the trials table that have a score, the best first, of equal ones the one that began first."""
    found = [row for row in rows if has_score(row, objective)]
    return sorted(found, key=lambda row: (row[objective], row["trial"]))
