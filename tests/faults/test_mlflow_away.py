"""Whole searches tracked at a real MLflow server that is not there, goes away, comes back, or never does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from fault_search import Search, check_accounted, write_search
from tracked import ROOT, Server, free_port, sent_bytes, until

from xlstm_tune.results import read
from xlstm_tune.tracking.__main__ import main
from xlstm_tune.tracking.events import KnownRun, known_runs
from xlstm_tune.tracking.spool import spool_path

pytestmark = pytest.mark.slow


def known(search: Search) -> dict[int | None, KnownRun]:
    """What the search has said to the spool."""
    return known_runs(path) if (path := spool_path(search.folder)).exists() else {}


def in_the_middle(search: Search) -> bool:
    """The third trial is at work, and the first things have been sent."""
    return known(search).get(2, KnownRun()).step > 2 and sent_bytes(search.folder) > 0


def check_calm(folder: Path) -> None:
    """Training never stood still: an epoch takes some 25 ms, a client that asks a server which is away minutes."""
    epochs = read(folder, "epochs").to_pylist()
    for number in {row["trial"] for row in epochs}:
        times = sorted(row["timestamp"].timestamp() for row in epochs if row["trial"] == number)
        assert max(after - before for before, after in pairwise(times)) < 5


def test_server_away_at_the_start_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    search = Search(tmp_path / "searches", uri)
    search.start(str(write_search(tmp_path)))
    output = search.end(2)
    assert output.startswith(f"error: the tracking server {uri} cannot be reached")
    assert output.count("\n") == 1 and "--tracking-uri" in output
    assert not list(search.storage.glob("*"))


def test_server_killed_in_the_middle_and_back_gets_everything_once(
    server: Server, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    search = Search(tmp_path / "searches", server.uri)
    search.start(str(write_search(tmp_path)))
    search.until(lambda: in_the_middle(search), 240)
    server.stop()
    server.start(wait=False)  # which takes it seconds
    assert known(search)[None].ended is None
    assert "MLflow yet" not in search.end()
    assert "trying again and again" in (search.folder / "mlflow" / "writer.log").read_text()
    check_accounted(search.folder, undisturbed(), uri=server.uri)
    check_calm(search.folder)


def test_server_killed_and_not_back_leaves_a_spool_that_the_printed_command_sends(
    server: Server, undisturbed: Callable[..., Path], empty_database: Path, tmp_path: Path
) -> None:
    until(server.answers, 120)
    search = Search(tmp_path / "my searches", server.uri, XLSTM_TUNE_DRAIN_SECONDS="2")
    search.start(str(write_search(tmp_path)))
    search.until(lambda: in_the_middle(search), 240)
    server.stop()
    assert known(search)[None].ended is None
    output = search.end()
    last = json.loads(spool_path(search.folder).read_bytes().splitlines()[-1])
    assert last["e"] == "search_ended" and time.time() - last["t"] / 1000 < 30  # it did not wait for the server
    note = re.search(r"^note: (\d+) events have not reached MLflow yet \(.*\); send .*: (.*)$", output, re.M)
    assert note and int(note[1]) > 30
    elsewhere = tmp_path / "gone for good"  # the folder is all that is left, and was moved
    shutil.copytree(search.storage, elsewhere / "searches")
    server.start(wait=False)

    other = f"sqlite:///{shutil.copy(empty_database, elsewhere / 'mlflow.db')}"
    assert main(["sync", "wave", "--storage", str(elsewhere / "searches"), "--tracking-uri", other]) == 0
    check_accounted(elsewhere / "searches" / "wave", undisturbed(), uri=other)
    until(server.answers, 120)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(note[2], shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "everything has arrived in MLflow\n"), done
    check_accounted(search.folder, undisturbed(), uri=server.uri)
    check_calm(search.folder)
