"""Whole searches with a population in every trial: real Ray, MLflow database and Parquet."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from wave_search import rows, runs, search, write_wave

pytestmark = pytest.mark.slow
RATE = "training.learning_rate"


def write(folder: Path, **sections: Any) -> Path:
    """A search file for the wave: one trial after the other, in one process."""
    spec: dict[str, Any] = {
        "search": {"trials": 2, "seed": 1, "scheduler": "none"},
        "space": {"model.hidden_size": {"choice": [4, 8]}},
        "model": {"family": "lstm", "layers": 1},
        "training": {"epochs": 2, "batch_size": 64, "optimiser": "sgd", "clip": 0.0},
        "population": {"seeds": 3, RATE: [0.01, 0.05]},
        "resources": {"max_concurrent": 1},
    }
    for name, section in sections.items():
        spec[name] = section if name == "population" else {**spec[name], **section}
    return write_wave(folder, spec)


def trained(folder: Path) -> list[dict[str, Any]]:
    """Rows of the trials that are no duplicates."""
    return [row for row in rows(folder, "trials") if row["status"] != "duplicate"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two trials of nine members, the third setting of which diverges."""
    folder = tmp_path_factory.mktemp("population")
    return folder, search(folder, str(write(folder, population={"seeds": 3, RATE: [0.01, 0.05, 10.0]})))


def test_score_is_the_best_settings_mean_over_its_seeds(finished: tuple[Path, str]) -> None:
    folder, output = finished
    for trial in trained(folder):
        assert trial["status"] == "completed" and trial["members"] == 9
        own = [row for row in rows(folder, "members") if row["trial"] == trial["trial"]]
        own.sort(key=lambda row: row["member"])  # finalists' rows were written once more, with their test figures
        assert [row["member"] for row in own] == list(range(9)) and [row["seed"] for row in own] == [0, 1, 2] * 3
        values: dict[str, list[float]] = {}
        for row in own:
            if row["status"] == "completed":
                values.setdefault(row["setting"], []).append(row["val_rmse"])
        assert all(len(seeds) == 3 for seeds in values.values())
        best = min(values, key=lambda setting: statistics.fmean(values[setting]))
        assert json.loads(trial["setting"]) == json.loads(best)
        assert trial["val_rmse"] == pytest.approx(np.mean(values[best]))
        assert trial["std_error"] == pytest.approx(np.std(values[best], ddof=1) / np.sqrt(3))
        assert json.loads(trial["config"])[RATE] == json.loads(best)[RATE]
    assert "±" in output and "won: rmse" in output


def test_a_setting_that_diverges_is_out_and_its_trial_lives(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    lost = [row for row in rows(folder, "members") if json.loads(row["setting"])[RATE] == 10.0]
    assert len(lost) == 6
    assert all(row["status"] in ("failed", "dropped") and row["reason"] for row in lost)
    assert any(row["reason"].startswith("diverged: ") for row in lost)


def test_finalist_is_every_seed_of_the_best_setting(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    (score,) = (row for row in rows(folder, "scores") if row["part"] == "test")
    tested = [row["test_rmse"] for row in rows(folder, "members") if row["test_rmse"] is not None]
    assert len(tested) == score["seeds"] == 3
    assert score["rmse"] == pytest.approx(np.mean(tested))
    assert score["rmse_std_error"] == pytest.approx(np.std(tested, ddof=1) / np.sqrt(3))
    # The members' stored weights give the validation figure that the trial reported.
    (held_out,) = (row for row in rows(folder, "scores") if row["part"] == "validation")
    (trial,) = (row for row in rows(folder, "trials") if row["trial"] == held_out["trial"])
    assert held_out["rmse"] == pytest.approx(trial["val_rmse"], rel=1e-5)


def test_mlflow_shows_the_members(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    client, children = runs(folder)
    for trial in trained(folder):
        run = children[trial["trial"]]
        assert run.data.params["population.seeds"] == "3"
        assert run.data.params[f"population.{RATE}"] == "0.01, 0.05, 10.0" and RATE not in run.data.params
        assert run.data.metrics["val_rmse"] == pytest.approx(trial["val_rmse"])
        assert run.data.metrics["val_rmse_std_error"] == pytest.approx(trial["std_error"])
        rate = json.loads(trial["setting"])[RATE]
        assert float(run.data.tags[f"winner.{RATE}"]) == rate
        for seed in range(3):
            history = client.get_metric_history(run.info.run_id, f"member/learning_rate {rate} seed {seed}/val_rmse")
            assert [point.step for point in history] == [1, 2]


def test_trial_fails_when_no_setting_is_left(tmp_path: Path) -> None:
    file = write(tmp_path, search={"trials": 1}, population={"seeds": 2, RATE: [10.0]})
    search(tmp_path, str(file), code=1)
    (trial,) = trained(tmp_path)
    assert trial["status"] == "failed" and trial["setting"] is None
    assert trial["reason"].startswith("diverged: no setting of the population is left (learning_rate 10.0 seed")


def test_asha_stops_populations_by_their_score(tmp_path: Path) -> None:
    asha = {"scheduler": "asha", "trials": 4, "grace_epochs": 1, "reduction_factor": 2}
    file = write(tmp_path, search=asha, training={"epochs": 3}, population={"seeds": 2})
    text = yaml.safe_load(file.read_text())
    text["space"][RATE] = {"log_float": [1e-4, 1e-1]}
    file.write_text(yaml.safe_dump(text))
    search(tmp_path, str(file))
    trials = rows(tmp_path, "trials")
    assert {row["status"] for row in trials} == {"completed", "pruned"}
    pruned = {row["trial"] for row in trials if row["status"] == "pruned"}
    own = [row for row in rows(tmp_path, "members") if row["trial"] in pruned]
    assert {row["status"] for row in own} == {"pruned"} and len(own) == 2 * len(pruned)
    assert all(row["std_error"] is not None for row in trials)
