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
import pyarrow.compute as pc
from numpy.typing import NDArray

from xlstm_tune.results import read

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """A finalist or a baseline."""

    name: str
    family: str | None
    """None for a baseline."""
    trial: int | None
    """None for a baseline."""


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
        samples=data.get("samples"),
    )


def predicted_parts(folder: Path) -> dict[tuple[int | None, str], set[str]]:
    """(trial, model) → the parts that it has predictions of, in the order of writing."""
    found: dict[tuple[int | None, str], set[str]] = {}
    table = read(folder, "predictions").select(["trial", "model", "part"])
    for row in table.group_by(["trial", "model", "part"], use_threads=False).aggregate([]).to_pylist():
        found.setdefault((row["trial"], row["model"]), set()).add(row["part"])
    return found


def read_predictions(folder: Path, part: str, models: Sequence[tuple[str, Model]]) -> Judged | None:
    """The predictions of a part by these models; None where none of them has any.

    models: the name that the predictions table has for each (its `model`: the family, or the baseline's name) and the
    model. A model whose predictions are of other samples than the first one's, incomplete or not finite is left out.
    """
    table = read(folder, "predictions")
    table = table.filter(pc.equal(table["part"], part))
    first: Judged | None = None
    predicted: dict[Model, Array] = {}
    left_out: list[str] = []
    for name, model in models:
        same = pc.is_null(table["trial"]) if model.trial is None else pc.equal(table["trial"], model.trial)
        own = table.filter(pc.and_(same, pc.equal(table["model"], name)))
        if not own.num_rows:
            continue
        grid = _grid(own, part)
        if grid is None:
            left_out.append(f"{model.name} was left out: its predictions of the {part} part are incomplete")
            continue
        judged, values = grid
        first = first or judged
        if (judged.series, judged.time, judged.targets) != (first.series, first.time, first.targets):
            left_out.append(f"{model.name} was left out: it predicted other samples than the others")
        elif not np.isfinite(values).all():
            left_out.append(f"{model.name} was left out: not all of its predictions are finite")
        else:
            predicted[model] = values
    if first is None or not predicted:
        return None
    return Judged(part, first.series, first.time, first.targets, first.actual, predicted, tuple(left_out))


def _grid(rows: pa.Table, part: str) -> tuple[Judged, Array] | None:
    """Rows of one model as [n, H, K], in which order they are written; None where a sample lacks a step or a target."""
    series, time, target = (rows[name].combine_chunks().dictionary_encode() for name in ("series", "time", "target"))
    steps = rows["step"].to_numpy()
    targets = tuple(target.dictionary.to_pylist())
    horizon, size = int(steps.max()), int(steps.max()) * len(targets)
    if len(rows) % size:
        return None
    place = (steps - 1) * len(targets) + target.indices.to_numpy()  # of a row in its sample
    if (place.reshape(-1, size) != np.arange(size)).any():
        return None
    labels = []
    for column in (series, time):
        codes = column.indices.to_numpy().reshape(-1, size)
        if (codes != codes[:, :1]).any():
            return None
        labels.append(tuple(column.dictionary.take(pa.array(codes[:, 0])).to_pylist()))
    shape = (-1, horizon, len(targets))
    actual, predicted = (rows[name].to_numpy().reshape(shape) for name in ("actual", "predicted"))
    return Judged(part, labels[0], labels[1], targets, actual, {}), predicted


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
    """The series of each sample; of a regression, the value of the first key (the county of county × year)."""
    if seen.task != "regression":
        return judged.series
    values = {label: (*key_values(label, seen.keys), "")[0] for label in set(judged.series)}
    return tuple(values[label] for label in judged.series)
