"""What there is to say of the season of a forecast's series: whether training sees all of it, and is it the right one.

R rows, K targets.
"""

from __future__ import annotations

from itertools import count
from math import gcd

import numpy as np

from xlstm_tune.data.clock import Kind, season_of
from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.table import Table

WEEK = 7
"""Days."""
LEAST_PAIRS = 3
"""Seasons that the training part has to hold before a longer one is looked at."""
BETTER = 0.9
"""Times the error of the season at hand, below which another one is worth a word."""


def stride_notes(config: DataConfig, season: int) -> list[str]:
    """A sentence where training windows begin at few steps of the season, while those of validation begin at all."""
    common = gcd(config.stride, season)
    if config.task != "forecast" or season == 1 or (common <= 2 and common < season):
        return []
    where = f"at {season // common} of the {season} steps of the season"
    if common == season:
        where = f"at the same point of the season of {season} steps"
    whole = next(stride for stride in count(config.stride + 1) if gcd(stride, season) == 1)
    return [
        f"with data.stride {config.stride} every training window of a series begins {where}, while validation and test "
        f"begin at all: models and the linear baselines see no other; data.stride {whole} would show them all"
    ]


def season_notes(table: Table, train_rows: np.ndarray, config: DataConfig, season: int) -> list[str]:
    """A sentence where a week of the rows of a day would be a stronger seasonal naive baseline than a day.

    train_rows: bool [R], what may be learnt from.
    """
    if config.task != "forecast" or config.season is not None or not _within_a_day(table.step, table.time_kind):
        return []
    week = season * WEEK
    day_off, week_off = (_off(table, train_rows, length) for length in (season, week))
    if day_off is None or week_off is None or week_off >= BETTER * day_off:
        return []
    return [
        f"in the training part values resemble those of a week before more than those of a day before (they differ by "
        f"{100 * (1 - week_off / day_off):.0f}% less): data.season: {week} would make a stronger seasonal naive "
        "baseline than the day's"
    ]


def _within_a_day(step: int | None, kind: Kind) -> bool:
    """Whether the season that a time step suggests is a day of many rows."""
    return season_of(step, kind) > 1 and kind == "date" and step is not None and step < 86_400 * 10**9


def _off(table: Table, train_rows: np.ndarray, length: int) -> float | None:
    """Mean |y_t − y_{t−length}| over training rows of one series, each target by its own deviation; None of too few."""
    rows = np.flatnonzero(train_rows)
    first = table.offsets[np.searchsorted(table.offsets, rows, side="right") - 1]
    rows = rows[(rows - length >= first) & train_rows[np.maximum(rows - length, 0)]]
    if len(rows) < LEAST_PAIRS * length:
        return None
    spread = table.targets[train_rows].std(0)
    change = np.abs(table.targets[rows] - table.targets[rows - length]).mean(0)
    return float((change / np.where(spread > 0, spread, 1.0)).mean())
