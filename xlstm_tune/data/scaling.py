"""From columns in their own units to a model's inputs: which columns, in which order, with which mean and deviation.

What the training part says is kept here, so that a new table becomes inputs in the same way.
R rows, F inputs, K targets, S series or sequences, C static inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from xlstm_tune.data.extremes import Extremes
from xlstm_tune.data.table import Table
from xlstm_tune.data.words import listing
from xlstm_tune.errors import DataError


@dataclass(frozen=True)
class Columns:
    """Some columns and their statistics in the training part."""

    names: tuple[str, ...]
    mean: np.ndarray
    """float64, in the columns' own units."""
    std: np.ndarray
    """float64; 1 where a column is constant."""
    exact: tuple[str, ...] = ()
    """Names of those that were not rounded to float32 before they were standardised."""


@dataclass(frozen=True)
class Scaling:
    """How a table becomes a model's inputs."""

    inputs: Columns
    """F; a value of a category is named `weather=rain`. Targets among them have the statistics of `targets`."""
    targets: Columns
    """K."""
    static: Columns
    """C; none without `data.static`."""
    forecast: bool
    """The targets are inputs too."""

    @property
    def target_columns(self) -> tuple[int, ...]:
        """Position of each target among the inputs; () for a regression."""
        return tuple(self.inputs.names.index(name) for name in self.targets.names) if self.forecast else ()

    def standardised_targets(self, table: Table) -> np.ndarray:
        """float32 like `table.targets`."""
        with np.errstate(over="ignore"):
            scaled: np.ndarray = ((table.targets - self.targets.mean) / self.targets.std).astype(np.float32)
        return scaled

    def standardised_inputs(self, table: Table, targets: np.ndarray) -> np.ndarray:
        """[R, F] float32. targets: of `standardised_targets`.

        A value of a category that the table lacks is 0 everywhere; columns that are no input are passed over. What
        float32 cannot hold is infinite, here as in targets and static inputs, and the model's forecast is then refused.
        """
        given = {name: column for column, name in enumerate(table.features)}
        own = self.target_columns
        features = np.empty((len(table.values), len(self.inputs.names)), dtype=np.float32)
        for position, name in enumerate(self.inputs.names):
            if position in own:
                # The same numbers as the target, so that "last value" means the same in both.
                features[:, position] = targets[:, own.index(position)]
                continue
            # One column at a time: float64 of the whole table would take twice its memory.
            cells = table.cells(given[name]) if name in given else 0.0
            with np.errstate(over="ignore"):
                features[:, position] = (cells - self.inputs.mean[position]) / self.inputs.std[position]
        return features

    def standardised_static(self, table: Table) -> np.ndarray | None:
        """[S, C] float32; None without static inputs."""
        if not self.static.names:
            return None
        given = dict(zip(table.static.names, table.static.values.T, strict=True))
        none = np.zeros(len(table.keys))
        with np.errstate(over="ignore"):
            columns = [
                (given.get(name, none) - mean) / std
                for name, mean, std in zip(self.static.names, self.static.mean, self.static.std, strict=True)
            ]
            return np.stack(columns, axis=1).astype(np.float32)


def fit_scaling(
    table: Table,
    rows: np.ndarray,
    samples: np.ndarray,
    series: np.ndarray,
    forecast: bool,
    notes: list[str],
    judged_rows: np.ndarray,
    judged_samples: np.ndarray,
) -> Scaling:
    """The statistics of the training part.

    rows: bool [R]. samples: of a regression, the sequences in it. series: of each training sample. judged_rows,
    judged_samples: as those, of the other parts.
    `notes` grows by a sentence on what was left out or is constant. Raises DataError when a target is constant, or no
    input is left.
    """
    extremes = Extremes()
    targets = _target_statistics(table, rows if forecast else samples, judged_samples, None if forecast else extremes)
    in_file = table.file_rows[rows]
    kept, constant = [], []
    moments: list[tuple[float, float]] = []
    for column in _seen_columns(table, rows, notes):
        name = table.features[column]
        kept.append(name)
        seen = table.cells(column)[rows]
        moments.append(_moments(seen))
        if column not in table.one_hot:
            extremes.look(name, seen, *moments[-1], in_file)
            if seen.min() < seen.max():
                extremes.look_outside(
                    name, table.cells(column)[judged_rows], *moments[-1], table.file_rows[judged_rows]
                )
        if forecast and name in targets.names:
            at = targets.names.index(name)
            moments[-1] = (targets.mean[at], targets.std[at])
            continue
        if seen.min() == seen.max() and column not in table.one_hot:
            constant.append(name)
    if constant:
        what = "input is" if len(constant) == 1 else "inputs are"
        notes.append(f"{len(constant)} {what} constant in the training part: {listing(constant, 'input')}")
    notes += extremes.notes()
    inputs = replace(_columns(kept, moments), exact=tuple(name for name in kept if name in table.exact))
    return Scaling(inputs, targets, _static_statistics(table, series, notes), forecast)


def _columns(names: list[str], moments: list[tuple[float, float]]) -> Columns:
    mean, std = np.array(moments, dtype=np.float64).reshape(-1, 2).T.copy()
    return Columns(tuple(names), mean, std)


def _moments(cells: np.ndarray) -> tuple[float, float]:
    """Mean and deviation of float64 cells; deviation 1 where they are constant or rounding leaves none."""
    low = cells.min()
    if low == cells.max():
        return float(low), 1.0
    std = float(cells.std())
    return float(cells.mean()), std if std > 0 else 1.0


def _target_statistics(table: Table, seen: np.ndarray, judged: np.ndarray, extremes: Extremes | None) -> Columns:
    """Of the observed targets of the training part. seen, judged: rows or samples of it, and of the other parts.
    extremes: where they are no inputs too, which are looked at all the same."""
    moments = []
    for column, name in enumerate(table.target_names):
        cells = table.targets[seen, column][table.observed[seen, column]]
        if not len(cells):
            raise DataError(f"the target '{name}' has no value in the training part; change data.split")
        if cells.min() == cells.max():
            raise DataError(
                f"the target '{name}' is constant in the training part ({cells[0]:g} in all {len(cells)} "
                f"{'values' if len(cells) > 1 else 'value'}), so there is nothing to learn; "
                f"predict another column or change data.split"
            )
        moments.append(_moments(cells))
        if extremes is not None:
            extremes.look(name, cells, *moments[-1])
            extremes.look_outside(name, table.targets[judged, column], *moments[-1])
    return _columns(list(table.target_names), moments)


def _seen_columns(table: Table, rows: np.ndarray, notes: list[str]) -> list[int]:
    """Columns to keep: values of categories that never occur in the training part say nothing there."""
    unseen = {column for column in table.one_hot if not table.values[rows, column].any()}
    if unseen:
        names = [table.features[column] for column in sorted(unseen)]
        verb = "occurs" if len(unseen) == 1 else "occur"
        notes.append(
            f"{listing(names, 'value')} {verb} only outside the training part and cannot be learnt from, so left out"
        )
    columns = [column for column in range(len(table.features)) if column not in unseen]
    if not columns:
        raise DataError("no input is left: every value of the categories occurs only outside the training part")
    return columns


def _static_statistics(table: Table, series: np.ndarray, notes: list[str]) -> Columns:
    """Over the series that training samples come from."""
    seen = table.static.values[np.unique(series)]
    kept: list[str] = []
    moments: list[tuple[float, float]] = []
    for column, name in enumerate(table.static.names):
        if column in table.static.one_hot and not seen[:, column].any():
            notes.append(f"{name} occurs only outside the training part, so it was left out")
            continue
        kept.append(name)
        moments.append(_moments(seen[:, column]))
        if seen[:, column].min() == seen[:, column].max() and column not in table.static.one_hot:
            notes.append(f"the static input '{name}' is constant in the training part")
    if table.static.names and not kept:
        raise DataError(
            "no static input is left: every value of its categories occurs only outside the training part; "
            "change data.static or data.split"
        )
    return _columns(kept, moments)
