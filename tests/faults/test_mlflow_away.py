"""Whole searches tracked at a real MLflow server that is not there, goes away, comes back, or never does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import yaml
from tracked import ROOT, MlflowClient, Server, free_port, stored, until

from xlstm_tune.results import read
from xlstm_tune.tracking.__main__ import main
from xlstm_tune.tracking.events import KnownRun, known_runs

pytestmark = pytest.mark.slow
TRIALS, EPOCHS = 4, 40
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> dict[str, float]:
    """The score of each trial, by its name, where nothing goes wrong."""
    place = tmp_path_factory.mktemp("undisturbed")
    uri = f"sqlite:///{shutil.copy(empty_database, place / 'mlflow.db')}"
    with Search(place, uri) as search:
        assert search.ends() == 0, search.errors
    check(search.folder, uri)
    return scores(search.folder)


class Search:
    """A grid of four LSTMs on a sine wave, one after the other, in a process of its own."""

    def __init__(self, place: Path, uri: str, **environment: str) -> None:
        values = np.sin(np.arange(400) / 8) * 10 + np.random.default_rng(0).normal(size=400)
        (place / "wave.csv").write_text("y\n" + "\n".join(f"{value:.4f}" for value in values) + "\n")
        spec = {
            "name": "wave",
            "data": {"source": "wave.csv", "target": "y", "lookback": 24, "horizon": 3},
            "search": {"algorithm": "grid", "start_with": "none", "scheduler": "none", "fuse": "off"},
            "space": {"training.learning_rate": {"choice": [0.002, 0.004, 0.008, 0.016]}},
            "model": {"family": "lstm", "hidden_size": 8, "layers": 1},
            "training": {"epochs": EPOCHS, "batch_size": 32},
            "resources": {"max_concurrent": 1},
        }
        (place / "wave.yaml").write_text(yaml.safe_dump(spec))
        self.place, self.storage = place, place / "my searches"
        self.folder = self.storage / "wave"
        self.output = self.errors = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xlstm_tune.search", "wave.yaml", "--storage", "my searches", "--tracking-uri", uri],
            cwd=place,
            env=ENVIRONMENT | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:  # the test has failed
            self.process.kill()
            self.process.communicate()

    def ends(self) -> int:
        """Its exit code, once it has ended."""
        self.output, self.errors = self.process.communicate(timeout=300)
        return self.process.returncode

    def known(self) -> dict[int | None, KnownRun]:
        path = self.folder / "mlflow" / "spool.jsonl"
        return known_runs(path) if path.exists() else {}

    def state(self) -> dict[str, Any]:
        path = self.folder / "mlflow" / "state.json"
        return json.loads(path.read_text()) if path.exists() else {"offset": 0}

    def in_the_middle(self) -> bool:
        """The second trial is at work, and the first things have been sent."""
        assert self.process.poll() is None, self.process.communicate()
        return self.known().get(1, KnownRun()).step > 2 and self.state()["offset"] > 0


def scores(folder: Path) -> dict[str, float]:
    return {row["name"]: row["val_rmse"] for row in read(folder, "trials").to_pylist()}


def check(folder: Path, uri: str) -> None:
    """Every trial of the tables is one child run with the same end, score and curve; training never stood still."""
    trials, epochs = read(folder, "trials").to_pylist(), read(folder, "epochs").to_pylist()
    runs = stored(uri, folder)
    assert set(runs) == {None, *range(TRIALS)} == {None, *(row["trial"] for row in trials)}
    assert runs[None]["status"] == "FINISHED" and "leaderboard.json" in runs[None]["files"]
    client = MlflowClient(uri)
    for row in trials:
        run = runs[row["trial"]]
        assert (run["status"], run["tags"]["status"]) == ("FINISHED", row["status"]) == ("FINISHED", "completed")
        assert run["tags"]["mlflow.parentRunId"] == runs[None]["id"] and run["name"] == row["name"]
        assert run["curves"]["best_val_rmse"] == [(0, row["val_rmse"])]
        assert {"config.json", "weights.safetensors"} <= set(run["files"])
        mine = sorted((e for e in epochs if e["trial"] == row["trial"]), key=lambda epoch: epoch["epoch"])
        assert [epoch["epoch"] for epoch in mine] == list(range(1, EPOCHS + 1))
        for curve in ("val_rmse", "train_loss"):
            points = client.get_metric_history(run["id"], curve)
            assert [(p.step, p.value) for p in points] == [(epoch["epoch"], epoch[curve]) for epoch in mine]
        times = [epoch["timestamp"].timestamp() for epoch in mine]
        assert [p.timestamp for p in points] == pytest.approx([time * 1000 for time in times], abs=1)
        # An epoch takes some 25 ms; a client that asks a server which is away takes minutes to give up.
        assert max(after - before for before, after in pairwise(times)) < 5


def test_server_away_at_the_start_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    with Search(tmp_path, uri) as search:
        assert search.ends() == 2
    assert search.errors.startswith(f"error: the tracking server {uri} cannot be reached")
    assert search.errors.count("\n") == 1 and "--tracking-uri" in search.errors
    assert not list(search.storage.glob("*"))


def test_server_killed_in_the_middle_and_back_gets_everything_once(
    server: Server, undisturbed: dict[str, float], tmp_path: Path
) -> None:
    with Search(tmp_path, server.uri) as search:
        until(search.in_the_middle, 240)
        server.stop()
        server.start(wait=False)  # which takes it seconds
        assert search.known()[None].ended is None
        assert search.ends() == 0, search.errors
    assert "trying again and again" in (search.folder / "mlflow" / "writer.log").read_text()
    assert not search.errors and "MLflow yet" not in search.output
    check(search.folder, server.uri)
    assert scores(search.folder) == undisturbed


def test_server_killed_and_not_back_leaves_a_spool_that_the_printed_command_sends(
    server: Server, undisturbed: dict[str, float], empty_database: Path, tmp_path: Path
) -> None:
    until(server.answers, 120)
    with Search(tmp_path, server.uri, XLSTM_TUNE_DRAIN_SECONDS="2") as search:
        until(search.in_the_middle, 240)
        server.stop()
        assert search.known()[None].ended is None
        assert search.ends() == 0, search.errors
    last = json.loads((search.folder / "mlflow" / "spool.jsonl").read_bytes().splitlines()[-1])
    assert last["e"] == "search_ended" and time.time() - last["t"] / 1000 < 30  # it did not wait for the server
    assert scores(search.folder) == undisturbed
    note = re.search(r"^note: (\d+) events have not reached MLflow yet \(.*\); send .*: (.*)$", search.output, re.M)
    assert note and int(note[1]) > 2 * EPOCHS and not search.errors
    elsewhere = tmp_path / "gone for good"  # the folder is all that is left, and was moved
    shutil.copytree(search.storage, elsewhere / "searches")
    server.start(wait=False)

    other = f"sqlite:///{shutil.copy(empty_database, elsewhere / 'mlflow.db')}"
    assert main(["sync", "wave", "--storage", str(elsewhere / "searches"), "--tracking-uri", other]) == 0
    check(elsewhere / "searches" / "wave", other)
    until(server.answers, 120)
    done = subprocess.run(note[2], shell=True, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "everything has arrived in MLflow\n"), done
    check(search.folder, server.uri)
