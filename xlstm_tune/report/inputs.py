"""What each input is worth to the winner, and how sure that is, from the importance table.

n samples, H horizon steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from xlstm_tune.report.differences import compare_pairs
from xlstm_tune.report.predictions import Model, facts, of_squares
from xlstm_tune.report.resampling import FEWEST
from xlstm_tune.results import read

PART = "test"


@dataclass(frozen=True)
class Worth:
    """How much higher the RMSE is when the values of an input are those of other samples, in per cent."""

    name: str
    rise: float
    low: float
    """Ends of the 95 % interval."""
    high: float
    sure: bool
    """More than chance explains, also when it is considered how many inputs are asked about."""
    tells: bool
    """There are samples enough, of enough years or the like, to tell this input from chance."""


@dataclass(frozen=True)
class Inputs:
    """Of one trial."""

    trial: int
    rmse: float
    """With all inputs as they are, of these samples, in the target's own units."""
    samples: int
    worth: list[Worth]
    """Largest rise first."""
    notes: list[str]


def read_inputs(folder: Path, trial: int, data: Mapping[str, Any]) -> Inputs | None:
    """data: the search row's. None where nothing was measured for this trial, or the model makes no error at all.

    The intervals are those of differences between models (`differences`), each shuffled input standing for a model.
    """
    rows = read(folder, "importance")
    rows = rows.filter(pc.equal(rows["trial"], trial))
    if not rows.num_rows:
        return None
    first = pc.is_null(rows["input"])
    plain = Model("", None, None)
    squares: dict[Model, NDArray[np.float64]] = {plain: rows["square"].filter(first).to_numpy()}
    for name in rows["input"].unique().drop_null().to_pylist():
        squares[Model(name, None, trial)] = rows["square"].filter(pc.equal(rows["input"], name)).to_numpy()
    notes = []
    if unknown := [one.name for one in squares if not np.isfinite(squares[one]).all()]:
        squares = {one: square for one, square in squares.items() if one.name not in unknown}
        notes.append(f"Shuffled, these led to forecasts that are no numbers: {', '.join(unknown)}.")
    if plain not in squares:
        return None
    rmse = float(np.sqrt(squares[plain].mean()))
    if not rmse > 0:
        return None
    seen = facts(dict(data))
    horizon = int(data.get("horizon") or 1)
    n = len(squares[plain])
    series, time = (tuple(rows[name].filter(first).to_pylist()) for name in ("series", "time"))
    judged = of_squares(PART, series, time, squares, horizon)
    pairs = [(plain, model) for model in squares if model != plain]
    compared = compare_pairs(judged, pairs, seen)
    percent = 100 / rmse
    worth = [
        Worth(
            one.b.name,
            percent * one.gain,
            percent * one.low,
            percent * one.high,
            sure=one.told_apart,
            tells=one.beyond is None and one.blocks >= FEWEST,
        )
        for one in compared.differences
    ]
    worth.sort(key=lambda one: -one.rise)
    return Inputs(trial, rmse, n, worth, [*notes, *compared.notes])
