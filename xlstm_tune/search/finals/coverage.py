"""How often the winner's intervals and quantiles held on the test part.

n samples, H horizon steps, K targets, Q quantiles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from xlstm_tune.data.table import Table
from xlstm_tune.data.windows import Prepared, Windows
from xlstm_tune.predict.champion import LEVELS
from xlstm_tune.predict.make import validation_residuals
from xlstm_tune.results import read
from xlstm_tune.search.finals.finalists import Finalist, in_a_task, load_models
from xlstm_tune.search.persistence.store import Shared
from xlstm_tune.search.placement.resources import Placement
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.judge import forecasts

PART = "test"
INTERVAL, QUANTILE = "interval", "quantile"
ROUNDING = 1e-6
"""Standard deviations by which float32 may part a quantile from a value that it is the same as."""


def interval_rows(folder: Path, one: Finalist, table: Table, data: Prepared) -> list[dict[str, Any]]:
    """Rows of the coverage table, one for each of LEVELS that validation has samples enough for.

    Of the predictions that the search kept, of a population its best seed's, with the intervals that `predict` puts
    around them.
    """
    kept = read(folder, "predictions")
    kept = kept.filter(pc.and_(pc.equal(kept["trial"], one.number), pc.equal(kept["part"], PART)))
    shape = (-1, data.horizon, len(data.target_names))
    actual, predicted = (kept[name].to_numpy().reshape(shape) for name in ("actual", "predicted"))
    every = [table.series_name(number) for number in range(len(table.keys))]
    place = {name: number for number, name in enumerate(every)}
    series = np.array([place[name] for name in kept["series"].to_pylist()[:: shape[1] * shape[2]]])
    residuals = validation_residuals(folder, one.number, table, data)
    minimum, rows = data.target_minimum, []
    for level in LEVELS:
        half = residuals.half_widths(level, every, np.ones((len(every), shape[2])))[series]  # [n, H, K]
        if np.isnan(half).any():
            continue
        low = predicted - half if minimum is None else np.maximum(predicted - half, minimum)
        high = predicted + half
        rows.append(
            {
                "trial": one.number,
                "kind": INTERVAL,
                "level": level,
                "share": float(((low <= actual) & (actual <= high)).mean()),
                # Targets have units of their own: their widths have no mean.
                "width": float((high - low).mean()) if shape[2] == 1 else None,
                "samples": len(actual),
            }
        )
    return rows


def quantile_rows(
    folder: Path, one: Finalist, spec: SearchSpec, data: Prepared, device: torch.device | None = None
) -> list[dict[str, Any]]:
    """Rows of the coverage table, one for each quantile that the winner forecasts: none without a quantile loss.

    device: as for `load_models`.
    """
    (model, *_), config, device, dtype = load_models(folder, one, spec, data, device)
    levels = config.training.levels
    if not levels:
        return []
    windows = Windows(data, PART, config.lookback, device)
    at_or_below, cells = torch.zeros(len(levels), dtype=torch.int64, device=device), 0
    for predicted, actual in forecasts(model, windows, dtype, every_quantile=True):  # [b, H, K, Q], [b, H, K]
        at_or_below += (actual.unsqueeze(-1) <= predicted + ROUNDING).sum((0, 1, 2))
        cells += actual.numel()
    return [
        {"trial": one.number, "kind": QUANTILE, "level": level, "share": count / cells, "samples": len(windows)}
        for level, count in zip(levels, at_or_below.tolist(), strict=True)
    ]


def quantile_rows_remotely(
    store: Shared, one: Finalist, spec: SearchSpec, data: Any, placement: Placement
) -> list[dict[str, Any]]:
    """`quantile_rows` by a Ray task with a trial's own resources. data, store: as for `finalists.predict_remotely`."""
    import ray

    if not spec.resolve(one.params).training.levels:
        return []
    task = ray.remote(num_cpus=placement.cpus, num_gpus=placement.gpus)(_quantile_task)
    rows: list[dict[str, Any]] = ray.get(task.remote(store, one, spec.model_dump(by_alias=True), data))
    return rows


def _quantile_task(store: Shared, one: Finalist, raw: dict[str, Any], data: Prepared) -> list[dict[str, Any]]:
    with in_a_task(store, one):
        return quantile_rows(store.folder, one, SearchSpec.parse(raw), data)
