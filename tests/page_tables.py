"""Search folders for tests of the page: real Parquet tables, written by ResultsWriter, without a search."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import yaml

from xlstm_tune.report.blocks import Figure, Figures, Section
from xlstm_tune.report.record import Record, read_record
from xlstm_tune.results import ResultsWriter

FAMILIES = ("lstm", "slstm", "mlstm", "xlstm")
BASELINES = {"dlinear": 3.7, "last_value": 4.6, "mean": 7.7}
SPEC: dict[str, Any] = {
    "name": "made",
    "data": {"source": ["sample:seattle-weather"], "task": "forecast", "lookback": 60, "horizon": 4},
    "search": {"objective": "val_rmse", "algorithm": "tpe", "trials": 300, "scheduler": "asha", "seed": 7},
    "space": {
        "model.family": {"choice": list(FAMILIES)},
        "model.pattern": {"choice": ["ms", "sm"], "when": {"model.family": "xlstm"}},
        "model.layers": {"choice": [1, 2], "when": {"model.family": ["lstm", "slstm", "mlstm"]}},
        "model.hidden_size": {"choice": [16, 32, 64]},
        "model.dropout": {"float": [0.0, 0.3]},
        "training.learning_rate": {"log_float": [0.0005, 0.01]},
    },
}


def figures(rmse: float, prefix: str = "") -> dict[str, float]:
    """All metrics of a table's row."""
    return {
        f"{prefix}rmse": rmse,
        f"{prefix}mae": 0.8 * rmse,
        f"{prefix}mse_standardised": rmse**2 / 50,
        f"{prefix}mae_standardised": rmse / 8,
    }


def point(rng: random.Random) -> dict[str, Any]:
    """Settings, drawn from SPEC's space."""
    family = rng.choice(FAMILIES)
    one: dict[str, Any] = {"model.family": family}
    if family == "xlstm":
        one["model.pattern"] = rng.choice(["ms", "sm"])
    else:
        one["model.layers"] = rng.choice([1, 2])
    one["model.hidden_size"] = rng.choice([16, 32, 64])
    one["model.dropout"] = rng.uniform(0, 0.3)
    one["training.learning_rate"] = 10 ** rng.uniform(math.log10(0.0005), -2)
    return one


def trial_row(number: int, params: dict[str, Any], rmse: float | None, **more: Any) -> dict[str, Any]:
    """A row of the trials table; completed unless `more` says otherwise."""
    family = params.get("model.family", "lstm")
    row = {
        "trial": number,
        "name": f"{family} · {params.get('model.hidden_size', 32)}",
        "status": "completed",
        "family": family,
        "config": {},
        "params": params,
        "epochs": 12,
        "best_epoch": 9,
        "parameters": 1000 * int(params.get("model.hidden_size", 32)),
        "seconds": 2.0 + number % 7,
        "peak_memory_mib": 300.0 + number % 11,
        "started": 1_790_000_000 + 10 * number,
        "ended": 1_790_000_009 + 10 * number,
    }
    return row | (figures(rmse, "val_") if rmse is not None else {}) | more


def forecasts(
    model: str, trial: int | None, part: str, spread: float, series: Sequence[str] = ("all",), samples: int = 60,
    horizon: int = 4,
) -> dict[str, list[Any]]:  # fmt: skip
    """Columns of the predictions table: a sine, and noise upon it."""
    rng = random.Random(f"{model} {part}")
    columns: dict[str, list[Any]] = {
        name: [] for name in ("trial", "model", "part", "series", "time", "step", "target", "actual", "predicted")
    }
    for name in series:
        for sample in range(samples):
            for step in range(1, horizon + 1):
                actual = 10 + 5 * math.sin((sample + step) / 9)
                values = (
                    trial, model, part, name, str(date(2015, 1, 1) + timedelta(sample)), step,
                    "temp_max", actual, actual + rng.gauss(0, spread * (1 + step / 10)),
                )  # fmt: skip
                for column, value in zip(columns, values, strict=True):
                    columns[column].append(value)
    return columns


def write_baselines(writer: ResultsWriter, **more: Any) -> None:
    """Scores and predictions of a few baselines; `more` goes to `forecasts`."""
    for name, rmse in BASELINES.items():
        for part in ("validation", "test"):
            writer.baselines([{"name": name, "part": part, "settings": {}, **figures(rmse)}])
            writer.predictions(forecasts(name, None, part, rmse / 3, **more))


def write_search(
    folder: Path, trials: int, *, ended: bool = True, spec: dict[str, Any] | None = None, epochs: int = 12, **more: Any
) -> list[dict[str, Any]]:
    """A search of so many trials, with failed, pruned and duplicate ones; `more` goes to `forecasts`.

    ended: finalists are scored and the tables closed. Returns the trials' rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec or SPEC, sort_keys=False))
    (folder / "environment.json").write_text(json.dumps({"python": "3.11.9", "cpus": 2, "data_fingerprint": "abc123"}))
    rng = random.Random(3)
    writer = ResultsWriter(folder, rows=100_000, seconds=1e9)
    write_baselines(writer, **more)
    rows = []
    for number in range(trials):
        params = point(rng)
        final = 3.4 + abs(math.log10(params["training.learning_rate"]) + 2.6) + rng.random()
        status = ("completed", "pruned", "pruned", "completed", "failed", "pruned", "completed", "duplicate")[
            number % 8
        ]
        last = epochs if status == "completed" else 1 + number % epochs
        row = trial_row(number, params, final if status != "failed" else None, status=status, epochs=last)
        if status == "failed":
            row["reason"] = ("diverged: the loss is not finite", "out of memory")[number % 3 == 0]
        if status == "duplicate":
            row["duplicate_of"] = number - 1
            row |= {f"val_{name}": rows[-1][f"val_{name}"] for name in figures(1.0)}
        else:
            for epoch in range(1, last + 1):
                value = final + 3 * math.exp(-epoch / 3)
                writer.epoch({"trial": number, "epoch": epoch, "train_loss": value / 8, **figures(value, "val_")})
        writer.trial(row)
        rows.append(row)
    if ended:
        best: dict[str, dict[str, Any]] = {}
        scored = [row for row in rows if row["status"] in ("completed", "pruned")]
        for row in sorted(scored, key=lambda row: row["val_rmse"]):
            best.setdefault(row["family"], row)
        for row in best.values():
            for part in ("validation", "test"):
                writer.scores(
                    [{"model": row["family"], "trial": row["trial"], "part": part, **figures(row["val_rmse"])}]
                )
                writer.predictions(forecasts(row["family"], row["trial"], part, row["val_rmse"] / 4, **more))
        writer.close()
    else:
        writer.flush()
    return rows


def few(folder: Path, rows: list[dict[str, Any]]) -> Record:
    """The record of a search of these trials alone."""
    with ResultsWriter(folder) as writer:
        for row in rows:
            writer.trial(row)
    return read_record(folder)


def figure(section: Section | None, name: str) -> Figure:
    """The figure of this id in a section."""
    assert section is not None
    found = [one for block in section.blocks for one in (block.figures if isinstance(block, Figures) else [block])]
    return next(one for one in found if isinstance(one, Figure) and one.id == name)
