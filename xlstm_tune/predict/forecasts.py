"""From a table in the user's columns to forecasts in the user's columns and units.

N samples, H horizon steps, K targets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xlstm_tune.data.clock import describe_step, tells_week, weekdays
from xlstm_tune.data.future import later_stamps, written, zone_of
from xlstm_tune.data.gaps import gaps_note
from xlstm_tune.data.origins import PREDICTED, forecast_origins, sequences
from xlstm_tune.data.prepare import prepare_to_predict
from xlstm_tune.data.read import Source
from xlstm_tune.data.steps import day_of_month, step_of, stepping
from xlstm_tune.data.table import Table, make_table
from xlstm_tune.data.windows import Prepared, Windows
from xlstm_tune.data.words import listing
from xlstm_tune.errors import DataError
from xlstm_tune.predict.champion import Champion
from xlstm_tune.predict.familiar import unlike
from xlstm_tune.predict.intervals import Array, changes
from xlstm_tune.predict.zeros import with_zeros
from xlstm_tune.training.judge import eval_batch, predict
from xlstm_tune.training.loop import autocast_dtype, pick_device

DEFAULT_LEVEL = 0.9
_DAY = 86_400 * 10**9
_REMEDY = re.compile(r"; (?:(?!; ).)*\bdata\.[a-z]+(?:(?!; ).)*$")
"""The end of a sentence that tells what to change in the search file."""
_WORDS = 60
"""Labels that show how the user writes times."""


@dataclass(frozen=True)
class Forecasts:
    """What a model says of a table."""

    table: pa.Table
    """The columns of `columns.output_columns`. A forecast has a row for each series, step and target, a regression
    one for each sequence and target; `lower` and `upper` are null where validation was too small for the level. With
    a quantile loss there is a column for each level."""
    notes: tuple[str, ...]
    """One-sentence observations for the user."""


def source_of(table: pa.Table, name: str = "the table") -> Source:
    """An Arrow table as one that has been read from a file called `name`."""
    if not table.num_rows:
        raise DataError(f"{name} has no rows")
    return Source(table, (name,), np.array([table.num_rows]), {})


def forecasts(champion: Champion, source: Source, level: float = DEFAULT_LEVEL, every: bool = False) -> Forecasts:
    """Predict what follows each series of a table, or the value of each sequence.

    level: of the intervals, between 0 and 1. every: from every row that has enough rows before it, not from the end
    alone (forecasts only). Raises DataError for a table that the model cannot use, or a level that is none.
    """
    if not 0 < level < 1:
        raise DataError(f"the level of the intervals must lie between 0 and 1, got {level:g}")
    _check_columns(champion, source)
    try:
        known = with_zeros(champion, source)
        table = make_table(known, champion.data, judged=False, exact=champion.scaling.inputs.exact)
    except DataError as error:
        raise DataError(_at_prediction(str(error))) from None
    forecast = champion.scaling.forecast
    notes = [*table.notes, *unlike(champion, table)]
    length = champion.shape.lookback
    if forecast:
        samples = forecast_origins(table, length, every)
    else:
        samples = sequences(table, length, not champion.shape.varying)
    minimum = champion.data.target_minimum
    data = prepare_to_predict(table, champion.scaling, samples, champion.shape.horizon, length, minimum)
    notes += samples.notes
    quantiles = _predict(champion, data)
    predicted = quantiles[..., champion.model.point]
    half = _half_widths(champion, table, data, level, notes)
    if np.isnan(half).any():
        n = len(champion.residuals)
        total = champion.about.get("validation_samples", n)
        found = f"{n} validation samples are" if n == total else f"the {n} of {total:,} validation samples kept are"
        notes.append(f"there are no intervals: {found} too few for a level of {level:g}, which needs {_needed(level)}")
    notes += _uneven(champion, table, data) if forecast else []
    columns = _forecast_columns(champion, table, data) if forecast else _sequence_columns(table, data)
    lower = predicted - half if minimum is None else np.maximum(predicted - half, minimum)
    columns += [predicted.reshape(-1), _bound(lower), _bound(predicted + half)]
    columns += [quantiles[..., at].reshape(-1) for at in range(len(champion.shape.quantiles))]
    made = pa.table(dict(zip(champion.outputs, map(_arrow, columns), strict=True)))
    return Forecasts(_with_key_types(made, source.table, table.key_names), tuple(notes))


def _predict(champion: Champion, data: Prepared) -> Array:
    """[N, H, K, Q] in the targets' units; Q = 1 without quantiles."""
    device = pick_device()
    dtype = autocast_dtype(champion.config.training.precision, device)
    model = champion.model.to(device)
    windows = Windows(data, PREDICTED, champion.shape.lookback, device)
    size = min(eval_batch(champion.config, data, device), 256)
    standardised = predict(model, windows, size, dtype, every_quantile=True).numpy()
    if not np.isfinite(standardised).all():
        sample = int(np.flatnonzero(~np.isfinite(standardised).all(axis=(1, 2, 3)))[0])
        raise DataError(
            f"the model's forecast is not a finite number for sample {sample + 1}; look for extreme values in its rows"
        )
    return data.in_units(standardised.swapaxes(2, 3)).swapaxes(2, 3)


def _half_widths(champion: Champion, table: Table, data: Prepared, level: float, notes: list[str]) -> Array:
    """[N, H, K], NaN where validation was too small for the level."""
    names = [table.series_name(series) for series in range(len(table.keys))]
    scales = changes(table) if champion.scaling.forecast else np.ones((len(names), champion.shape.targets))
    widths = champion.residuals.half_widths(level, names, scales)
    new = sorted(set(names) - set(champion.residuals.names)) if champion.residuals.names else []
    if new:
        notes.append(
            f"{listing(new, 'name')} {'was' if len(new) == 1 else 'were'} not in the search: intervals there are "
            "those of all its series, by how much each changes from row to row"
        )
    return widths[np.searchsorted(table.offsets, data.ends - 1, side="right") - 1]


def _check_columns(champion: Champion, source: Source) -> None:
    needed = [column["name"] for column in champion.about["serving"]["inputs"]]
    lacking = [f"'{name}'" for name in needed if name not in source.table.column_names]
    if lacking:
        raise DataError(
            f"{source.name} lacks {'the column' if len(lacking) == 1 else 'columns'} {', '.join(lacking)}, which the "
            f"model of the search '{champion.search}' was trained with; add "
            f"{'it' if len(lacking) == 1 else 'them'}"
        )


def _at_prediction(sentence: str) -> str:
    """A refusal of a table with a remedy that helps here: keys of the search file do not, once there is a model."""
    if (found := _REMEDY.search(sentence)) is None:
        return sentence
    if "remove one" in found[0]:
        return f"{sentence[: found.start()]}; remove one of them"
    if re.match("the time column '.*' holds numbers", sentence):
        words = 'write dates as text such as 2021-05-14 (pandas: to_json(..., date_format="iso"))'
        return f"{sentence[: found.start()]}; {words}"
    return f"{sentence[: found.start()]}; mend it, for the model needs what it had in the search's table"


def _needed(level: float) -> str:
    return f"at least {int(np.ceil(level / (1 - level) - 1e-9)):,}"


def _forecast_columns(champion: Champion, table: Table, data: Prepared) -> list[Any]:
    """Keys, time where rows have one, origin, step and target, each N · H · K long."""
    horizon, targets = champion.shape.horizon, champion.shape.targets
    series = np.searchsorted(table.offsets, data.ends - 1, side="right") - 1
    each = horizon * targets
    columns: list[Any] = [
        pa.array([key[column] for key in table.keys]).take(pa.array(np.repeat(series, each)))
        for column in range(len(table.key_names))
    ]
    labels = _labels(table)
    if table.labels is not None:
        columns.append(_step_times(champion, table, data, series, labels))
    columns.append(labels.take(pa.array(np.repeat(data.ends - 1, each))))
    columns.append(np.tile(np.repeat(np.arange(1, horizon + 1), targets), len(data.ends)))
    columns.append(np.tile(np.array(table.target_names, dtype=object), len(data.ends) * horizon))
    return columns


def _labels(table: Table) -> pa.Array:
    """The time of each row as the user wrote it; its number in the file, from 1, in row order."""
    if table.labels is None:
        return pa.array([str(row + 1) for row in table.file_rows.tolist()])
    return pa.array([table.time_label(row) for row in range(len(table.time))])


def _step_times(
    champion: Champion, table: Table, data: Prepared, series: npt.NDArray[np.int64], labels: pa.Array
) -> pa.Array:
    """The time of each forecast step: of the row that stands there, else as many time steps behind the series' end."""
    horizon = champion.shape.horizon
    rows = data.ends[:, None] + np.arange(horizon)  # [N, H]
    ends = table.offsets[series + 1][:, None]
    behind = np.unique(series[(rows >= ends).any(axis=1)])
    step, months = _step(champion, table)
    week = _week(champion, table, step)
    made: list[str | None] = []
    for one in behind:
        last = int(table.offsets[one + 1]) - 1
        if step is None or champion.data.time is None:
            made += [None] * horizon
            continue
        shown = labels.slice(max(int(table.offsets[one]), last + 1 - _WORDS), _WORDS)
        examples = shown.slice(0, min(_WORDS, last + 1 - int(table.offsets[one]))).to_pylist()
        kind, written_as = None if table.labels is None else table.labels.type, champion.data.time
        zone = zone_of(kind, written_as, examples[-1])
        day = day_of_month(table.shown[int(table.offsets[one]) : last + 1]) if months else None
        stamps = later_stamps(int(table.time[last]), step, table.time_kind, horizon, zone, week, months, day)
        made += written(stamps, table.time_kind, written_as, examples, kind, zone)
    place = np.searchsorted(behind, series)[:, None] * horizon + (rows - ends) + len(labels)
    index = np.where(rows < ends, np.minimum(rows, len(labels) - 1), place)
    words = pa.concat_arrays([labels, pa.array(made, pa.string())])
    return words.take(pa.array(np.repeat(index.reshape(-1), champion.shape.targets)))


def _step(champion: Champion, table: Table) -> tuple[int | None, int | None]:
    """The time step that the model learnt from, and its months; the table's where the search's data had none."""
    if champion.months is None:
        return step_of(champion.step, table.step), None
    return (table.step, table.months) if champion.step is None else (champion.step, champion.months)


def _week(champion: Champion, table: Table, step: int | None) -> Array | None:
    """The days of the week that rows keep to: those of daily rows where they tell, else those of the search."""
    if step == _DAY and tells_week(table.shown, table.offsets):
        return weekdays(table.shown, table.offsets, step, table.time_kind)
    return champion.week


def _uneven(champion: Champion, table: Table, data: Prepared) -> list[str]:
    """A sentence where forecasts behind the end are dated by even steps, and the rows of the table are not."""
    step, months = _step(champion, table)
    if step is None or table.labels is None or months != 0:
        return []
    following = np.searchsorted(table.offsets, data.ends - 1, side="right")
    behind = np.unique(following[data.ends + champion.shape.horizon > table.offsets[following]]) - 1
    even, week = behind, _week(champion, table, step)
    if week is not None:  # after a row on another day `later_stamps` steps evenly
        even = behind[~np.isin(table.shown[table.offsets[behind + 1] - 1] // _DAY % 7, week)]
    clock = stepping(table.time, table.shown, table.offsets)
    if not len(even) or gaps_note(clock, table.offsets, table.time_kind, table.time_label) is None:
        return []
    whose = f" of {listing([table.series_name(int(one)) for one in even], 'name')}" if len(even) < len(behind) else ""
    return [
        f"the times of forecasts behind the last row{whose} are so many times {describe_step(step, table.time_kind)} "
        "after it, and the rows of the table are not all spaced like that; where they keep a calendar of their own, go "
        "by the column 'step'"
    ]


def _sequence_columns(table: Table, data: Prepared) -> list[Any]:
    """Keys and target, each N · K long."""
    targets = len(table.target_names)
    columns: list[Any] = [
        np.repeat(np.array([key[column] for key in table.keys], dtype=object), targets)
        for column in range(len(table.key_names))
    ]
    return [*columns, np.tile(np.array(table.target_names, dtype=object), len(data.ends))]


def _bound(values: Array) -> pa.Array:
    return pa.array(values.reshape(-1), from_pandas=True)  # NaN as null


def _arrow(column: Any) -> pa.Array:
    return column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column)


def _with_key_types(made: pa.Table, given: pa.Table, keys: tuple[str, ...]) -> pa.Table:
    """Keys that were whole numbers in the table are whole numbers again."""
    for name in keys:
        kind = given.schema.field(name).type
        if pa.types.is_integer(kind):
            index = made.column_names.index(name)
            made = made.set_column(index, name, pc.cast(made.column(name), kind))
    return made
