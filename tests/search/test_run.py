"""Whole searches: real Ray, real Optuna journal, real MLflow database, real Parquet."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from safetensors.numpy import load_file
from tracked import give_database
from typer.testing import CliRunner

from xlstm_tune.predict.__main__ import app as predict
from xlstm_tune.results import read
from xlstm_tune.search.__main__ import app
from xlstm_tune.training.checkpoint import load_metadata

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def write_search(folder: Path, **sections: Any) -> Path:
    """A sine wave with noise and a search file for it."""
    rng = np.random.default_rng(0)
    values = np.sin(np.arange(400) / 8) * 10 + rng.normal(size=400)
    (folder / "wave.csv").write_text("y\n" + "\n".join(f"{value:.4f}" for value in values) + "\n")
    spec = {
        "name": "wave",
        "data": {"source": "wave.csv", "target": "y", "lookback": 12, "horizon": 3},
        "search": {"trials": 8, "seed": 3, "scheduler": "none"},
        "space": {
            "model.family": {"choice": ["lstm", "lstm_scratch", "slstm", "mlstm", "xlstm"]},
            "model.dropout": {"float": [0.0, 0.4]},
        },
        "model": {"hidden_size": 8, "heads": 2, "layers": 1},
        "training": {"epochs": 2, "batch_size": 64, "learning_rate": 0.01},
    }
    for name, section in sections.items():
        spec[name] = {**spec[name], **section} if name in ("data", "search", "model", "training") else section
    file = folder / "wave.yaml"
    file.write_text(yaml.safe_dump(spec))
    return file


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "xlstm_tune.search", *arguments, "--storage", str(folder / "searches")]


def search(folder: Path, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
    """Run a search in its own process, as a user does; its terminal output."""
    answer = subprocess.run(
        command(folder, *arguments), cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert answer.returncode in codes, answer.stdout + answer.stderr
    assert not answer.stderr.strip(), f"something talks on stderr: {answer.stderr}"
    return answer.stdout


def search_here(folder: Path, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
    """Run a search in this process, which has imported torch, Ray and MLflow already; its terminal output."""
    give_database(folder / "searches")
    result = CliRunner().invoke(app, [*arguments, "--storage", str(folder / "searches")])
    assert result.exit_code in codes, result.output
    assert result.exit_code == 2 or not result.stderr.strip(), f"something talks on stderr: {result.stderr}"
    return result.output


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "XLSTM_TUNE_REPORT": "on", "XLSTM_TUNE_IMPORTANCE": "on"}


def study_of(folder: Path, name: str = "wave") -> optuna.Study:
    journal = JournalFileBackend(str(folder / "searches" / name / "optuna.journal"))
    return optuna.load_study(study_name=name, storage=JournalStorage(journal))


def runs_of(folder: Path, name: str = "wave") -> tuple[Any, list[Any]]:
    """The parent run and the child runs that MLflow holds for a search."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder / 'searches' / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=1000)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags and run.info.run_name == name]
    assert len(parents) == 1
    parent_id = parents[0].info.run_id
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent_id]
    return parents[0], children


def trials_of(folder: Path, name: str = "wave") -> list[dict[str, Any]]:
    return read(folder / "searches" / name, "trials").to_pylist()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One search over all families, some of whose trials diverge; several tests look at it."""
    folder = tmp_path_factory.mktemp("finished")
    # An LSTM has no heads: the first two points are one experiment.
    lstm = {"model.family": "lstm", "model.dropout": 0.0, "training.learning_rate": 0.01}
    start = [
        {**lstm, "model.heads": 1},
        {**lstm, "model.heads": 2},
        *({"model.family": name} for name in ("lstm_scratch", "slstm", "mlstm", "xlstm")),
        {"model.family": "lstm", "training.learning_rate": 10.0},
    ]
    space = {
        "model.family": {"choice": ["lstm", "lstm_scratch", "slstm", "mlstm", "xlstm"]},
        "model.dropout": {"float": [0.0, 0.4]},
        "model.heads": {"choice": [1, 2]},
        "training.learning_rate": {"choice": [0.01, 10.0]},
    }
    file = write_search(folder, space=space, search={"start_with": start}, training={"optimiser": "sgd", "clip": 0.0})
    return folder, search(folder, str(file))


def test_run_prints_the_leaderboard_and_the_command_that_opens_the_pages(finished: tuple[Path, str]) -> None:
    _, output = finished
    assert re.search(r"\(trial \d+\) won: rmse", output)
    for baseline in ("last_value", "nlinear", "dlinear", "mean"):
        assert baseline in output
    assert "mlflow ui" in output and "127.0.0.1" in output


def test_run_accounts_for_every_trial_in_every_record(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    rows = trials_of(folder)
    numbers = sorted(row["trial"] for row in rows)
    trained = [row for row in rows if row["status"] != "duplicate"]
    assert len(trained) == 8
    trials = {trial.number: trial for trial in study_of(folder).trials}
    assert sorted(trials) == numbers == list(range(len(rows)))
    _, children = runs_of(folder)
    assert sorted(int(run.data.tags["xlstm_tune.trial"]) for run in children) == numbers
    states = {"completed": "COMPLETE", "failed": "FAIL", "pruned": "PRUNED"}
    for row in trained:
        assert trials[row["trial"]].state.name == states[row["status"]]
        if row["status"] == "completed":
            assert trials[row["trial"]].value == pytest.approx(row["val_rmse"])
    assert all(run.info.status in ("FINISHED", "FAILED") for run in children)


def test_run_reuses_the_score_of_a_duplicate(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    rows = {row["trial"]: row for row in trials_of(folder)}
    duplicates = [row for row in rows.values() if row["status"] == "duplicate"]
    assert duplicates
    for row in duplicates:
        assert row["val_rmse"] == rows[row["duplicate_of"]]["val_rmse"]
        assert row["epochs"] == 0


def test_run_gives_failed_trials_a_reason(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    failed = [row for row in trials_of(folder) if row["status"] == "failed"]
    assert failed
    for row in failed:
        assert row["reason"].startswith("diverged: ")
        assert study_of(folder).trials[row["trial"]].user_attrs["reason"] == row["reason"]


def test_run_scores_the_best_of_each_family_on_the_test_part_only_once(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    rows = [row for row in trials_of(folder) if row["status"] == "completed"]
    best = {}
    for row in sorted(rows, key=lambda row: row["val_rmse"]):
        best.setdefault(row["family"], row["trial"])
    scores = read(folder / "searches" / "wave", "scores").to_pylist()
    assert sorted(row["trial"] for row in scores if row["part"] == "test") == sorted(best.values())
    # The stored weights give the validation figure that the trial reported.
    by_number = {row["trial"]: row for row in rows}
    for row in scores:
        if row["part"] == "validation":
            assert row["rmse"] == pytest.approx(by_number[row["trial"]]["val_rmse"], rel=1e-5)
    # The predictions table gives the test figure that was reported.
    predictions = read(folder / "searches" / "wave", "predictions").to_pandas()
    for row in scores:
        mine = predictions[(predictions["trial"] == row["trial"]) & (predictions["part"] == row["part"])]
        assert np.sqrt(((mine["predicted"] - mine["actual"]) ** 2).mean()) == pytest.approx(row["rmse"], rel=1e-6)


def test_run_tells_what_each_input_is_worth_to_the_winner(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    best = min((row for row in trials_of(folder) if row["status"] == "completed"), key=lambda row: row["val_rmse"])
    rows = read(folder / "searches" / "wave", "importance").to_pandas()
    assert set(rows["trial"]) == {best["trial"]}
    (row,) = read(folder / "searches" / "wave", "search").to_pylist()
    inputs = len(json.loads(row["data"])["inputs"])
    assert rows["input"].nunique() == inputs and rows["input"].isna().sum() == len(rows) // (inputs + 1)
    (score,) = (
        row
        for row in read(folder / "searches" / "wave", "scores").to_pylist()
        if (row["trial"], row["part"]) == (best["trial"], "test")
    )
    plain = rows[rows["input"].isna()]["square"]
    assert np.sqrt(plain.mean()) == pytest.approx(score["rmse"], rel=1e-4)
    page = (folder / "searches" / "wave" / "report.html").read_text()
    assert "Which inputs the winner leans on" in page


def test_run_tells_how_often_the_winners_intervals_held(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    best = min((row for row in trials_of(folder) if row["status"] == "completed"), key=lambda row: row["val_rmse"])
    rows = read(folder / "searches" / "wave", "coverage").to_pylist()
    assert rows and {(row["trial"], row["kind"]) for row in rows} == {(best["trial"], "interval")}
    parent, _ = runs_of(folder)
    for row in rows:
        assert parent.data.metrics[f"test_coverage_{row['level']:g}"] == pytest.approx(row["share"])
    assert "How often its intervals held" in (folder / "searches" / "wave" / "report.html").read_text()


def test_run_records_itself(finished: tuple[Path, str]) -> None:
    folder, output = finished
    (row,) = read(folder / "searches" / "wave", "search").to_pylist()
    assert (row["name"], row["status"], row["reason"]) == ("wave", "completed", None)
    assert json.loads(row["data"])["mase_scale"][0] > 0 and row["seconds"] > 0
    assert "told apart: 95% interval" in " ".join(output.split())
    parent, _ = runs_of(folder)
    figures = parent.data.metrics
    assert figures["gain_test_percent_low"] < figures["gain_test_percent"] < figures["gain_test_percent_high"]
    assert figures["cpu_hours"] > 0 and figures["gpu_hours"] >= 0 and figures["trials_per_hour"] > 0


def test_run_logs_params_curves_and_artifacts_to_mlflow(finished: tuple[Path, str]) -> None:
    import mlflow

    folder, _ = finished
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'searches' / 'mlflow.db'}")
    parent, children = runs_of(folder)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["trials_completed"] >= 4
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"spec.yaml", "environment.json", "leaderboard.json", "report.html", "results"} <= names
    completed = next(run for run in children if run.data.tags["status"] == "completed")
    assert completed.data.params["training.batch_size"] == "64"
    assert len(client.get_metric_history(completed.info.run_id, "val_rmse")) == 2
    files = {file.path for file in client.list_artifacts(completed.info.run_id)}
    assert {"config.json", "weights.safetensors", "forecast.svg"} <= files
    assert completed.data.metrics["system/process_memory_megabytes"] > 50
    failed = next(run for run in children if run.data.tags["status"] == "failed")
    assert failed.info.status == "FAILED" and "diverged" in failed.data.tags["reason"]


def test_run_keeps_weights_and_config_of_each_trial(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    for row in trials_of(folder):
        if row["status"] == "completed":
            place = folder / "searches" / "wave" / "trials" / f"{row['trial']:05d}"
            tensors = load_file(place / "weights.safetensors")
            assert sum(tensor.size for tensor in tensors.values()) == row["parameters"]
            assert json.loads((place / "config.json").read_text())["config"]["model.family"] == row["family"]


def test_resume_of_a_finished_search_sends_what_has_not_come_to_mlflow(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    """As when the power went before the last records were sent."""
    shutil.copytree(finished[0] / "searches" / "wave", tmp_path / "searches" / "wave")
    (tmp_path / "searches" / "wave" / "mlflow" / "state.json").unlink()
    database = f"sqlite:///{tmp_path / 'searches' / 'mlflow.db'}"
    give_database(tmp_path / "searches")
    assert "is finished" in search_here(tmp_path, "--resume", "wave", "--tracking-uri", database)
    parent, children = runs_of(tmp_path)
    assert parent.info.status == "FINISHED" and len(children) == len(trials_of(tmp_path))


def test_resume_of_a_finished_search_says_so_and_more_trials_go_on(
    finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = finished

    def broken(*_: object) -> None:
        raise ValueError("by a test")

    before = {row["trial"]: row for row in trials_of(folder)}
    output = search_here(folder, "--resume", "wave")
    assert "is finished" in output and "won: rmse" in output
    assert len(trials_of(folder)) == len(before)
    monkeypatch.setenv("XLSTM_TUNE_IMPORTANCE", "on")
    monkeypatch.setattr("xlstm_tune.search.recording.measure", broken)
    output = search_here(folder, "--resume", "wave", "--trials", "10")
    assert "note: what each input is worth was not told (ValueError: by a test)" in output
    after = {row["trial"]: row for row in trials_of(folder)}
    assert sum(row["status"] != "duplicate" for row in after.values()) == 10
    for number, row in before.items():
        assert after[number] == row
    _, children = runs_of(folder)
    assert len(children) == len(after)


def test_resume_refuses_other_data_and_unknown_names(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    output = search_here(folder, "--resume", "wvae", codes=(2,))
    assert "did you mean 'wave'" in output
    table = folder / "wave.csv"
    text = table.read_text()
    try:
        table.write_text(text + "1.0\n")
        output = search_here(folder, "--resume", "wave", "--trials", "30", codes=(2,))
    finally:
        table.write_text(text)
    assert "data of the search 'wave' have changed" in " ".join(output.split())


def test_a_search_without_any_score_is_no_success_when_it_is_resumed_either(tmp_path: Path) -> None:
    file = write_search(
        tmp_path,
        space={"training.learning_rate": {"float": [9.0, 10.0]}},
        search={"trials": 1, "start_with": "none"},
        training={"epochs": 3, "clip": 0, "optimiser": "sgd", "loss_weight": 1_000_000},
        model={"family": "lstm"},
    )
    output = search_here(tmp_path, str(file), codes=(1,))
    assert "No trial could be scored (1 failed)" in output
    for more in ([], ["--refit"]):
        output = search_here(tmp_path, "--resume", "wave", *more, codes=(1,))
        assert "is finished" in output and "No trial could be scored" in output
    result = CliRunner().invoke(predict, ["wave", "t.csv", "--storage", str(tmp_path / "searches")])
    assert result.exit_code == 2 and "no trial could be scored (1 failed)" in " ".join(result.output.split())


def test_run_stops_at_the_time_budget(tmp_path: Path) -> None:
    space = {"training.learning_rate": {"log_float": [1e-3, 1e-2]}}
    file = write_search(
        tmp_path,
        space=space,
        search={"trials": 3, "time_budget": "10s"},
        resources={"max_concurrent": 1},
        training={"epochs": 20_000},
        model={"family": "lstm"},
    )
    # On a machine so busy that no first epoch was done in time there is nothing to score, which is exit code 1.
    output = search_here(tmp_path, str(file), codes=(0, 1))
    assert "Stopped early (time budget)" in output and "--resume wave" in output
    states = {trial.number: trial.state.name for trial in study_of(tmp_path).trials}
    rows = trials_of(tmp_path)
    assert sorted(states) == sorted(row["trial"] for row in rows)
    for row in rows:
        assert row["reason"] == "time budget"
        assert row["status"] == ("pruned" if row["epochs"] else "failed")
        assert states[row["trial"]] == "RUNNING", "a resume goes on with it"
        if row["epochs"]:  # of the epoch that the table tells, and of none that nobody heard of
            weights = tmp_path / "searches" / "wave" / "trials" / f"{row['trial']:05d}" / "weights.safetensors"
            assert load_metadata(weights)["epoch"] == str(row["best_epoch"])
            scores = read(tmp_path / "searches" / "wave", "scores").to_pylist()
            held_out = {one["trial"]: one["rmse"] for one in scores if one["part"] == "validation"}
            assert held_out[row["trial"]] == pytest.approx(row["val_rmse"], rel=1e-5)
