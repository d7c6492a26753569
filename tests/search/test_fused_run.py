"""Whole searches whose configurations train together: real Ray, MLflow database and Parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from wave_search import rows, runs, search, write_wave

from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.loop import train

pytestmark = pytest.mark.slow
RATE = "training.learning_rate"


def write(folder: Path, **sections: Any) -> Path:
    """A search file for the wave, of which four points have one shape and four another."""
    spec: dict[str, Any] = {
        "search": {"algorithm": "grid", "scheduler": "none", "start_with": "none"},
        "space": {"model.hidden_size": {"choice": [4, 8]}, RATE: {"choice": [0.1, 0.03, 0.001, 10.0]}},
        "model": {"family": "slstm", "layers": 1, "heads": 2},
        "training": {"epochs": 2, "batch_size": 64, "optimiser": "sgd", "clip": 0.0},
        "resources": {"max_concurrent": 2},
    }
    return write_wave(folder, spec | {name: {**spec[name], **section} for name, section in sections.items()})


def test_a_fused_grid_has_the_records_of_every_configuration(tmp_path: Path) -> None:
    """Of each group of four one diverges, and ASHA stops some: the others go on, and all have their own numbers."""
    asha = {"scheduler": "asha", "grace_epochs": 1, "reduction_factor": 2}
    file = write(tmp_path, search=asha, training={"epochs": 4})
    output = search(tmp_path, str(file))
    trials = rows(tmp_path, "trials")
    assert [row["trial"] for row in sorted(trials, key=lambda row: row["trial"])] == list(range(8))
    assert {row["fused"] for row in trials} == {4}
    assert {row["status"] for row in trials} == {"completed", "pruned", "failed"}
    assert "2 failed" in output and "ended early" not in output
    # Each has the score that it gets alone; the two that diverge take nobody with them.
    spec = SearchSpec.parse(yaml.safe_load(file.read_text()))
    data = prepare(load_table(spec.data), spec.data, spec.max_lookback())
    epochs = [(row["trial"], row["epoch"]) for row in rows(tmp_path, "epochs")]
    assert len(epochs) == len(set(epochs))
    for row in trials:
        params = json.loads(row["params"])
        if params[RATE] == 10.0:
            assert row["status"] == "failed" and row["reason"].startswith("diverged: ")
            continue
        results = [one.validation["rmse"] for one in train(spec.resolve(params), data)]
        assert (row["epochs"] == 4) == (row["status"] == "completed")
        assert row["epochs"] == max(epoch for trial, epoch in epochs if trial == row["trial"])
        assert row["val_rmse"] == pytest.approx(min(results[: row["epochs"]]), rel=1e-4)
    (score,) = (row for row in rows(tmp_path, "scores") if row["part"] == "test")
    assert np.isfinite(score["rmse"])

    client, children = runs(tmp_path)
    assert sorted(children) == list(range(8))
    for row in trials:
        run = children[row["trial"]]
        assert float(run.data.params[RATE]) == json.loads(row["params"])[RATE] and run.data.tags["fused"] == "4"
        if row["status"] != "failed":
            assert run.data.metrics["best_val_rmse"] == pytest.approx(row["val_rmse"])
            steps = [point.step for point in client.get_metric_history(run.info.run_id, "val_rmse")]
            assert steps == list(range(1, row["epochs"] + 1))
