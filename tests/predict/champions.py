"""Finished searches without Ray: one trial, trained and judged as a search does it."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.layout import WEIGHTS, trial_folder
from xlstm_tune.results import ResultsWriter, read
from xlstm_tune.search.finals.finalists import Finalist, Judge, predict_finalist
from xlstm_tune.search.persistence.folder import create_folder
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.checkpoint import save_weights
from xlstm_tune.training.loop import train

MODEL = {"family": "lstm", "hidden_size": 8, "layers": 1}
TRAINING = {"epochs": 1, "batch_size": 64, "learning_rate": 0.01}


def finish(
    storage: Path, name: str, data: dict[str, Any], exact: Collection[str] | None = None, **sections: Any
) -> Path:
    """The folder of a search with one trial that has come to its end; it has no champion yet.

    exact: as for `make_table`; earlier programs had ().
    """
    raw = {"name": name, "data": data, "model": MODEL | sections.get("model", {})}
    spec = SearchSpec.parse(raw | {"training": TRAINING | sections.get("training", {})})
    table = load_table(spec.data, exact)
    prepared = prepare(table, spec.data, spec.max_lookback())
    folder = storage / name
    storage.mkdir(exist_ok=True)
    create_folder(folder, spec, prepared.fingerprint)
    config = spec.resolve({})
    *_, last = train(config, prepared, device="cpu")
    place = trial_folder(folder, 0)
    place.mkdir(parents=True)
    assert last.state.best_weights is not None
    save_weights(place / WEIGHTS, last.state.best_weights)
    judge = Judge(table, prepared)
    with ResultsWriter(folder) as results:
        scores = {f"val_{key}": value for key, value in last.validation.items()}
        row = {"trial": 0, "name": config.title(), "status": "completed", "family": "lstm", "best_epoch": 1}
        results.trial(row | {"config": config.flat(), "params": {}} | scores)
        (parts,) = predict_finalist(folder, Finalist(0, "lstm", {}), spec, prepared)
        for part, predicted in parts.items():
            results.scores([{"trial": 0, "model": "lstm", "part": part, **judge.metrics(part, predicted)}])
            results.predictions(judge.columns(0, "lstm", part, predicted))
    return folder


def reported(folder: Path, part: str = "test") -> list[dict[str, Any]]:
    """The predictions that a search wrote down for a part."""
    return [row for row in read(folder, "predictions").to_pylist() if row["part"] == part and row["trial"] is not None]


def write_csv(path: Path, columns: dict[str, list[Any]]) -> Path:
    lines = [",".join(columns)]
    lines += [",".join(str(cell) for cell in row) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def single(folder: Path, rows: int = 120) -> Path:
    """One series without a clock, two targets and an input that is none."""
    rng = np.random.default_rng(0)
    wave = 100 + 10 * np.sin(np.arange(rows) / 6) + rng.normal(size=rows)
    columns = {"y": wave.round(3).tolist(), "z": (wave[::-1] / 7).round(3).tolist(), "x": list(range(rows))}
    return write_csv(folder / "single.csv", columns)


SINGLE: dict[str, Any] = {"target": ["y", "z"], "lookback": 8, "horizon": 3}


def several(folder: Path, days: int = 90) -> Path:
    """Three series of days, out of order, with a category, a static column and blank cells."""
    rng = np.random.default_rng(1)
    rows = []
    start = np.datetime64("2021-01-01")
    for shop, size in (("a", 1.0), ("b", 2.0), ("c", 6.0)):
        for day in range(days):
            weather = ["sun", "rain", "snow"][int(rng.integers(3))]
            if weather == "snow" and day < days * 2 // 3:  # in the test part alone
                weather = "sun"
            sold = f"{50 * size + 5 * np.sin(day / 4) + rng.normal():.3f}" if day % 17 != 16 else ""
            rows.append((shop, str(start + day), size, weather, sold))
    rng.shuffle(rows)
    names = ("shop", "day", "size", "weather", "sold")
    return write_csv(folder / "several.csv", dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


SEVERAL: dict[str, Any] = {
    "series": "shop", "time": {"column": "day"}, "target": "sold", "static": "size", "categories": "weather",
    "calendar": ["year", "week"], "missing": "forward_fill", "lookback": 10, "horizon": 4,
    "split": {"train": "2021-01-01", "validation": "2021-02-20", "test": "2021-03-10"},
}  # fmt: skip


def yields(folder: Path, fields: int = 30) -> Path:
    """Sequences of different lengths with static columns, one of them a category."""
    rng = np.random.default_rng(2)
    columns: dict[str, list[Any]] = {name: [] for name in ("field", "year", "day", "rain", "sky", "soil", "area", "t")}
    for field in range(fields):
        soil, area = ["clay", "sand", "peat"][field % 3], 1.0 + field % 5
        rain = rng.normal(size=12 + field % 4)
        for day, value in enumerate(rain):
            cells = (field % 10, 2000 + field // 10, f"{2000 + field // 10}-03-{day + 1:02d}", f"{value:.4f}")
            cells += (["grey", "blue"][day % 2], soil, area, f"{area * rain.mean():.4f}")
            for name, cell in zip(columns, cells, strict=True):
                columns[name].append(cell)
    return write_csv(folder / "yields.csv", columns)


YIELDS: dict[str, Any] = {
    "task": "regression", "sequence": ["field", "year"], "time": {"column": "day"}, "target": "t",
    "static": ["soil", "area"], "categories": ["soil", "sky"],
    "split": {"by": ["field"], "validation": 0.2, "test": 0.2},
}  # fmt: skip


def same(made: list[float], wanted: list[float]) -> None:
    """To six digits of what they are."""
    np.testing.assert_allclose(made, wanted, rtol=1e-6)


def example_request(folder: Path) -> dict[str, Any]:
    """The request that comes with a champion."""
    return dict(json.loads((folder / "champion" / "example.json").read_text()))


def arrow(request: dict[str, Any]) -> pa.Table:
    """The table of a request."""
    asked = request["dataframe_split"]
    return pa.table(dict(zip(asked["columns"], map(list, zip(*asked["data"], strict=True)), strict=True)))
