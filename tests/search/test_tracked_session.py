"""MLflow's writer beside a search: a signal ends the waiting for it, and no more than that."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console
from tracked import free_port

from xlstm_tune.search import session
from xlstm_tune.search.session import tracked
from xlstm_tune.search.stopping import Stopping
from xlstm_tune.tracking import Spool
from xlstm_tune.tracking.spool import try_lock


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    """Of a search whose MLflow server is away."""
    folder = tmp_path / "wave"
    folder.mkdir()
    return cast(Any, SimpleNamespace(folder=folder, tracking_uri=f"http://127.0.0.1:{free_port()}"))


def send_soon(number: int) -> None:
    Timer(1.0, os.kill, (os.getpid(), number)).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_last_records_are_sent_ends_the_waiting(
    plan: Any, stopping: Stopping, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    try:
        with stopping.watching():
            with Spool(plan.folder, plan.tracking_uri) as spool, tracked(plan, spool, stopping, Console()):
                spool.search_started("wave", {}, {})
                spool.search_ended("completed")
                send_soon(number)
            took = time.monotonic() - began
    except KeyboardInterrupt:
        pytest.fail("it ended a search that is whole")
    assert 0.9 < took < 30
    said = capsys.readouterr().out
    assert said.startswith("note: 2 events have not reached MLflow yet") and "tracking sync wave --storage" in said
    with (plan.folder / "mlflow" / "writer.lock").open("ab") as lock:
        assert try_lock(lock.fileno()), "the printed command would be refused while a writer lives"


def test_a_signal_that_has_ended_the_search_ends_it_still(
    plan: Any, stopping: Stopping, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        stopping.watching(),
        pytest.raises(KeyboardInterrupt),
        Spool(plan.folder, plan.tracking_uri) as spool,
        tracked(plan, spool, stopping, Console()),
    ):
        spool.search_started("wave", {}, {})
        send_soon(signal.SIGINT)
        raise KeyboardInterrupt
    assert '"interrupted"' in (plan.folder / "mlflow" / "spool.jsonl").read_text()
    assert "not reached" not in capsys.readouterr().out


def test_what_cannot_go_on_waits_for_mlflow_no_longer_than_what_was_stopped(
    plan: Any, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full while finalists are judged, as MLflow's database on it is too."""
    monkeypatch.setattr(session, "DRAIN_SECONDS_STOPPED", 0.5)
    began = time.monotonic()
    with (
        pytest.raises(OSError, match="No space left"),
        Spool(plan.folder, plan.tracking_uri) as spool,
        tracked(plan, spool, stopping, Console()),
    ):
        spool.search_started("wave", {}, {})
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert stopping.reason is None
    assert time.monotonic() - began < 30, "it waited as a finished search does"
