"""The tables of a plausible search, written in milliseconds: for tests of what is made of tables alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlstm_tune.result_tables import KINDS
from xlstm_tune.results import ResultsWriter

Array = NDArray[np.float64]

FAMILIES = {"xlstm": 1.0, "slstm": 1.3, "lstm": 1.6}
"""Family → RMSE of its best trial, on validation and test."""
BASELINES = {"mean": 4.0, "last_value": 2.0}
STARTED = datetime(2026, 3, 1, 12, tzinfo=UTC)
TRIAL_SECONDS = 90.0
PARTS = ("validation", "test")


def figures(rmse: float | None, prefix: str = "") -> dict[str, float | None]:
    """The four metrics of a row, where `rmse` is known."""
    factors = {"rmse": 1.0, "mae": 0.8, "mse_standardised": 0.1, "mae_standardised": 0.2}
    return {f"{prefix}{name}": None if rmse is None else rmse * factor for name, factor in factors.items()}


def forecast_labels(samples: int, series: Sequence[str] = ("",)) -> list[tuple[str, str]]:
    """(series, time) of windows that follow each other day by day, `samples` in each series."""
    first = datetime(2024, 1, 1, tzinfo=UTC)
    days = [f"{first + timedelta(days=day):%Y-%m-%d}" for day in range(samples)]
    return [(name, day) for name in series for day in days]


def sequence_labels(counties: int, years: int) -> list[tuple[str, str]]:
    """(series, time) of a sequence for each county and year."""
    return [
        (f"county=County {county}, year={2000 + year}", f"{2000 + year}-12-31")
        for county in range(counties)
        for year in range(years)
    ]


def prediction_table(
    model: str,
    trial: int | None,
    part: str,
    labels: Sequence[tuple[str, str]],
    actual: Array,
    predicted: Array,
    targets: Sequence[str] = ("cases",),
) -> pa.Table:
    """One model's predictions of one part; actual, predicted: [n, H, K]."""
    n, horizon, k = actual.shape
    size = horizon * k
    series, time = (np.repeat(np.array(column, dtype=object), size) for column in zip(*labels, strict=True))
    columns = {
        "trial": [trial] * (n * size),
        "model": [model] * (n * size),
        "part": [part] * (n * size),
        "series": series,
        "time": time,
        "step": np.tile(np.repeat(np.arange(1, horizon + 1), k), n),
        "target": list(targets) * (n * horizon),
        "actual": actual.reshape(-1),
        "predicted": predicted.reshape(-1),
    }
    kind = KINDS["predictions"]
    return pa.table({name: pa.array(columns[name], kind.columns[name]) for name in kind.columns}, schema=kind.schema)


def smooth_errors(generator: np.random.Generator, shape: tuple[int, ...], keep: float = 0.5) -> Array:
    """[n, …] of deviation 1, each a share `keep` of the one before it plus noise."""
    noise = generator.normal(size=shape)
    for row in range(1, len(noise)):
        noise[row] = keep * noise[row - 1] + np.sqrt(1 - keep**2) * noise[row]
    return noise


def data_facts(task: str, labels: Mapping[str, Sequence[Any]], horizon: int, targets: Sequence[str]) -> dict[str, Any]:
    """The `data` column of the search table. labels: of each judged part."""
    regression = task == "regression"
    return {
        "task": task,
        "targets": list(targets),
        "target_mean": [20.0] * len(targets),
        "target_std": [5.0] * len(targets),
        "mase_scale": None if regression else [2.0] * len(targets),
        "season": 1 if regression else 7,
        "lookback": 28,
        "max_lookback": 28,
        "horizon": horizon,
        "fingerprint": "f" * 64,
        "table_fingerprint": "a" * 64,
        "samples": {"train": 700} | {part: len(labels[part]) for part in PARTS},
        "inputs": ["temperature", "rain", *([] if regression else targets)],
        "keys": ["county", "year"] if regression else [],
        "notes": ["the column 'id' is constant, so it was left out"],
        "best_possible": None,
    }


def search_row(name: str, data: Mapping[str, Any], objective: str = "val_rmse", **more: Any) -> dict[str, Any]:
    """A row of the search table that has ended an hour after it began."""
    search = {"objective": objective, "algorithm": "tpe", "scheduler": "asha", "seed": 0, "trials": 18}
    split = {"by": ["time"], "validation": 0.15, "test": 0.15}
    section = {
        "source": [f"{name}.csv"],
        "task": data["task"],
        "target": data["targets"],
        "lookback": data["lookback"],
        "horizon": data["horizon"],
        "split": split,
    }
    return {
        "name": name,
        "spec": {"name": name, "data": section, "search": search, "space": {"model.family": {"choice": [*FAMILIES]}}},
        "environment": {"xlstm_tune": "0.1.0", "python": "3.11.9", "cpus": 4, "gpus": [], "commit": None},
        "data": dict(data),
        "concurrent": 2,
        "cpus_per_trial": 1.0,
        "gpus_per_trial": 0.5,
        "status": "completed",
        "started": STARTED,
        "ended": STARTED + timedelta(hours=1),
        "seconds": 3600.0,
        **more,
    }


def write_trials(writer: ResultsWriter, families: Mapping[str, float], scored: int = 4) -> dict[str, int]:
    """Trials of each family: `scored` with figures, of which the last was pruned, then a failed one and a duplicate.

    Returns the best trial of each family; its RMSE is the one given, the others' lie a fifth apart above it.
    """
    best: dict[str, int] = {}
    number = 0
    for family, rmse in families.items():
        best[family] = number
        ends = ["completed"] * (scored - 1) + ["pruned"] * (scored > 0) + ["failed", "duplicate"]
        for place, status in enumerate(ends):
            value = None if status == "failed" else rmse * (1 + 0.2 * (place if status != "duplicate" else 0))
            began = STARTED + timedelta(seconds=TRIAL_SECONDS * number)
            config = {"model.family": family, "model.hidden_size": 32 * (1 + place), "training.learning_rate": 0.01}
            writer.trial(
                {
                    "trial": number,
                    "name": f"{family} d{config['model.hidden_size']}",
                    "status": status,
                    "reason": "diverged in epoch 2" if status == "failed" else None,
                    "family": family,
                    "config": config,
                    "params": config,
                    "epochs": 3,
                    "best_epoch": 2,
                    **figures(value, "val_"),
                    "parameters": 10_000 * (1 + place),
                    "seconds": 0.0 if status == "duplicate" else TRIAL_SECONDS,
                    "sequences_per_s": 1000.0,
                    "peak_memory_mib": 300.0,
                    "backend": "reference",
                    "duplicate_of": best[family] if status == "duplicate" else None,
                    "started": began,
                    "ended": began + timedelta(seconds=TRIAL_SECONDS),
                }
            )
            for epoch in range(1, 4 if value else 1):
                writer.epoch(
                    {
                        "trial": number,
                        "epoch": epoch,
                        "train_loss": 1.0 / epoch,
                        **figures((value or 0.0) * (1 + 0.1 * abs(epoch - 2)), "val_"),
                        "learning_rate": 0.01,
                        "seconds": TRIAL_SECONDS / 3,
                        "sequences_per_s": 1000.0,
                        "timestamp": began + timedelta(seconds=TRIAL_SECONDS * epoch / 3),
                    }
                )
            number += 1
    return best


def write_search(
    folder: Path,
    task: str = "forecast",
    families: Mapping[str, float] = FAMILIES,
    baselines: Mapping[str, float] = BASELINES,
    *,
    labels: Sequence[tuple[str, str]] | None = None,
    horizon: int = 3,
    targets: Sequence[str] = ("cases",),
    parts: Sequence[str] = PARTS,
    finalists: bool = True,
    row: bool = True,
    name: str = "demo",
    data: Mapping[str, Any] | None = None,
    seed: int = 0,
    shared: float = 0.5,
    objective: str = "val_rmse",
    **more: Any,
) -> None:
    """A search that has ended, in `folder`.

    families, baselines: name → RMSE. labels: (series, time) of each sample of a part; the default is 240 days, or 20
    counties × 12 years. parts: those that have predictions; finalists: whether trials have any. row: whether the search
    table is written, with `data` laid over its data facts and `more` over its columns. shared: of each model's errors,
    the share that all models have in common.
    """
    horizon = 1 if task == "regression" else horizon
    if labels is None:
        labels = forecast_labels(240) if task == "forecast" else sequence_labels(20, 12)
    generator = np.random.default_rng(seed)
    shape = (len(labels), horizon, len(targets))
    facts = data_facts(task, dict.fromkeys(PARTS, labels), horizon, targets) | dict(data or {})
    with ResultsWriter(folder) as writer:
        if row:
            writer.search(search_row(name, facts, objective, **more))
        best = write_trials(writer, families)
        tables: list[pa.Table] = []
        for part in PARTS:
            wave = 5 * np.sin(np.arange(len(labels)) / 9)[:, None, None]
            actual = 20 + wave + generator.normal(size=shape)
            common = smooth_errors(generator, shape)
            trained = {(family, best[family]): rmse for family, rmse in families.items()} if finalists else {}
            plain = {(baseline, None): rmse for baseline, rmse in baselines.items()}
            for (model, trial), rmse in (trained | plain).items():
                if part not in parts and trial is not None:
                    continue
                error = np.sqrt(shared) * common + np.sqrt(1 - shared) * smooth_errors(generator, shape)
                tables.append(prediction_table(model, trial, part, labels, actual, actual + rmse * error, targets))
                if trial is not None:
                    writer.scores([{"model": model, "trial": trial, "part": part, **figures(rmse)}])
                else:
                    writer.baselines([{"name": model, "part": part, **figures(rmse), "settings": {}}])
        writer.predictions(pa.concat_tables(tables))
