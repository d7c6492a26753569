"""The predictions of one part, sample by sample and model by model, so that models can be compared in pairs.

n samples, H horizon steps, K targets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlstm_tune import results

Array = NDArray[np.float64]

COLUMNS = ["series", "time", "step", "target", "actual", "predicted"]
"""Of the predictions table, besides those that say what is predicted by whom."""


@dataclass(frozen=True)
class Model:
    """A finalist or a baseline."""

    name: str
    family: str | None
    """None for a baseline."""
    trial: int | None
    """None for a baseline."""
    early: str = ""
    """As `early_end` has it: stopped early by the scheduler, or not finished; its best epoch stands for it."""


@dataclass(frozen=True)
class Judged:
    """Predictions of one part by several models, of the same samples in the same order."""

    part: str
    series: tuple[str, ...]
    """n labels such as `county=Pima, year=2006`; "" where there is one series."""
    time: tuple[str, ...]
    """n labels: of a forecast's first step, of a sequence's last row."""
    targets: tuple[str, ...]
    """K names."""
    actual: Array
    """[n, H, K], in the target's own units."""
    predicted: dict[Model, Array]
    """[n, H, K] each."""
    left_out: tuple[str, ...] = ()
    """A sentence for each model whose predictions could not be used."""
    steps: int | None = None
    """Where the predictions stand for H steps, with one that is off by as much as those are on average: H."""

    @property
    def horizon(self) -> int:
        """H."""
        return self.steps or self.actual.shape[1]


@dataclass(frozen=True)
class Facts:
    """What the search's row says of the data; nothing in searches that were written without one."""

    task: str | None = None
    target_std: tuple[float, ...] | None = None
    """[K]."""
    mase_scale: tuple[float | None, ...] | None = None
    """[K]."""
    keys: tuple[str, ...] | None = None
    """Names of the columns that tell series or sequences apart."""
    groups: tuple[str, ...] | None = None
    """Those of them by which a regression's errors are looked at; None = the search did not note any."""
    samples: dict[str, int] | None = None
    """Of each part, before the predictions were thinned."""


def facts(data: dict[str, Any] | None) -> Facts:
    """From the `data` column of the search table; None = a search without one."""
    if not data:
        return Facts()
    scale = data.get("mase_scale")
    return Facts(
        task=data["task"],
        target_std=tuple(data["target_std"]),
        mase_scale=tuple(scale) if scale is not None else None,
        keys=tuple(data["keys"]) if "keys" in data else None,
        groups=tuple(data["groups"]) if data.get("groups") else None,
        samples=data.get("samples"),
    )


def predicted_parts(folder: Path) -> dict[tuple[int | None, str], set[str]]:
    """(trial, model) → the parts that it has predictions of, in the order of writing."""
    found: dict[tuple[int | None, str], set[str]] = {}
    for trial, model, part in results.predicted(folder):
        found.setdefault((trial, model), set()).add(part)
    return found


def seed_scores(folder: Path, objective: str) -> dict[int, list[float]]:
    """Trial → RMSE on the test part of each seed of its best setting, that of the predictions first.

    objective: with its `val_`. Only trials with two seeds or more that were scored on the test part.
    """
    found: dict[int, list[tuple[float, int, float]]] = {}
    for row in results.read(folder, "members").to_pylist():
        if row["test_rmse"] is not None and row[objective] is not None:
            found.setdefault(row["trial"], []).append((row[objective], row["member"], row["test_rmse"]))
    return {trial: [score for *_, score in sorted(rows)] for trial, rows in found.items() if len(rows) > 1}


def read_predictions(folder: Path, part: str, models: Sequence[tuple[str, Model]]) -> Judged | None:
    """The predictions of a part by these models; None where none of them has any.

    models: the name that the predictions table has for each (its `model`: the family, or the baseline's name) and the
    model. A model whose predictions are of other samples than the first one's, incomplete or not finite is left out.
    """
    first: _Grid | None = None
    predicted: dict[Model, Array] = {}
    left_out: list[str] = []
    for name, model in models:
        rows = results.read_predictions(folder, (model.trial, name, part), COLUMNS)
        if not rows.num_rows:
            continue
        grid = _grid(rows)
        if grid is None:
            left_out.append(f"{model.name} was left out: its predictions of the {part} part are incomplete.")
            continue
        first = first or grid
        if not grid.same_samples(first):
            left_out.append(
                f"{model.name} was left out: the predictions kept of it are of other samples than the others'."
            )
        elif not np.isfinite(grid.predicted).all():
            left_out.append(f"{model.name} was left out: not all of its predictions are finite.")
        else:
            predicted[model] = grid.predicted
    if first is None or not predicted:
        return None
    series, time = (tuple(column.to_pylist()) for column in (first.series, first.time))
    return Judged(part, series, time, first.targets, first.actual, predicted, tuple(left_out))


def of_all_samples(folder: Path, judged: Judged) -> Judged:
    """What the models were off by on every sample, where not all predictions were kept; else, or in a search that kept
    no errors of the others, what is given.

    Squared errors alone are right, means over the steps and targets: as if all steps were off by as much.
    """
    squares: dict[Model, Array] = {}
    labels: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    for model in judged.predicted:
        what = model.trial, model.family or model.name, judged.part
        columns = ["square"] if labels else ["square", "series", "time"]
        own = results.read_predictions(folder, what, columns, "squares")
        squares[model] = own["square"].to_numpy()
        if not len(own) or not np.isfinite(squares[model]).all():
            return judged
        labels = labels or (tuple(own["series"].to_pylist()), tuple(own["time"].to_pylist()))
    if labels is None or {len(one) for one in squares.values()} != {len(labels[0])}:
        return judged
    return of_squares(judged.part, *labels, squares, judged.horizon)


def of_squares(
    part: str, series: tuple[str, ...], time: tuple[str, ...], squares: dict[Model, Array], horizon: int
) -> Judged:
    """Models of which squared errors [n] are known, means over the steps: as if all steps were off by as much."""
    errors = {model: np.sqrt(one)[:, None, None] for model, one in squares.items()}
    return Judged(part, series, time, ("",), np.zeros((len(series), 1, 1)), errors, steps=horizon)


@dataclass(frozen=True)
class _Grid:
    """Rows of one model."""

    series: pa.Array
    time: pa.Array
    targets: tuple[str, ...]
    actual: Array
    predicted: Array

    def same_samples(self, other: _Grid) -> bool:
        """Whether the rows are of the same samples, in the same order."""
        same = self.actual.shape == other.actual.shape and self.targets == other.targets
        return bool(same and self.series.equals(other.series) and self.time.equals(other.time))


def _grid(rows: pa.Table) -> _Grid | None:
    """Rows of one model as [n, H, K], in which order they are written; None where a sample lacks a step or a target."""
    series, time, target = (rows[name].combine_chunks() for name in ("series", "time", "target"))
    steps, place = rows["step"].to_numpy(), target.indices.to_numpy()
    numbers, place = np.unique(place, return_inverse=True)
    targets = tuple(target.dictionary.take(pa.array(numbers)).to_pylist())
    horizon, size = int(steps.max()), int(steps.max()) * len(targets)
    if len(rows) % size:
        return None
    place = (steps - 1) * len(targets) + place  # of a row in its sample
    if (place.reshape(-1, size) != np.arange(size)).any():
        return None
    labels = []
    for column in (series, time):
        codes = column.indices.to_numpy().reshape(-1, size)
        if (codes != codes[:, :1]).any():
            return None
        labels.append(column.dictionary.take(pa.array(codes[:, 0])))
    shape = (-1, horizon, len(targets))
    actual, predicted = (rows[name].to_numpy().reshape(shape) for name in ("actual", "predicted"))
    return _Grid(labels[0], labels[1], targets, actual, predicted)


def key_values(label: str, names: Sequence[str] | None) -> tuple[str, ...]:
    """The values in a series' label: (Pima, 2006) of `county=Pima, year=2006`; () of "".

    names: the key columns; None where they are not known, and then a comma before `word=` is what parts them.
    """
    if not label:
        return ()
    if names:
        pattern = ", ".join(f"{re.escape(name)}=(.*)" for name in names)
        found = re.fullmatch(pattern, label, re.DOTALL)
        if found:
            return found.groups()
    return tuple(piece.partition("=")[2] for piece in re.split(r", (?=[^=,]+=)", label))


def groups_of(judged: Judged, seen: Facts) -> tuple[str, ...]:
    """The series of each sample; of a regression, the values of its groups' columns (the county of county × year), and
    of the first key where the search noted no groups."""
    if seen.task != "regression":
        return judged.series
    places = [seen.keys.index(name) for name in seen.groups] if seen.groups and seen.keys else [0]
    values = {}
    for label in set(judged.series):
        found = key_values(label, seen.keys)
        values[label] = ", ".join(found[place] for place in places if place < len(found))
    return tuple(values[label] for label in judged.series)
