"""Intervals around forecasts, from what a model was off by on validation: of each series by itself where that will do.

n validation samples, H horizon steps, K targets, S series of the search, M series that are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from xlstm_tune.data.table import Table

Array = npt.NDArray[np.float64]


def rank_of(n: int, level: float) -> int:
    """Of the residual that bounds an interval, from 1; above n where n residuals are too few to promise `level`."""
    return max(int(np.ceil((n + 1) * level - 1e-9)), 1)


def conformal(residuals: Array, level: float) -> Array:
    """Half the width of intervals that hold a new value with probability `level` (split conformal prediction).

    residuals: absolute, [n, H, K], rising along n. The ⌈(n + 1) · level⌉-th smallest, which makes the promise hold for
    finite n where old and new samples are exchangeable (Vovk et al. 2005; Lei et al. 2018). Returns [H, K], NaN where n
    is too small to promise so much.
    """
    rank = rank_of(len(residuals), level)
    if rank > len(residuals):
        return np.full(residuals.shape[1:], np.nan)
    return np.asarray(residuals[rank - 1])


@dataclass(frozen=True)
class Residuals:
    """Of the validation part, in the targets' units."""

    values: Array
    """[n, H, K], absolute, series by series in the order of `names`, rising along n within each."""
    names: tuple[str, ...] = ()
    """S; () where all are taken together: in a regression, whose sequences have one value each."""
    counts: npt.NDArray[np.int64] | None = None
    """[S], how many of n each series has; None without names."""
    scales: Array | None = None
    """[S, K], above 0: how much each series changes; None without names."""

    @classmethod
    def by_series(cls, values: Array, series: npt.NDArray[np.int64], names: Sequence[str], scales: Array) -> Residuals:
        """values: [n, H, K] absolute, in any order. series: int64 [n], which of `names` each belongs to."""
        counts = np.bincount(series, minlength=len(names))
        grouped = values[np.argsort(series, kind="stable")]
        parts = [np.sort(part, axis=0) for part in np.split(grouped, np.cumsum(counts)[:-1])]
        return cls(np.concatenate(parts), tuple(names), counts, scales)

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def _scaled(self) -> Array:
        """[n, H, K], rising along n: of all series, each divided by its scale."""
        if self.scales is None or self.counts is None:
            return self.values
        return np.sort(self.values / np.repeat(self.scales, self.counts, axis=0)[:, None, :], axis=0)

    def unit_widths(self, level: float) -> Array:
        """[H, K]: half widths of a series with the scale 1; in the targets' units where all are taken together."""
        return conformal(self._scaled, level)

    def half_widths(self, level: float, names: Sequence[str], scales: Array) -> Array:
        """[M, H, K], NaN where n is too small for the level.

        From a series' own residuals where they are enough for the level; else, and for a series that the search did not
        have, from those of all series, each divided by its scale, times the scale of this one.
        scales: [M, K], of the rows at hand, for series that the search did not have.
        """
        together = self.unit_widths(level)
        if self.scales is None or self.counts is None:
            return np.broadcast_to(together, (len(names), *together.shape))
        known = {name: number for number, name in enumerate(self.names)}
        begins = np.cumsum(self.counts) - self.counts
        widths = np.empty((len(names), *together.shape))
        for row, name in enumerate(names):
            number = known.get(name)
            if number is None:
                scale = np.where(scales[row] > 0, scales[row], np.median(self.scales, axis=0))
                widths[row] = together * scale
                continue
            own = self.values[begins[number] : begins[number] + self.counts[number]]
            enough = rank_of(len(own), level) <= len(own)
            widths[row] = conformal(own, level) if enough else together * self.scales[number]
        return widths


def changes(table: Table, last: npt.NDArray[np.int64] | None = None) -> Array:
    """[S, K] how much the targets of each series change: their mean absolute one-step difference, 0 where none do.

    The scale of Hyndman and Koehler (2006). last: int64 [S], one past the last row of each series that counts; None
    means all rows.
    """
    lengths = np.diff(table.offsets)
    steps = np.abs(np.diff(table.targets, axis=0, prepend=table.targets[:1]))
    steps[table.offsets[:-1]] = 0  # the first row of a series has none before it
    if last is not None:
        steps[np.arange(len(steps)) >= np.repeat(last, lengths)] = 0
        lengths = last - table.offsets[:-1]
    made: Array = np.add.reduceat(steps, table.offsets[:-1], axis=0) / np.maximum(lengths - 1, 1)[:, None]
    return made


def positive(scales: Array) -> Array:
    """The scales with those that are 0 replaced by the middle one of the others; 1 where there is none."""
    filled = scales.copy()
    for column in filled.T:
        column[column <= 0] = np.median(column[column > 0]) if (column > 0).any() else 1.0
    return filled
