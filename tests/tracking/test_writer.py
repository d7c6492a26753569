"""The writer process and sync: killed, replaced, kept waiting, or in each other's way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tracked import ROOT, check_search, count_runs, free_port, say_search, say_trial, sent_bytes, stored, until

from xlstm_tune.errors import TrackingError
from xlstm_tune.layout import TRACKING_URI
from xlstm_tune.tracking import Spool, Writer, default_uri, sync
from xlstm_tune.tracking.__main__ import main
from xlstm_tune.tracking.uri import python_command
from xlstm_tune.tracking.writer import _ENVIRONMENT, Unsent, find_search, remembered_uri, unsent


@pytest.mark.slow
def test_writer_killed_in_the_middle_then_sync_brings_everything_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xlstm_tune.tracking.writer._RELAUNCH_SECONDS", 600.0)
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        say_search(spool, 25)
        writer = Writer.start(folder, uri)
        until(lambda: count_runs(uri) > 5)
        os.kill(writer.pid, signal.SIGKILL)
        until(lambda: not writer.alive)
        assert count_runs(uri) < 26 and sent_bytes(folder) == 0  # it had not even come to note what it sent
    left = unsent(folder)
    assert left is not None and left.events > 5 and f"sync s --storage '{folder.parent}'" in str(left)
    done = subprocess.run(left.command, shell=True, cwd=ROOT, capture_output=True, text=True)
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
def test_writer_killed_is_replaced_while_the_search_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xlstm_tune.tracking.writer._RELAUNCH_SECONDS", 0.1)
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        writer = Writer.start(folder, uri)
        spool.search_started("s", {"search.trials": 2}, {}, [])
        say_trial(spool, 0, folder=folder)
        until(lambda: count_runs(uri) > 0)  # in the middle of a gather
        os.kill(writer.pid, signal.SIGKILL)
        say_trial(spool, 1, folder=folder)
        until(lambda: unsent(folder) is None, 60)
        assert writer.alive
        (folder / "spec.yaml").write_text("name: s\n")
        spool.search_ended("completed", {"best_val_rmse": 1.0}, [folder / "spec.yaml"])
        assert writer.finish(60) is None
    check_search(stored(uri, folder), 2)


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


@pytest.mark.slow
def test_a_writer_ends_whose_search_died_waiting_for_it(tmp_path: Path) -> None:
    """The search had said that it has finished, and the server is away: its lock would keep everyone else out."""
    folder, uri = tmp_path / "s", f"http://127.0.0.1:{free_port()}"
    with Spool(folder, uri) as spool:
        say_search(spool, 1)
    program = f"""
from pathlib import Path
from xlstm_tune.tracking import writer
writer._ORPHAN_SECONDS = 0.5
raise SystemExit(writer.follow(Path({str(folder)!r}), parent=0))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), TRACKING_URI: uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = subprocess.run([sys.executable, "-c", program], input=b".", env=environment, timeout=60, check=False)
    assert done.returncode == 1
    left = unsent(folder)
    assert left is not None and left.events == 7


def test_settings_of_others_for_mlflow_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first would put our figures down to a model of theirs, the second call sent what is only on its way."""
    monkeypatch.setenv("MLFLOW_ACTIVE_MODEL_ID", "m-1")
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        writer = Writer.start(folder, uri)
        environment = Path(f"/proc/{writer.pid}/environ").read_bytes().split(b"\0")
        say_search(spool, 2)
        assert writer.finish(60) is None
    check_search(stored(uri, folder), 2)
    assert b"MLFLOW_ENABLE_ASYNC_LOGGING=false" in environment
    assert not [one for one in environment if b"ACTIVE_MODEL" in one]
    for name in _ENVIRONMENT:
        monkeypatch.setenv(name, os.environ.get(name, ""))
    other = f"sqlite:///{folder.parent}/other.db"
    assert sync(folder, other) is None
    check_search(stored(other, folder), 2)
    assert os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] == "false" and "MLFLOW_ACTIVE_MODEL_ID" not in os.environ


def test_a_copied_search_has_its_runs_where_it_lies(folder: Path) -> None:
    """Beside the first, whose database is there still."""
    uri = default_uri(folder.parent)
    with Spool(folder, uri):
        pass
    assert remembered_uri(folder) == uri
    with Spool(folder, uri) as spool:
        say_search(spool, 2)
    assert sync(folder) is None
    copied = folder.parent.parent / "a 100%25 new? place" / folder.name
    shutil.copytree(folder, copied)
    shutil.copy(folder.parent / "mlflow.db", folder.parent / "before.db")
    assert sync(copied) is None
    assert (copied.parent / "mlflow.db").is_file() and remembered_uri(copied) == default_uri(copied.parent)
    check_search(stored(default_uri(copied.parent), copied), 2)
    (folder.parent / "mlflow.db").unlink()
    assert sync(copied) is None and not (folder.parent / "mlflow.db").exists()


def test_a_damaged_database_is_moved_away_and_made_anew(folder: Path) -> None:
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        say_search(spool, 2)
    database = folder.parent / "mlflow.db"
    os.truncate(database, 3000)
    asked = (
        "import sys, pathlib; from xlstm_tune.tracking import sync; print(sync(pathlib.Path(sys.argv[1]), attempts=1))"
    )
    left = subprocess.run(
        [sys.executable, "-c", asked, folder], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    told, _, command = left.partition(" with: ")
    assert told.endswith("MLflow's database is damaged: move it away, and make all runs of this search anew")
    database.rename(folder.parent / "damaged.db")
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "everything has arrived in MLflow\n"), done.stderr
    check_search(stored(uri, folder), 2)


def test_absent_server_keeps_nobody_waiting(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    with Spool(tmp_path / "s", uri) as spool:
        writer = Writer.start(tmp_path / "s", uri)
        say_search(spool, 1)
        started = time.monotonic()
        left = writer.finish(0.5)
        assert time.monotonic() - started < 30 and not writer.alive
    assert left is not None and left.events == 7
    assert str(left).startswith("7 events have not reached MLflow yet")
    command = f"{python_command()} -m xlstm_tune.tracking sync s --storage {tmp_path}"
    assert str(left).endswith(f"; send what is left with: {command}")
    done = subprocess.run(left.command, shell=True, cwd=ROOT, capture_output=True, text=True)
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


def test_search_is_found_by_name_and_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for storage, name in (("searches", "weather"), ("searches", "v1.2"), ("other", "weather")):
        (tmp_path / storage / name).mkdir(parents=True)
        Spool(tmp_path / storage / name, "sqlite:///x.db").close()
    assert find_search("weather") == find_search("searches/weather") == tmp_path / "searches" / "weather"
    assert find_search(str(tmp_path / "other" / "weather")) == tmp_path / "other" / "weather"
    assert find_search("weather", "other") == find_search("other/weather") == tmp_path / "other" / "weather"


def test_sync_of_an_unknown_search_names_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sync", "wether"]) == 2
    assert capsys.readouterr().err == (
        f"{tmp_path / 'searches'} holds no search 'wether'; no search with tracked runs lies there\n"
    )
    for name in ("weather", "v1.2"):
        Spool(tmp_path / "searches" / name, "sqlite:///x.db").close()
    assert main(["sync", "wether"]) == 2
    assert capsys.readouterr().err.endswith("holds no search 'wether'; did you mean 'weather'?\n")
    assert main(["sync", "weather", "--storage", "nowhere"]) == 2
    assert "nowhere holds no search 'weather'" in capsys.readouterr().err
    (tmp_path / "searches" / "refused").mkdir()
    assert main(["sync", "refused"]) == 2
    assert "holds no search with tracked runs" in capsys.readouterr().err


def test_sync_of_a_folder_that_is_not_complete_or_not_ours_is_one_sentence(folder: Path) -> None:
    spool = Spool(folder, default_uri(folder.parent))
    spool.close()
    (folder / "mlflow" / "writer.lock").mkdir()  # a root user could write anything else
    with pytest.raises(TrackingError, match=r"writer.lock cannot be written \(Is a directory\)"):
        sync(folder)
    spool.path.unlink()
    with pytest.raises(TrackingError, match=r"spool.jsonl is missing"):
        sync(folder)


def test_unsent_says_what_and_why_and_ends_in_the_command() -> None:
    assert str(Unsent(0, 1, "a.bin was gone", "sync x")) == "MLflow refused 1 entry (a.bin was gone)"
    assert str(Unsent(1, 0, "", "sync x")) == "1 event has not reached MLflow yet; send what is left with: sync x"
    assert str(Unsent(2, 3, "no answer", "sync x")) == (
        "MLflow refused 3 entries; 2 events have not reached MLflow yet (no answer); send what is left with: sync x"
    )
