"""MLflow as the writer process has it, a server to stop at will, what a search says, and what the store then holds."""
# ruff: noqa: E402  (MLflow reads some of its variables when it is imported)

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for variable, value in {  # as the writer process has it; before MLflow is imported
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}.items():
    os.environ[variable] = value

from mlflow.tracking import MlflowClient

from xlstm_tune.errors import TrackingError
from xlstm_tune.tracking import Spool, check_tracking_uri
from xlstm_tune.tracking.sender import Sender

ROOT = Path(__file__).parents[1]
EPOCHS = 3


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


@functools.cache
def empty_database() -> Path:
    """MLflow takes seconds to make one."""
    place = Path(tempfile.mkdtemp(prefix="empty-database-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    MlflowClient(f"sqlite:///{place / 'mlflow.db'}").search_experiments()
    return place / "mlflow.db"


def give_database(storage: Path) -> None:
    """A copy of it for the searches of this folder, unless they have one."""
    storage.mkdir(parents=True, exist_ok=True)
    if not (storage / "mlflow.db").exists():
        shutil.copy(empty_database(), storage / "mlflow.db")


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
