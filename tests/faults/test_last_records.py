"""A search that is whole, but for what MLflow has not taken yet, and is interrupted then."""

from __future__ import annotations

import re
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from fault_search import Search, write_search

from xlstm_tune.tracking.__main__ import main as tracking
from xlstm_tune.tracking.spool import ended_in_order

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_last_records_go_to_mlflow_ends_that_waiting_alone(
    tmp_path: Path, number: signal.Signals
) -> None:
    """MLflow's database takes nothing, since somebody else writes to it."""
    search = Search(tmp_path / "searches")
    search.start(str(write_search(tmp_path)), "--trials", "2")
    search.until(lambda: search.epochs() > 2)
    with closing(sqlite3.connect(search.storage / "mlflow.db", timeout=60)) as database:
        database.execute("BEGIN EXCLUSIVE")
        search.until(lambda: ended_in_order(search.folder))
        time.sleep(1)  # until it waits
        search.send(number)
        output = search.end(seconds=30)
    assert re.search(r"note: \d+ events have not reached MLflow yet.*; send what is left with: .* sync wave", output)
    assert "won: rmse" in output and "Forecast with the winner: " in output and "Stopped early" not in output
    assert tracking(["sync", "wave", "--storage", str(search.storage)]) == 0, "no writer is left"
    assert "is finished" in search.run("--resume", "wave")
