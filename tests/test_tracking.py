"""Tracking against real stores: SQLite databases, and one real MLflow server that goes away and comes back."""
# ruff: noqa: E402  (MLflow reads some of its variables when it is imported)

from __future__ import annotations

import http.client
import http.server
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

for variable, value in {  # as the writer process has it; before MLflow is imported
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}.items():
    os.environ[variable] = value

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from xlstm_tune.errors import StorageError, TrackingError
from xlstm_tune.tracking import (
    Spool,
    Writer,
    check_tracking_uri,
    default_uri,
    hide_credentials,
    sync,
    ui_command,
)
from xlstm_tune.tracking.gather import batches
from xlstm_tune.tracking.sender import Sender
from xlstm_tune.tracking.writer import unsent

ROOT = Path(__file__).parent.parent
EPOCHS = 3


# --- what a search says, and what the store then holds ---------------------------------------------------------


def say_trial(spool: Spool, number: int, status: str = "completed", folder: Path | None = None) -> None:
    spool.trial_started(number, f"trial-{number}", {"model.hidden_size": 64, "training.lr": 1e-3}, {"backend": "cpu"})
    for step in range(1, EPOCHS + 1):
        spool.epoch(number, step, {"val_rmse": 10.0 / step + number, "train_loss": 1.0 / step})
    files = []
    if folder:
        weights = folder / "trials" / str(number) / "weights.safetensors"
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_bytes(bytes([number]) * 100)
        files.append(weights)
    reason = "loss is nan in epoch 3" if status == "failed" else ""
    spool.trial_ended(number, status, reason, {"best_val_rmse": 10.0 / EPOCHS + number}, {"family": "lstm"}, files)


def say_search(spool: Spool, trials: int) -> None:
    spec = spool.folder / "spec.yaml"
    spec.write_text("name: s\n")
    spool.search_started("s", {"search.trials": trials}, {"xlstm_tune.version": "0"}, [spec])
    for number in range(trials):
        say_trial(spool, number, folder=spool.folder)
    spool.search_ended("completed", {"best_val_rmse": 1.0}, [spec])


def stored(uri: str, folder: Path, experiment: str = "xlstm_tune") -> dict[int | None, dict[str, Any]]:
    """Everything the store has of this folder's search, by trial number (None: the parent). Fails on repeated runs."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return {}
    search = json.loads((folder / "mlflow" / "spool.json").read_text())["search"]
    out: dict[int | None, dict[str, Any]] = {}
    for run in client.search_runs([found.experiment_id], f"tags.`xlstm_tune.search` = '{search}'"):
        tags = run.data.tags
        number = int(tags["xlstm_tune.trial"]) if "xlstm_tune.trial" in tags else None
        assert number not in out, f"trial {number} has two runs"
        history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        out[number] = {
            "id": run.info.run_id,
            "name": run.info.run_name,
            "status": run.info.status,
            "start": run.info.start_time,
            "end": run.info.end_time,
            "params": run.data.params,
            "tags": tags,
            "curves": {k: [(m.step, m.value) for m in sorted(ms, key=lambda m: m.step)] for k, ms in history.items()},
            "files": sorted(item.path for item in client.list_artifacts(run.info.run_id)),
        }
    return out


def count_runs(uri: str) -> int:
    client = MlflowClient(uri)
    return len(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def check_search(runs: dict[int | None, dict[str, Any]], trials: int) -> None:
    """Every trial of `say_search` is there exactly once, with everything it said."""
    assert set(runs) == {None, *range(trials)}
    parent = runs[None]
    assert parent["status"] == "FINISHED" and parent["name"] == "s" and parent["files"] == ["spec.yaml"]
    for number in range(trials):
        run = runs[number]
        assert run["status"] == "FINISHED" and run["name"] == f"trial-{number}"
        assert run["tags"]["mlflow.parentRunId"] == parent["id"]
        assert run["tags"]["status"] == "completed" and run["tags"]["family"] == "lstm"
        assert run["params"] == {"model.hidden_size": "64", "training.lr": "0.001"}
        assert run["curves"]["val_rmse"] == [(step, 10.0 / step + number) for step in range(1, EPOCHS + 1)]
        assert len(run["curves"]["train_loss"]) == EPOCHS and len(run["curves"]["best_val_rmse"]) == 1
        assert run["files"] == ["weights.safetensors"]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make one."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def folder(tmp_path: Path, empty_database: Path) -> Path:
    """A search folder in a storage folder whose name needs quoting, beside an empty database."""
    folder = tmp_path / "my störage" / "s"
    folder.mkdir(parents=True)
    shutil.copy(empty_database, folder.parent / "mlflow.db")
    return folder


def send_all(folder: Path, uri: str) -> Sender:
    sender = Sender(folder, uri)
    while sender.waiting():
        sender.send_next()
    return sender


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def sent_bytes(folder: Path) -> int:
    try:
        return int(json.loads((folder / "mlflow" / "state.json").read_text())["offset"])
    except FileNotFoundError:
        return 0


# --- the spool --------------------------------------------------------------------------------------------------


def test_driver_side_never_imports_mlflow(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from xlstm_tune.tracking import *
uri = default_uri(Path({str(tmp_path)!r}))
check_tracking_uri(uri)
Spool(Path({str(tmp_path)!r}) / "s", uri).epoch(0, 1, {{"a": 1.0}})
ui_command(uri, Path())
assert not [name for name in sys.modules if name.split(".")[0] in {{"mlflow", "torch", "ray", "optuna"}}]
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_spool_reopened_keeps_its_search_and_cuts_half_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with Spool(folder, "sqlite:///x.db") as spool:
        spool.epoch(0, 1, {"a": 1.0}, timestamp=12.5)
        search = spool.address.search
    with spool.path.open("a") as file:
        file.write('{"e": "epo' + "x" * 70000)
    with Spool(folder, "sqlite:///x.db") as again:
        again.epoch(0, 2, {"a": 1.0})
        assert again.address.search == search
    first, second = (json.loads(line) for line in spool.path.read_text().splitlines())
    assert (first["step"], first["t"], second["step"]) == (1, 12500, 2)


def test_spool_is_written_by_one_process(tmp_path: Path) -> None:
    with Spool(tmp_path, "sqlite:///x.db"), pytest.raises(StorageError, match="running in another process"):
        Spool(tmp_path, "sqlite:///x.db")


def test_spool_refuses_what_mlflow_could_not_show(tmp_path: Path) -> None:
    with Spool(tmp_path, "sqlite:///x.db") as spool:
        with pytest.raises(ValueError, match=r"status must be one of completed, .*got 'done'"):
            spool.trial_ended(0, "done")
        with pytest.raises(ValueError, match="columns of one length"):
            spool.table("t", {"a": [1], "b": [1, 2]})


# --- cutting into batches ---------------------------------------------------------------------------------------


def test_batches_keep_within_every_limit_and_lose_nothing() -> None:
    metrics = [Metric(f"m{i % 7}", float(i), i, i) for i in range(2500)]
    params: dict[str, Any] = {f"p{i}": "é" * 7000 for i in range(250)}
    tags = {f"t{i}": "x" * 9000 for i in range(130)}
    cut = list(batches(metrics, params, tags))
    assert [m for batch in cut for m in batch[0]] == metrics
    assert [p.key for batch in cut for p in batch[1]] == list(params)
    assert [t.key for batch in cut for t in batch[2]] == list(tags)
    for some_metrics, some_params, some_tags in cut:
        assert len(some_params) <= 100 and len(some_tags) <= 100
        assert len(some_metrics) + len(some_params) + len(some_tags) <= 1000
        body = {"metrics": [dict(m) for m in some_metrics], "params": [dict(p) for p in some_params]}
        assert len(json.dumps({**body, "tags": [dict(t) for t in some_tags]})) < 1_000_000
        assert all(len(p.value) == 6000 and p.value.endswith("é…") for p in some_params)
        assert all(len(t.value) == 8000 for t in some_tags)


def test_batches_of_a_usual_trial_are_one_call() -> None:
    metrics = [Metric(f"m{i}", 1.0, 0, step) for step in range(30) for i in range(8)]
    cut = list(batches(metrics, {"a": 1, "b": True, "c": None, "d": 0.5, "e": "ms"}, {"status": "completed"}))
    assert len(cut) == 1 and [p.value for p in cut[0][1]] == ["1", "true", "null", "0.5", "ms"]
    assert list(batches([], {}, {})) == []


# --- sending ----------------------------------------------------------------------------------------------------


def test_search_arrives_with_statuses_curves_and_artifacts(folder: Path) -> None:
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        (folder / "report").mkdir()
        (folder / "report" / "a.html").write_text("<p>")
        spool.search_started("s", {"search.trials": 4}, {}, [])
        for number, status in enumerate(["completed", "pruned", "failed", "duplicate", "interrupted"]):
            say_trial(spool, number, status)
        spool.metrics({"test_rmse": 3.0}, trial=0, tags={"winner": "yes"})
        spool.table("leaderboard", {"model": ["lstm", "naive"], "rmse": [1.0, 2.0]})
        spool.artifact(folder / "report")
        spool.artifact(folder / "report" / "a.html", "plots", trial=0)
        spool.search_ended("completed", {"best_val_rmse": 1.0})
    send_all(folder, uri)
    assert unsent(folder) is None
    runs = stored(uri, folder)
    assert [runs[n]["status"] for n in range(5)] == ["FINISHED", "FINISHED", "FAILED", "FINISHED", "KILLED"]
    assert [runs[n]["tags"]["status"] for n in range(3)] == ["completed", "pruned", "failed"]
    assert runs[2]["tags"]["reason"] == "loss is nan in epoch 3" and "reason" not in runs[0]["tags"]
    assert runs[0]["tags"]["backend"] == "cpu" and runs[0]["tags"]["winner"] == "yes"
    assert runs[0]["curves"]["test_rmse"] == [(0, 3.0)] and runs[0]["files"] == ["plots"]
    assert runs[None]["files"] == ["leaderboard.json", "report"] and runs[None]["params"] == {"search.trials": "4"}
    assert all(run["end"] >= run["start"] > 1.7e12 for run in runs.values())
    files = sorted(str(p.relative_to(folder.parent)) for p in folder.parent.glob("mlflow-artifacts/**/*.html"))
    assert len(files) == 2
    client = MlflowClient(uri)
    table = json.loads(Path(client.download_artifacts(runs[None]["id"], "leaderboard.json")).read_text())
    assert table == {"columns": ["model", "rmse"], "data": [["lstm", 1.0], ["naive", 2.0]]}
    assert json.loads(runs[None]["tags"]["mlflow.loggedArtifacts"]) == [{"path": "leaderboard.json", "type": "table"}]


@pytest.mark.parametrize("remembered", ["nothing", "half", "garbage"])
def test_sending_again_after_a_crash_changes_nothing(folder: Path, remembered: str) -> None:
    uri = default_uri(folder.parent)
    state = folder / "mlflow" / "state.json"
    with Spool(folder, uri) as spool:
        spool.search_started("s", {"search.trials": 3}, {}, [])
        say_trial(spool, 0, folder=folder)
        spool.trial_started(1, "trial-1", {"model.hidden_size": 64, "training.lr": 1e-3}, {})
        spool.epoch(1, 1, {"val_rmse": 1.0, "train_loss": math.nan})
        send_all(folder, uri)
        half = state.read_text()
        spool.epoch(1, 2, {"val_rmse": math.inf, "train_loss": 0.5})
        spool.trial_ended(1, "completed")
        say_trial(spool, 2, folder=folder)
        spool.search_ended("completed")
    send_all(folder, uri)
    before = stored(uri, folder)
    assert [step for step, _ in before[1]["curves"]["train_loss"]] == [1, 2]
    if remembered == "nothing":
        state.unlink()
    else:
        state.write_text(half if remembered == "half" else half[: len(half) // 2])
    send_all(folder, uri)
    assert repr(stored(uri, folder)) == repr(before)  # by text, because nan is not nan


def test_resumed_search_continues_its_runs(folder: Path) -> None:
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        spool.search_started("s", {"search.trials": 3}, {}, [])
        say_trial(spool, 0, folder=folder)
        spool.trial_started(1, "trial-1", {"p": 1}, {})
        spool.epoch(1, 1, {"val_rmse": 3.0})
        spool.epoch(1, 2, {"val_rmse": 2.0})
    send_all(folder, uri).interrupt_open_runs()
    killed = stored(uri, folder)
    assert [killed[n]["status"] for n in (None, 0, 1)] == ["KILLED", "FINISHED", "KILLED"]
    assert killed[1]["tags"]["status"] == "interrupted"
    with Spool(folder, uri) as spool:
        spool.search_started(
            "s", {"search.trials": 99}, {}, []
        )  # params cannot be changed, and must not refuse the rest
        spool.trial_started(1, "trial-1", {"p": 1}, {})
        spool.epoch(1, 2, {"val_rmse": 2.0})  # again, from the checkpoint after epoch 1
        spool.epoch(1, 3, {"val_rmse": 1.0})
        send_all(folder, uri)
        assert stored(uri, folder)[1]["status"] == "RUNNING"
        spool.trial_ended(1, "completed")
        spool.search_ended("completed", {"best_val_rmse": 1.0})
    send_all(folder, uri)
    assert unsent(folder) is None
    runs = stored(uri, folder)
    assert set(runs) == {None, 0, 1} and {run["status"] for run in runs.values()} == {"FINISHED"}
    assert runs[1]["id"] == killed[1]["id"] and runs[1]["tags"]["status"] == "completed"
    assert runs[1]["curves"]["val_rmse"] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert runs[None]["params"] == {"search.trials": "3"} and runs[None]["curves"]["best_val_rmse"] == [(0, 1.0)]


def test_what_mlflow_never_takes_is_told_and_does_not_hold_up_the_rest(folder: Path) -> None:
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        spool.search_started("s", {"spec": "x" * 20_000} | {f"p{i}": i for i in range(250)}, {}, [])
        spool.trial_started(0, "trial-0", {}, {})
        spool.epoch(0, 1, {"rmse 50 % °C": 1.0, "ok": 2.0})
        spool.trial_ended(0, "completed", artifacts=[folder / "missing.safetensors"])
        spool.epoch(7, 1, {"rmse": 1.0})
        spool.trial_started(1, "trial-1", {}, {})
        send_all(folder, uri)
        client = MlflowClient(uri)
        client.delete_run(stored(uri, folder)[1]["id"])  # somebody tidies up in the UI
        spool.epoch(1, 1, {"rmse": 1.0})
        spool.search_ended("completed")
    send_all(folder, uri)
    runs = stored(uri, folder)
    assert len(runs[None]["params"]) == 251 and len(runs[None]["params"]["spec"]) == 6000
    assert runs[0]["curves"] == {"rmse 50 _ _C": [(1, 1.0)], "ok": [(1, 2.0)]}
    assert runs[None]["status"] == runs[0]["status"] == "FINISHED"
    left = unsent(folder)
    assert left is not None and left.events == 0 and left.refused == 3 and "missing.safetensors was gone" in str(left)
    reasons = json.loads((folder / "mlflow" / "state.json").read_text())["reasons"]
    assert [word for word, reason in zip(["gone", "never started", "active"], reasons, strict=True) if word in reason]


def test_removed_database_is_filled_again(folder: Path, empty_database: Path) -> None:
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        spool.search_started("s", {}, {}, [])
        say_trial(spool, 0)
        send_all(folder, uri)
        shutil.copy(empty_database, folder.parent / "mlflow.db")
        say_trial(spool, 1)
    send_all(folder, uri)
    assert set(stored(uri, folder)) == {None, 0, 1}


def test_two_searches_of_one_name_do_not_mix(folder: Path) -> None:
    uri = default_uri(folder.parent)
    other = folder.parent / "elsewhere" / "s"
    for place, trials in ((folder, 2), (other, 1)):
        with Spool(place, uri) as spool:
            say_search(spool, trials)
        send_all(place, uri)
    check_search(stored(uri, folder), 2)
    check_search(stored(uri, other), 1)


def test_deleted_experiment_is_restored(folder: Path) -> None:
    uri = default_uri(folder.parent)
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("mine", artifact_location=(folder / "files").as_uri()))
    with Spool(folder, uri, experiment="mine") as spool:
        say_search(spool, 1)
    send_all(folder, uri)
    check_search(stored(uri, folder, "mine"), 1)


# --- the writer process -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_writer_killed_in_the_middle_then_sync_brings_everything_once(folder: Path) -> None:
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        say_search(spool, 25)
        writer = Writer.start(folder, uri)
        until(lambda: count_runs(uri) > 5)
        os.kill(writer.pid, signal.SIGKILL)
        until(lambda: not writer.alive)
        assert count_runs(uri) < 26 and sent_bytes(folder) == 0  # it had not even come to note what it sent
    left = unsent(folder)
    assert left is not None and left.events > 5 and f"sync '{folder}'" in str(left)
    done = subprocess.run(
        [sys.executable, "-m", "xlstm_tune.tracking", "sync", str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "everything has arrived in MLflow\n", "")
    check_search(stored(uri, folder), 25)
    assert sync(folder) is None
    check_search(stored(uri, folder), 25)


@pytest.mark.slow
def test_writer_killed_is_replaced_at_the_end(folder: Path) -> None:
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        writer = Writer.start(folder, uri)
        os.kill(writer.pid, signal.SIGKILL)
        until(lambda: not writer.alive)
        say_search(spool, 2)
        assert writer.finish(30) is None
    check_search(stored(uri, folder), 2)
    assert (folder / "mlflow" / "writer.log").read_text() == ""


@pytest.mark.slow
def test_search_killed_leaves_no_run_running(folder: Path) -> None:
    uri = default_uri(folder.parent)
    program = f"""
import os, signal, time
from pathlib import Path
from xlstm_tune.tracking import Spool, Writer
folder = Path({str(folder)!r})
spool = Spool(folder, {uri!r})
writer = Writer.start(folder, {uri!r})
print(writer.pid, flush=True)
spool.search_started("s", {{}}, {{}}, [])
spool.trial_started(0, "trial-0", {{}}, {{}})
spool.epoch(0, 1, {{"val_rmse": 1.0}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    writer = int(done.stdout)
    until(lambda: not Path(f"/proc/{writer}").exists() or "Z" in Path(f"/proc/{writer}/stat").read_text().split()[2])
    runs = stored(uri, folder)
    assert {number: run["status"] for number, run in runs.items()} == {None: "KILLED", 0: "KILLED"}
    assert runs[0]["curves"] == {"val_rmse": [(1, 1.0)]} and runs[0]["tags"]["status"] == "interrupted"
    assert unsent(folder) is None


# --- a server ---------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A real `mlflow server` on a loopback port, started and stopped at will."""

    def __init__(self, place: Path) -> None:
        self.place, self.port = place, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        store = ["--backend-store-uri", f"sqlite:///{self.place / 'mlflow.db'}", "--workers", "1"]
        files = ["--artifacts-destination", str(self.place / "files")]
        with (self.place / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *store, *files],
                stdout=log,
                stderr=log,
                cwd=self.place,
                # Without its seven job processes it starts in half the time.
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )
        if wait:
            until(self.answers, 120)

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def answers(self) -> bool:
        try:
            check_tracking_uri(self.uri)
        except TrackingError:
            return False
        return True


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, place / "mlflow.db")
    server = Server(place)
    server.start()
    yield server
    server.stop()


class Proxy(http.server.ThreadingHTTPServer):
    """In front of the server: passes everything on, but can swallow the answers to some requests."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.swallow: dict[str, int] = {}  # part of the path -> how many answers
        self.host = f"127.0.0.1:{target}"  # under which name it asks the server
        super().__init__(("127.0.0.1", 0), _Forward)
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Forward(http.server.BaseHTTPRequestHandler):
    server: Proxy

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection("127.0.0.1", self.server.target)
        headers = {key: value for key, value in self.headers.items() if key not in {"Host", "Content-Length"}}
        connection.request(self.command, self.path, body, headers | {"Host": self.server.host})
        answer = connection.getresponse()
        content = answer.read()
        for part, left in self.server.swallow.items():
            if part in self.path and left:
                self.server.swallow[part] -= 1
                self.close_connection = True
                return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = _forward

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.slow
def test_lost_answers_make_nothing_twice(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    proxy = Proxy(server.port)
    with Spool(folder, proxy.uri) as spool:
        say_search(spool, 2)
    proxy.swallow = {"runs/create": 2, "log-batch": 1, "mlflow-artifacts": 1, "runs/update": 1}
    sender, failures = Sender(folder, proxy.uri), 0
    while sender.waiting():
        try:
            sender.send_next()
        except Exception as error:
            failures += 1
            sender.failed(error)
            assert failures < 20, error
    proxy.shutdown()
    proxy.server_close()
    assert failures == 5 and not any(proxy.swallow.values())
    check_search(stored(server.uri, folder), 2)


@pytest.mark.slow
def test_real_server_is_accepted_and_a_foreign_host_name_explained(server: Server) -> None:
    check_tracking_uri(server.uri)
    proxy = Proxy(server.port)
    check_tracking_uri(proxy.uri)
    proxy.host = "tracking.example.org"
    with pytest.raises(TrackingError, match=r"refuses this host name \(HTTP 403\); start it with --allowed-hosts"):
        check_tracking_uri(proxy.uri)
    proxy.shutdown()
    proxy.server_close()


@pytest.mark.slow
def test_server_away_in_the_middle_and_back_delivers_everything_once(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    secret = server.uri.replace("http://", "http://annika:geheim@")
    with Spool(folder, secret) as spool:
        writer = Writer.start(folder, secret)
        spec = folder / "spec.yaml"
        spec.write_text("name: s\n")
        spool.search_started("s", {"search.trials": 12}, {}, [spec])
        for number in range(4):
            say_trial(spool, number, folder=folder)
        until(lambda: sent_bytes(folder) > 0)
        server.stop()
        started = time.monotonic()
        for number in range(4, 11):
            say_trial(spool, number, folder=folder)
        assert time.monotonic() - started < 10  # the search does not wait for a server
        until(lambda: bool(json.loads((folder / "mlflow" / "state.json").read_text())["error"]))
        server.start(wait=False)
        say_trial(spool, 11, folder=folder)
        spool.search_ended("completed", {"best_val_rmse": 1.0}, [spec])
        assert writer.finish(120) is None
    check_search(stored(server.uri, folder), 12)
    log = (folder / "mlflow" / "writer.log").read_text()
    assert "trying again and again" in log
    for path in (folder / "mlflow").iterdir():
        assert "geheim" not in path.read_text() and "annika:" not in path.read_text(), path
    # The password was not kept, so a later sync has to be given it.
    with pytest.raises(TrackingError, match=r"\*\*\*@.*whose password is not kept; set MLFLOW_TRACKING_URI"):
        sync(folder)
    assert sync(folder, secret) is None


def test_absent_server_keeps_nobody_waiting(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    with Spool(tmp_path / "s", uri) as spool:
        writer = Writer.start(tmp_path / "s", uri)
        say_search(spool, 1)
        started = time.monotonic()
        left = writer.finish(0.5)
        assert time.monotonic() - started < 30 and not writer.alive
    assert left is not None and left.events == 7
    assert str(left).startswith(
        "7 events have not reached MLflow yet; send them with: python -m xlstm_tune.tracking sync"
    )
    done = subprocess.run(
        [sys.executable, "-m", "xlstm_tune.tracking", "sync", str(tmp_path / "s")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "cannot be reached" in done.stderr and done.stderr.count("\n") == 1


def test_sync_beside_a_writer_is_refused(folder: Path) -> None:
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        writer = Writer.start(folder, uri)
        until(lambda: (folder / "mlflow" / "writer.lock").exists())
        time.sleep(0.2)
        with pytest.raises(TrackingError, match="already; wait until it is done"):
            sync(folder)
        spool.search_ended("completed")
        writer.finish(0)
    with pytest.raises(TrackingError, match="holds no search with tracked runs"):
        sync(folder.parent)


# --- URIs -------------------------------------------------------------------------------------------------------


def refusal(uri: str) -> str:
    with pytest.raises(TrackingError) as caught:
        check_tracking_uri(uri)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_check_accepts_databases_that_are_or_can_be_made(tmp_path: Path, empty_database: Path) -> None:
    check_tracking_uri(default_uri(tmp_path / "not" / "yet"))
    check_tracking_uri(f"sqlite:///{empty_database}")
    check_tracking_uri("databricks")
    assert not (tmp_path / "not").exists()


def test_check_refuses_bad_sqlite_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database at all")
    assert "is not an SQLite database" in refusal(f"sqlite:///{tmp_path / 'notes.txt'}")
    assert "is a folder; name a file in it" in refusal(f"sqlite:///{tmp_path}")
    assert "no writable folder" in refusal(f"sqlite:///{tmp_path / 'notes.txt' / 'mlflow.db'}")
    assert "names no file" in refusal("sqlite://")
    assert "names no file" in refusal("sqlite:///:memory:")


@pytest.mark.parametrize("uri", ["./mlruns", "/tmp/mlruns", "file:/tmp/mlruns", "file:///tmp/mlruns", ""])
def test_check_refuses_folders_and_says_sqlite(uri: str) -> None:
    assert "keeps runs in files no longer; use sqlite:////" in refusal(uri)


def test_check_names_the_nearest_scheme() -> None:
    assert "unknown scheme 'sqllite'; did you mean 'sqlite'?" in refusal("sqllite:///x.db")
    assert "did you mean 'https'?" in refusal("htps://server")
    assert "known here: databricks, http" in refusal("zzz://server")


def test_check_of_servers_that_are_not_there() -> None:
    message = refusal(f"http://annika:geheim@127.0.0.1:{free_port()}")
    assert "cannot be reached (" in message and "refused" in message
    assert "geheim" not in message and "annika" not in message and "***@127.0.0.1" in message
    # Any module that is installed does for a driver here; nobody listens, so none is used.
    message = refusal(f"postgresql+sqlite3://annika:geheim@127.0.0.1:{free_port()}/mlflow")
    assert "cannot be reached at 127.0.0.1:" in message and "geheim" not in message
    assert "needs the Python driver 'nosuch'" in refusal("mysql+nosuch://h/db")
    assert "cannot be reached" in refusal("http://")


class _Guard(http.server.BaseHTTPRequestHandler):
    """What stands in front of many a tracking server: it wants a name and a password, and some hosts no one."""

    seen: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization"))
        status = {"/none/health": 404, "/busy/health": 503, "/no/health": 403}.get(self.path)
        if status is None:
            status = 200 if self.headers.get("Authorization") or self.path == "/health" else 401
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_check_explains_refusals_and_sends_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Guard) as guard:
        threading.Thread(target=guard.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{guard.server_address[1]}"
        assert "wants to know who asks (HTTP 401); set MLFLOW_TRACKING_USERNAME" in refusal(f"http://{host}")
        assert "is no MLflow tracking server" in refusal(f"http://{host}/none")
        assert "HTTP 503" in refusal(f"http://{host}/busy/")
        assert f"--allowed-hosts '{host}'" in refusal(f"http://{host}/no")
        check_tracking_uri(f"http://annika:ge%40heim@{host}")
        assert _Guard.seen[-1] == "Basic YW5uaWthOmdlQGhlaW0="
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
        check_tracking_uri(f"http://{host}")
        assert _Guard.seen[-1] == "Bearer t0ken"
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "bob")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pw")
        check_tracking_uri(f"http://{host}")
        assert _Guard.seen[-1] == "Basic Ym9iOnB3"
        guard.shutdown()


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("http://h:5000/x", "http://h:5000/x"),
        ("http://u:p@h:5000/x", "http://***@h:5000/x"),
        ("postgresql+psycopg2://u:p@h/db", "postgresql+psycopg2://***@h/db"),
        ("http://u:p@ss/w@h", "http://***@h"),
        ("postgresql://h/db?user=u&password=p&x=1", "postgresql://h/db?user=***&password=***&x=1"),
        ("request to http://u:p@h failed, see http://h/log", "request to http://***@h failed, see http://h/log"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_hide_credentials(text: str, hidden: str) -> None:
    assert hide_credentials(text) == hidden


def test_ui_command_quotes_and_hides() -> None:
    storage = Path("/data/my searches")
    assert default_uri(storage) == "sqlite:////data/my searches/mlflow.db"
    command = ui_command(default_uri(storage), storage)
    assert (
        "-m mlflow ui --backend-store-uri 'sqlite:////data/my searches/mlflow.db' --host 127.0.0.1 --port 5000"
        in command
    )
    assert ui_command("http://u:p@h:5000", storage) == "http://***@h:5000"
