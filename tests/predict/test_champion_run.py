"""One whole search: its winner is kept, registered once, loads without Ray, and predicts what was reported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from champions import SEVERAL, reported, several
from tracked import MlflowClient
from typer.testing import CliRunner

from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.predict.__main__ import app as predict_app
from xlstm_tune.predict.champion import read_about
from xlstm_tune.predict.make import champion_of
from xlstm_tune.report.__main__ import main as report
from xlstm_tune.report.leaderboard import number
from xlstm_tune.results import read
from xlstm_tune.search.__main__ import app as search_app
from xlstm_tune.search.finals.whole import winner_is_whole
from xlstm_tune.search_file import load_spec

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def search(folder: Path, *arguments: str) -> str:
    result = CliRunner().invoke(search_app, [*arguments, "--storage", str(folder / "searches")])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A search with a population."""
    folder = tmp_path_factory.mktemp("shop")
    spec = {
        "name": "shop",
        "data": SEVERAL | {"source": str(several(folder))},
        "search": {"trials": 2, "seed": 1, "scheduler": "none"},
        "space": {"model.hidden_size": {"choice": [4, 8]}},
        "population": {"seeds": 2},
        "model": {"family": "lstm", "layers": 1},
        "training": {"epochs": 2, "batch_size": 64, "learning_rate": 0.01},
    }
    (folder / "shop.yaml").write_text(yaml.safe_dump(spec))
    before = os.environ.get("XLSTM_TUNE_REGISTER")
    os.environ["XLSTM_TUNE_REGISTER"] = "on"
    try:
        return folder, search(folder, str(folder / "shop.yaml"))
    finally:
        os.environ["XLSTM_TUNE_REGISTER"] = before or "on"


def versions(folder: Path) -> tuple[MlflowClient, list[Any]]:
    client = MlflowClient(f"sqlite:///{folder / 'searches' / 'mlflow.db'}")
    return client, client.search_model_versions("name = 'shop'")


def test_the_winner_is_kept_and_registered_under_the_searchs_name(shop: tuple[Path, str]) -> None:
    folder, output = shop
    assert "-m xlstm_tune.predict shop TABLE" in output
    about = read_about(folder / "searches" / "shop" / "champion")
    assert about["search"] == "shop" and about["member"] in (0, 1)
    own = [row for row in read(folder / "searches" / "shop", "members").to_pylist() if row["test_rmse"] is not None]
    mine = next(row for row in own if (row["trial"], row["member"]) == (about["trial"], about["member"]))
    assert about["member_scores"]["test"]["rmse"] == mine["test_rmse"] != about["scores"]["test"]["rmse"]
    assert about["member_scores"]["validation"]["mae"] == mine["val_mae"]
    client, found = versions(folder)
    assert len(found) == 1
    assert str(client.get_model_version_by_alias("shop", "champion").version) == str(found[0].version)
    parent = client.get_run(found[0].run_id)
    assert parent.info.run_name == "shop" and parent.info.status == "FINISHED"


def check_reported(folder: Path) -> None:
    """The command on the search's own table gives the first steps that the search reported of its winner."""
    place = folder / "out.parquet"
    arguments = ["shop", str(folder / "several.csv"), "--storage", str(folder / "searches"), "--output", str(place)]
    result = CliRunner().invoke(predict_app, [*arguments, "--all"])
    assert result.exit_code == 0, result.output
    made = {(row["shop"], row["day"], row["step"]): row["predicted"] for row in pq.read_table(place).to_pylist()}
    firsts = [row for row in reported(folder / "searches" / "shop") if row["step"] == 1]
    winner = read_about(folder / "searches" / "shop" / "champion")["trial"]
    checked = [row for row in firsts if row["trial"] == winner]
    assert checked
    for row in checked:
        assert made[row["series"].removeprefix("shop="), row["time"], 1] == pytest.approx(row["predicted"], rel=1e-6)


def test_the_command_predicts_what_the_search_reported(shop: tuple[Path, str]) -> None:
    check_reported(shop[0])


def test_a_finished_search_is_not_registered_again(shop: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = shop
    monkeypatch.setenv("XLSTM_TUNE_REGISTER", "on")
    assert "is finished" in search(folder, "--resume", "shop")
    assert len(versions(folder)[1]) == 1


def _parts(search: Path, table: str) -> None:
    for path in (search / "results" / table).glob("part-*"):
        path.unlink()


LOST: dict[str, Callable[[Path], None]] = {
    "champion": lambda search: (search / "champion" / "champion.json").write_bytes(b"{"),
    "predictions": lambda search: _parts(search, "predictions"),
    "scores": lambda search: _parts(search, "scores"),
    "trials": lambda search: _parts(search, "trials"),
}


def test_what_a_finished_search_lost_is_made_anew_when_it_is_resumed(shop: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    mine = folder / "searches" / "shop"
    shutil.copytree(shop[0] / "searches", folder / "searches")
    shutil.copy(shop[0] / "several.csv", folder)
    before = {path.name: path.read_bytes() for path in (mine / "champion").iterdir()}
    tables = {table: read(mine, table) for table in ("trials", "scores", "predictions")}
    assert winner_is_whole(mine, "val_rmse")
    for name, lose in LOST.items():
        kept = tmp_path / name
        shutil.copytree(mine, kept)
        lose(kept)
        assert winner_is_whole(kept, "val_rmse") is (name == "trials"), "without trials there is no winner"
        lose(mine)
    newer = tmp_path / "newer"
    shutil.copytree(shop[0] / "searches" / "shop", newer)
    (newer / "champion" / "champion.json").write_text('{"schema": 99, "program": "a newer one"}')
    assert winner_is_whole(newer, "val_rmse"), "it is not written over"
    _parts(newer, "predictions")
    for weights in (newer / "trials").rglob("weights.safetensors"):
        os.truncate(weights, 40)
    assert winner_is_whole(newer, "val_rmse"), "there is nothing to make them of"
    page = tmp_path / "page.html"
    assert report([str(mine), "--output", str(page)]) == 0
    assert "its trials are not in results/trials; --resume NAME makes them anew" in page.read_text()
    assert "is finished" not in search(folder, "--resume", "shop")
    assert "is finished" in search(folder, "--resume", "shop")
    assert {path.name: path.read_bytes() for path in (mine / "champion").iterdir()} == before
    for table, was in tables.items():
        found = read(mine, table)
        clocks = [name for name in found.column_names if name in ("started", "ended", "seconds")]
        rows, rows_before = (sorted(map(str, one.drop_columns(clocks).to_pylist())) for one in (found, was))
        assert rows == rows_before
    check_reported(folder)


LOAD = """
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "optuna"):
            raise ImportError(f"{name} is not to be imported")
sys.meta_path.insert(0, Refused())
import json, mlflow
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_registry_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/shop@champion")
made = model.predict(model.input_example, params={"level": 0.5})
print("made:" + made.to_json(orient="records"))
"""


def test_the_registered_model_holds_no_pickle_and_loads_without_ray_and_optuna(shop: tuple[Path, str]) -> None:
    folder, _ = shop
    files = [path.name for path in (folder / "searches" / "mlflow-artifacts").rglob("*") if path.is_file()]
    assert "champion.json" in files and "served.py" in files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".joblib", ".pt", ".pth"))]
    answer = subprocess.run(
        [sys.executable, "-c", LOAD, f"sqlite:///{folder / 'searches' / 'mlflow.db'}"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert answer.returncode == 0, answer.stderr
    made = json.loads(answer.stdout.partition("made:")[2])
    assert [row["step"] for row in made] == [1, 2, 3, 4]
    assert all(row["lower"] < row["predicted"] < row["upper"] for row in made)


def test_the_winner_that_is_trained_again_is_another_version_with_the_same_intervals(
    shop: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = shop
    monkeypatch.setenv("XLSTM_TUNE_REGISTER", "on")
    before = (folder / "searches" / "shop" / "champion" / "champion.json").read_bytes()
    monkeypatch.setenv("XLSTM_TUNE_REPORT", "on")
    assert report(["shop", "--storage", str(folder / "searches")]) == 0
    output = search(folder, "--resume", "shop", "--refit")
    about = read_about(folder / "searches" / "shop" / "champion")
    assert about["refit"] is True and about["refit_note"] is None
    assert "Trained again on training and validation part" in output
    client, found = versions(folder)
    assert len(found) == 2 and str(client.get_model_version_by_alias("shop", "champion").version) == "2"
    run = client.get_run(found[0].run_id)
    assert run.info.status == "FINISHED"
    metrics = run.data.metrics
    assert metrics["refit_test_rmse"] == pytest.approx(about["refit_scores"]["test"]["rmse"])
    assert about["refit_scores"]["test"]["rmse"] != about["scores"]["test"]["rmse"]
    spec = load_spec(str(folder / "searches" / "shop" / "spec.yaml"))
    data = prepare(load_table(spec.data), spec.data, refit=True)
    assert data.scaling is not None
    assert about["inputs"]["mean"] == data.scaling.inputs.mean.tolist(), "the statistics are those of both parts"
    assert about["intervals"]["samples"] == len(
        [row for row in reported(folder / "searches" / "shop", "validation") if row["step"] == 1]
    )
    assert "before it was trained again" in about["intervals_note"]
    page = (folder / "searches" / "shop" / "report.html").read_text()
    score = number(about["refit_scores"]["test"]["rmse"])
    assert f"for {about['refit_epochs']} epochs, and has a test RMSE of {score}; all else here is" in page
    assert Path(client.download_artifacts(run.info.run_id, "report.html")).read_text() == page
    worse = about["refit_scores"]["test"]["rmse"] > about["scores"]["test"]["rmse"]
    assert ("That is worse by" if worse else "As it was searched it has") in " ".join(output.split())
    assert "has been trained again on training and validation part already" in search(
        folder, "--resume", "shop", "--refit"
    )
    client, found = versions(folder)
    assert len(found) == 2 and len(client.get_metric_history(run.info.run_id, "refit_test_rmse")) == 1
    kept = folder / "searches" / "shop" / "champion"
    kept.rename(folder / "refit")
    assert (champion_of(kept.parent) / "champion.json").read_bytes() == before, "the former is made anew"
