"""What `sync` says where the store takes nothing: a line an attempt, and the command that sends the rest there."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from tracked import ROOT, check_search, say_search, stored

from xlstm_tune.tracking import Spool, Unsent, Writer, default_uri, sync, unsent
from xlstm_tune.tracking.sender import Sender

EVENTS = 7
"""Of a search with one trial."""
FULL = Path("/dev/full")


def saying(folder: Path, uri: str, trials: int = 1) -> Path:
    with Spool(folder, uri) as spool:
        say_search(spool, trials)
    return folder


def break_database(database: Path) -> None:
    """It passes for one of MLflow, whose own log then has a traceback for each thing that is to be written."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("ALTER TABLE runs RENAME COLUMN start_time TO started")


def run_sync(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command, without the pauses between its attempts."""
    program = (
        "import sys; from xlstm_tune.tracking import writer; from xlstm_tune.tracking.__main__ import main; "
        "writer.time.sleep = lambda seconds: None; sys.exit(main(['sync', *sys.argv[1:]]))"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )


def test_sync_to_another_store_that_takes_nothing_names_it_in_its_command(folder: Path) -> None:
    saying(folder, default_uri(folder.parent))
    assert sync(folder) is None
    other = folder.parent / "another one.db"
    shutil.copy(folder.parent / "mlflow.db", other)
    break_database(other)
    done = run_sync(str(folder), "--tracking-uri", f"sqlite:///{other}")
    assert done.returncode == 1 and done.stdout.startswith(f"{EVENTS} events have not reached MLflow yet (")
    assert done.stdout.endswith(
        f" sync s --storage {shlex.quote(str(folder.parent))} --tracking-uri {shlex.quote(f'sqlite:///{other}')}\n"
    )
    shutil.copy(folder.parent / "mlflow.db", other)
    again = subprocess.run(
        done.stdout.rpartition(" with: ")[2], shell=True, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (again.returncode, again.stdout, again.stderr) == (0, "everything has arrived in MLflow\n", "")
    check_search(stored(f"sqlite:///{other}", folder), 1)


def test_the_command_names_the_remembered_store_in_no_case(folder: Path) -> None:
    uri = default_uri(folder.parent)
    saying(folder, uri)
    for given in (None, uri):
        left = unsent(folder, given)
        assert left is not None and left.command.endswith(f"--storage {shlex.quote(str(folder.parent))}")


@pytest.mark.parametrize("remembered", ["http://h:5000", "http://annika:geheim@h:5000"])
def test_the_command_tells_no_password_and_says_what_it_lacks(folder: Path, remembered: str) -> None:
    """Also where the search used the store itself, whose password is kept nowhere."""
    saying(folder, remembered)
    left = unsent(folder, "http://annika:geheim@h:5000")
    assert left is not None and "geheim" not in str(left) and "annika" not in str(left)
    assert str(left).startswith(
        f"{EVENTS} events have not reached MLflow yet; send what is left, giving the same --tracking-uri again, with: "
    )
    assert left.command.endswith(" --tracking-uri 'http://***@h:5000'")


def test_unsent_with_a_hidden_password_ends_in_the_command_too() -> None:
    assert str(Unsent(1, 0, "", "sync x", hidden=True)) == (
        "1 event has not reached MLflow yet; send what is left, giving the same --tracking-uri again, with: sync x"
    )


@pytest.mark.parametrize("log", ["kept", "full"])
def test_sync_says_one_line_an_attempt_and_keeps_the_tracebacks(folder: Path, log: str) -> None:
    saying(folder, default_uri(folder.parent))
    break_database(folder.parent / "mlflow.db")
    place = folder / "mlflow" / "writer.log"
    if log == "full":
        if not FULL.exists():
            pytest.skip("no disk that is full here")
        place.symlink_to(FULL)
    done = run_sync(str(folder))
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 3, done.stderr
    for number, line in enumerate(lines, 1):
        assert f"WARNING xlstm_tune.tracking: attempt {number} of 3 failed: (sqlite3.OperationalError) " in line
    assert f"{EVENTS} events have not reached MLflow yet ((sqlite3.OperationalError) " in done.stdout
    if log == "kept":
        text = place.read_text()
        assert text.count("of 3 failed") == 3 and text.count("Traceback (most recent call last)") >= 3


def test_warnings_that_are_to_be_errors_keep_nothing_from_mlflow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of MLflow's libraries are nobody's here."""
    uri = default_uri(folder.parent)
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    with Spool(folder, uri) as spool:
        writer = Writer.start(folder, uri)
        say_search(spool, 1)
        assert writer.finish(60) is None
    check_search(stored(uri, folder), 1)
    other = f"sqlite:///{folder.parent}/other.db"
    done = run_sync(str(folder), "--tracking-uri", other)
    assert (done.returncode, done.stdout, done.stderr) == (0, "everything has arrived in MLflow\n", "")
    check_search(stored(other, folder), 1)


def test_a_long_reason_ends_with_a_whole_word(folder: Path) -> None:
    sender = Sender(saying(folder, "http://h"), "http://h")
    said = "not " * 100
    for reason, kept in (
        (said, "not " * 74 + "not…"),
        ("see " + "x" * 400, "see " + "x" * 295 + "…"),
        ("x" * 300, "x" * 300),
        ("an http://u:p@h\nat", "an http://***@h"),
    ):
        sender.failed(Exception(reason))
        left = unsent(folder)
        assert left is not None and left.reason == kept and len(kept) <= 300
