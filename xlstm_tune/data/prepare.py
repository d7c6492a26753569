"""A table as the arrays that every trial shares: split, and standardised by its training part alone.

N samples; other letters as in `windows`.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from xlstm_tune.data.clock import season_of, weekdays
from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.derived import derived_notes
from xlstm_tune.data.gaps import lengths_note
from xlstm_tune.data.minimum import check_minimum
from xlstm_tune.data.scaling import Scaling, fit_scaling
from xlstm_tune.data.season import season_notes, stride_notes
from xlstm_tune.data.split import Split, check_no_leak, split, with_validation
from xlstm_tune.data.table import Table
from xlstm_tune.data.windows import Prepared, Rounded


def prepare(table: Table, config: DataConfig, max_lookback: int | None = None, refit: bool = False) -> Prepared:
    """Split the table, and standardise it by its training part alone.

    `max_lookback` is the largest lookback that any trial may ask for; None means the search file's own. `refit`: the
    training part holds the validation part too, which then says nothing about a model any more. Raises DataError when a
    part has no sample or a target is constant in the training part.
    """
    lookback = config.lookback or int(np.diff(table.offsets).max())
    largest = max(lookback, max_lookback or 0)
    result = split(table, config, largest)
    check_no_leak(table, result, config)
    if refit:
        result = with_validation(result, 1 if config.task == "regression" else config.stride)
    week = weekdays(table.shown, table.offsets, table.step, table.time_kind)
    season = config.season or season_of(table.step, table.time_kind, week)
    notes = [*table.notes, *result.notes, *check_minimum(table, config), *stride_notes(config, season)]
    notes += season_notes(table, result.train_rows, config, season)
    if config.task == "regression":
        lengths = lengths_note(table.offsets, table.series_name)
        notes += [*([lengths] if lengths else []), *derived_notes(table)]

    series = np.searchsorted(table.offsets, result.ends - 1, side="right").astype(np.int64) - 1
    train = result.parts["train"]
    forecast = config.task == "forecast"
    judged = np.concatenate([result.parts[part] for part in ("validation", "test")])
    judged_rows = _rows_of(result, judged, lookback, config.horizon if forecast else 0) & ~result.train_rows
    scaling = fit_scaling(table, result.train_rows, train, series[train], forecast, notes, judged_rows, judged)
    # Keys that came later are not in it until they are given, so that older searches can go on.
    later: dict[str, Any] = {} if config.split.order else {"split": {"order"}}
    if config.target_minimum is None:
        later["target_minimum"] = True
    cut = config.model_dump_json(exclude={"source": True, **later})
    cut = f"{cut} {largest}{' refit' if refit else ''}"
    made = _assemble(
        table,
        scaling,
        result,
        series,
        task=config.task,
        horizon=config.horizon,
        lookback=lookback,
        season=season,
        notes=tuple(notes),
        fingerprint=_fingerprint(table.fingerprint, cut),
        minimum=config.target_minimum,
    )
    if table.rounded is None:
        return made
    return replace(made, rounded=Rounded(_fingerprint(table.rounded, cut), scaling.inputs.exact))


def _rows_of(result: Split, samples: np.ndarray, lookback: int, ahead: int) -> np.ndarray:
    """bool [R]: rows that these samples see, or that are `ahead` steps behind them at most."""
    first = np.maximum(result.starts[samples], result.ends[samples] - lookback)
    change = np.zeros(len(result.train_rows) + 1, dtype=np.int64)
    np.add.at(change, first, 1)
    np.add.at(change, result.ends[samples] + ahead, -1)
    return np.cumsum(change[:-1]) > 0


def _fingerprint(table: str, cut: str) -> str:
    return hashlib.sha256(f"{table}{cut}".encode()).hexdigest()


def prepare_to_predict(
    table: Table, scaling: Scaling, result: Split, horizon: int, lookback: int, minimum: float | None
) -> Prepared:
    """A new table as inputs, by the statistics of the training that `scaling` holds; minimum: of the targets.

    result: its parts train and validation may be empty. A forecast's horizon may lie behind the last row of its series:
    what stands there of the targets means nothing.
    """
    series = np.searchsorted(table.offsets, result.ends - 1, side="right").astype(np.int64) - 1
    task = "forecast" if scaling.forecast else "regression"
    prepared = _assemble(
        table, scaling, result, series, task, horizon, lookback,
        season=1, notes=(), fingerprint=table.fingerprint, minimum=minimum,
    )  # fmt: skip
    if not scaling.forecast:
        return prepared
    behind = np.zeros((horizon, len(table.target_names)), dtype=np.float32)
    return replace(prepared, targets=np.concatenate([prepared.targets, behind]))


def _assemble(
    table: Table,
    scaling: Scaling,
    result: Split,
    series: np.ndarray,
    task: str,
    horizon: int,
    lookback: int,
    season: int,
    notes: tuple[str, ...],
    fingerprint: str,
    minimum: float | None,
) -> Prepared:
    """series: int64 [N], of each sample."""
    targets = scaling.standardised_targets(table)
    features = scaling.standardised_inputs(table, targets)
    static = scaling.standardised_static(table)
    given = () if static is None else (static, series)
    moments = (scaling.targets.mean, scaling.targets.std)
    for array in (features, targets, *moments, result.starts, result.ends, *result.parts.values(), *given):
        array.flags.writeable = False
    return Prepared(
        task=task,
        features=features,
        targets=targets,
        starts=result.starts,
        ends=result.ends,
        parts=result.parts,
        target_mean=scaling.targets.mean,
        target_std=scaling.targets.std,
        target_columns=scaling.target_columns,
        feature_names=scaling.inputs.names,
        target_names=table.target_names,
        horizon=horizon,
        lookback=lookback,
        season=season,
        oracle=table.oracle,
        notes=notes,
        fingerprint=fingerprint,
        static=static,
        static_names=scaling.static.names,
        series=None if static is None else series,
        scaling=scaling,
        target_minimum=minimum,
    )
