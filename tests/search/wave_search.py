"""Whole searches on a sine wave in this process, and what they leave: tables and MLflow runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import ray
import yaml
from tracked import give_database
from typer.testing import CliRunner

from xlstm_tune.results import read
from xlstm_tune.search.__main__ import app


def write_wave(folder: Path, spec: dict[str, Any]) -> Path:
    """A sine wave with noise, wave.csv, and the search file `wave` for it; `spec` has all but name and data."""
    values = np.sin(np.arange(300) / 8) * 10 + np.random.default_rng(0).normal(size=300)
    (folder / "wave.csv").write_text("y\n" + "\n".join(f"{value:.4f}" for value in values) + "\n")
    data = {"source": str(folder / "wave.csv"), "target": "y", "lookback": 12, "horizon": 3}
    file = folder / "wave.yaml"
    file.write_text(yaml.safe_dump({"name": "wave", "data": data, **spec}))
    return file


def search(folder: Path, *arguments: str, code: int = 0) -> str:
    """The command; its output."""
    give_database(folder / "searches")
    result = CliRunner().invoke(app, [*arguments, "--storage", str(folder / "searches")])
    assert not ray.is_initialized()
    assert result.exit_code == code, result.output
    return result.output


def rows(folder: Path, table: str) -> list[dict[str, Any]]:
    """A table of the search."""
    return read(folder / "searches" / "wave", table).to_pylist()


def runs(folder: Path) -> tuple[Any, dict[int, Any]]:
    """MLflow's client, and the child runs by trial."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder / 'searches' / 'mlflow.db'}")
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return client, {int(t): run for run in found if (t := run.data.tags.get("xlstm_tune.trial")) is not None}
