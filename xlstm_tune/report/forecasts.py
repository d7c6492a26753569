"""The predictions table of one part as arrays: errors by step, by series, over time.

Legend: n rows of one model, one for each sample, step and target, in the order of samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Model:
    """Whose predictions they are; trial is None for a baseline."""

    name: str
    trial: int | None

    @property
    def title(self) -> str:
        """As legends and tables have it."""
        return self.name if self.trial is None else f"{self.name}, trial {self.trial}"


@dataclass(frozen=True)
class Forecasts:
    """Predictions of one model on one part, in the targets' own units; rows without a finite error are left out."""

    series: Ints
    """Index into `names`, [n]."""
    time: Ints
    """Index into `times`, [n]."""
    step: Ints
    """From 1, [n]."""
    target: Ints
    """Index into `targets`, [n]."""
    actual: Floats
    predicted: Floats
    names: list[str]
    times: list[str]
    targets: list[str]

    @property
    def error(self) -> Floats:
        """Predicted minus actual, [n]."""
        return self.predicted - self.actual

    def select(self, rows: npt.NDArray[Any]) -> Forecasts:
        """Only these rows, given as a mask or indices."""
        columns = (self.series, self.time, self.step, self.target, self.actual, self.predicted)
        series, time, step, target, actual, predicted = (column[rows] for column in columns)
        return Forecasts(series, time, step, target, actual, predicted, self.names, self.times, self.targets)

    def of_target(self, target: str) -> Forecasts | None:
        """Only the rows of this target; None where there are none. `targets` stays as it is."""
        rows = self.target == self.targets.index(target) if target in self.targets else np.zeros(len(self.target), bool)
        return self.select(rows) if rows.any() else None

    @property
    def first_target(self) -> str:
        """The first that has rows."""
        return self.targets[int(self.target.min())]

    @property
    def which(self) -> str:
        """Of rows of one target among several: which it is, and how many are not drawn; empty where there is one."""
        others = len(self.targets) - 1
        if not others:
            return ""
        return f"target {self.first_target} ({others} more {'is' if others == 1 else 'are'} not drawn)"

    def rmse(self) -> float:
        """Over all rows."""
        return float(np.sqrt(np.mean(self.error**2)))

    def rmse_by_step(self) -> tuple[list[int], list[float]]:
        """Steps, and the root of each one's mean squared error."""
        return _rmse_by(self.step, self.error)

    def rmse_by_series(self) -> tuple[list[int], list[float]]:
        """Series as indices into `names`, and the root of each one's mean squared error."""
        return _rmse_by(self.series, self.error)


def models_of(predictions: pa.Table, part: str) -> list[Model]:
    """Whose predictions of a part there are."""
    found = predictions.filter(pc.equal(predictions["part"], part)).group_by(["model", "trial"]).aggregate([])
    models = [Model(row["model"], row["trial"]) for row in found.to_pylist()]
    return sorted(models, key=lambda one: (one.trial is None, one.trial or 0, one.name))


def forecasts_of(predictions: pa.Table, part: str, model: Model) -> Forecasts | None:
    """The rows of one model and part; None where there are none."""
    table = _rows_of(predictions, part, model)
    actual = table["actual"].to_numpy().astype(np.float64)
    predicted = table["predicted"].to_numpy().astype(np.float64)
    series, names = _coded(table["series"])
    time, times = _coded(table["time"])
    target, targets = _coded(table["target"])
    step = table["step"].to_numpy().astype(np.int64)
    found = Forecasts(series, time, step, target, actual, predicted, names, times, targets)
    finite = np.isfinite(found.error)
    return found.select(finite) if finite.any() else None


def samples_of(predictions: pa.Table, part: str, model: Model) -> int:
    """Of how many samples of a part the table has a model's predictions."""
    rows = _rows_of(predictions, part, model)
    first = rows.filter(pc.equal(rows["step"], pc.min(rows["step"])))  # of a sample a row for each target
    return len(first) // max(1, len(first["target"].unique()))


def _rows_of(predictions: pa.Table, part: str, model: Model) -> pa.Table:
    trial = predictions["trial"]
    same = pc.is_null(trial) if model.trial is None else pc.fill_null(pc.equal(trial, model.trial), False)
    mask = pc.and_(pc.and_(same, pc.equal(predictions["model"], model.name)), pc.equal(predictions["part"], part))
    return predictions.filter(mask)


def _coded(column: pa.ChunkedArray) -> tuple[Ints, list[str]]:
    coded = pc.fill_null(column, "").combine_chunks().dictionary_encode()
    return coded.indices.to_numpy(zero_copy_only=False).astype(np.int64), coded.dictionary.to_pylist()


def _rmse_by(key: Ints, error: Floats) -> tuple[list[int], list[float]]:
    counts, sums = np.bincount(key), np.bincount(key, weights=error**2)
    present = np.flatnonzero(counts)
    return present.tolist(), np.sqrt(sums[present] / counts[present]).tolist()
