"""`mlflow models serve` for real: a registered champion answers JSON and CSV with what `predict` says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from champions import SEVERAL, arrow, example_request, finish, same, several
from tracked import MlflowClient, free_port, send_all, until

from xlstm_tune.data.read import read_source
from xlstm_tune.predict.champion import Champion, load_champion, read_about
from xlstm_tune.predict.forecasts import forecasts, source_of
from xlstm_tune.predict.make import champion_of
from xlstm_tune.tracking import Spool, default_uri

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Registered:
    folder: Path
    table: Path
    champion: Champion
    uri: str


def counted(folder: Path) -> Path:
    """The table `several` with whole numbers for its keys, sizes and target, some of them blank."""
    table = pd.read_csv(several(folder))
    keys = table["shop"].map({"a": 4013, "b": 4019, "c": 6029})
    table = table.assign(shop=keys, size=table["size"].astype(int), sold=table["sold"].round().astype("Int64"))
    table.to_csv(folder / "counted.csv", index=False)
    return folder / "counted.csv"


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Registered:
    folder = tmp_path_factory.mktemp("served")
    table = counted(folder)
    search = finish(folder / "searches", "several", SEVERAL | {"source": str(table)})
    uri = default_uri(folder / "searches")
    (folder / "searches" / "mlflow.db").write_bytes(empty_database.read_bytes())
    place = champion_of(search)
    with Spool(search, uri) as spool:
        spool.search_started("several", {}, {})
        spool.model(place, "several")
        spool.search_ended("completed")
    assert not send_all(search, uri)._reasons
    return Registered(search, table, load_champion(place), uri)


def versions(uri: str) -> list[Any]:
    return list(MlflowClient(uri).search_model_versions("name = 'several'"))


def test_a_champion_that_is_sent_again_stays_one_version(registered: Registered) -> None:
    state = registered.folder / "mlflow" / "state.json"
    kept = state.read_bytes()
    state.unlink()  # as after a crash before it was written: everything is sent again
    try:
        assert not send_all(registered.folder, registered.uri)._reasons
    finally:
        state.write_bytes(kept)
    assert len(versions(registered.uri)) == 1


def test_another_champion_is_another_version_and_takes_the_alias(registered: Registered) -> None:
    about = registered.folder / "champion" / "champion.json"
    before = about.read_text()
    try:
        about.write_text(json.dumps(read_about(about.parent) | {"refit_note": "a word"}))
        with Spool(registered.folder, registered.uri) as spool:
            spool.model(registered.folder / "champion", "several")
        assert not send_all(registered.folder, registered.uri)._reasons
    finally:
        about.write_text(before)
    client = MlflowClient(registered.uri)
    assert len(versions(registered.uri)) == 2
    assert str(client.get_model_version_by_alias("several", "champion").version) == "2"


def test_a_folder_that_is_no_champion_is_passed_over_with_a_reason(registered: Registered, tmp_path: Path) -> None:
    with Spool(registered.folder, registered.uri) as spool:
        spool.model(tmp_path, "several")
        spool.metrics({"after": 1.0})
    sender = send_all(registered.folder, registered.uri)
    assert "the model several cannot be registered (FileNotFoundError" in sender._reasons[-1]
    runs = MlflowClient(registered.uri).search_runs(
        [each.experiment_id for each in MlflowClient(registered.uri).search_experiments()]
    )
    assert any(run.data.metrics.get("after") == 1.0 for run in runs)


@pytest.fixture(scope="module")
def address(registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server of the registered model, on a loopback port."""
    place, port = tmp_path_factory.mktemp("server"), free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", "models:/several@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=place,
            start_new_session=True,
            env=os.environ
            | {
                "PYTHONPATH": str(ROOT),
                # MLflow calls uvicorn by its name, as it is found where the environment has been entered.
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
                "MLFLOW_TRACKING_URI": registered.uri,
                "MLFLOW_REGISTRY_URI": registered.uri,
                "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            },
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(url) or process.poll() is not None, 200)
        assert process.poll() is None, (place / "log").read_text()
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ping", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def post(url: str, body: bytes, kind: str) -> list[dict[str, Any]]:
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=120) as response:
        rows: list[dict[str, Any]] = json.loads(response.read())["predictions"]
    return rows


def agree(made: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert [list(row) for row in made] == [list(row) for row in wanted]
    for name in ("predicted", "lower", "upper"):
        same([row[name] for row in made], [row[name] for row in wanted])
    assert [(row["shop"], row["day"], row["step"]) for row in made] == [
        (row["shop"], row["day"], row["step"]) for row in wanted
    ]


def test_the_server_answers_json_and_csv_with_what_predict_says(registered: Registered, address: str) -> None:
    request = example_request(registered.folder)
    wanted = forecasts(registered.champion, source_of(arrow(request))).table.to_pylist()
    agree(post(address, json.dumps(request).encode(), "application/json"), wanted)
    narrow = forecasts(registered.champion, source_of(arrow(request)), level=0.5).table.to_pylist()
    agree(post(address, json.dumps(request | {"params": {"level": 0.5}}).encode(), "application/json"), narrow)
    wanted = forecasts(registered.champion, read_source([str(registered.table)], {})).table.to_pylist()
    agree(post(address, registered.table.read_bytes(), "text/csv"), wanted)
    for orient in ("split", "records"):
        rows = json.loads(pd.read_csv(registered.table).to_json(orient=orient, index=False))
        agree(post(address, json.dumps({f"dataframe_{orient}": rows}).encode(), "application/json"), wanted)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": 2}, "the model looks at 10 rows"),
        ({"without": "weather"}, "the request lacks the column 'weather', which the model of the search 'several'"),
        ({"size": "big"}, "column 'size' holds text (\"big\" in row 1)"),
        ({"size": [1, 2]}, "column 'size' holds text (\"[1, 2]\" in row 1)"),
        ({"params": {"level": 3}}, "must lie between 0 and 1, got 3"),
    ],
)
def test_the_server_says_what_is_wrong_with_a_request(
    registered: Registered, address: str, change: dict[str, Any], said: str
) -> None:
    asked = example_request(registered.folder)["dataframe_split"]
    rows = [dict(zip(asked["columns"], row, strict=True)) for row in asked["data"]][: change.get("rows")]
    rows = [{name: cell for name, cell in row.items() if name != change.get("without")} for row in rows]
    rows[0] |= {name: cell for name, cell in change.items() if name == "size"}
    body = json.dumps({"dataframe_records": rows, "params": change.get("params", {})}).encode()
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(address, body, "application/json")
    with caught.value as answer:
        assert answer.code == 400 and said in json.loads(answer.read())["message"]
