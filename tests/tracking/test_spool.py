"""The spool: what the driver writes down without MLflow, in one process."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tracked import ROOT

from xlstm_tune.errors import StorageError, TrackingError
from xlstm_tune.tracking import Spool, default_uri
from xlstm_tune.tracking.events import KnownRun
from xlstm_tune.tracking.state import read_state
from xlstm_tune.tracking.writer import remembered_uri


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


def test_known_tells_what_was_written_of_each_run(tmp_path: Path) -> None:
    with Spool(tmp_path / "s", "sqlite:///x.db") as spool:
        assert spool.known() == {}
        spool.search_started("s", {}, {})
        for number in range(3):
            spool.trial_started(number, f"trial-{number}", {}, {})
        spool.epoch(0, 1, {"a": 1.0})
        spool.epoch(1, 1, {"a": 1.0})
        spool.epoch(1, 2, {"a": 1.0})
        spool.trial_ended(0, "pruned")
        spool.trial_ended(1, "interrupted")
        spool.metrics({"test_rmse": 1.0}, trial=0)
        spool.search_ended("interrupted")
    with spool.path.open("a") as file:
        file.write('{"e": "trial_ended", "t": 1, "number": 2, "sta')
    with Spool(tmp_path / "s", "sqlite:///x.db") as spool:
        spool.search_started("s", {}, {})
        spool.trial_started(1, "trial-1", {}, {})
        spool.epoch(1, 2, {"a": 1.0})
        with spool.path.open("a") as file:
            file.write('{"e": "epoch", "t": 1, "number": 1, "st')  # this moment
        assert spool.known() == {
            None: KnownRun(started=True, search=spool.address.search),
            0: KnownRun(started=True, step=1, ended="pruned"),
            1: KnownRun(started=True, step=2),
            2: KnownRun(started=True),
        }
    with Spool(tmp_path / "s", "sqlite:///x.db") as spool:
        assert len(spool.known()) == 4


class NearlyFull:
    """An unbuffered file on a disk with room for `room` bytes, which then takes a part or nothing."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, content: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self.file.write(content[: min(self.room, 10)])
        self.room -= taken
        return int(taken)

    def fileno(self) -> int:
        return int(self.file.fileno())


def test_nearly_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, "sqlite:///x.db")
    spool.epoch(0, 1, {"a": 1.0})
    line = spool.path.stat().st_size
    disk = spool._file = NearlyFull(spool._file, line + 50)  # type: ignore[assignment]
    spool.epoch(0, 2, {"a": 1.0})  # in several writes
    with pytest.raises(OSError, match="No space"):
        spool.epoch(0, 3, {"a": 1.0})
    assert spool.path.stat().st_size == 2 * line
    disk.room = 1000
    spool.epoch(0, 4, {"a": 1.0})
    with monkeypatch.context() as patch:  # it cannot be taken back either
        patch.setattr("os.ftruncate", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        disk.room = 50
        with pytest.raises(OSError, match="Input/output"):
            spool.epoch(0, 5, {"a": 1.0})
    disk.room = 1000
    spool.epoch(0, 6, {"a": 1.0})
    lines = spool.path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in (*lines[:3], lines[4])] == [1, 2, 4, 6] and len(lines) == 5
    assert spool.known()[0].step == 6


def test_spool_of_a_newer_program_or_damaged_is_refused_in_one_sentence(tmp_path: Path) -> None:
    Spool(tmp_path, "sqlite:///x.db").close()
    path = tmp_path / "mlflow" / "spool.json"
    whole = path.read_text()
    path.write_text(whole.replace('"version": 2', '"version": 3, "compression": "zstd"'))
    with pytest.raises(
        TrackingError, match=r"spool.json was written by a newer xlstm_tune \(version 3, known here up to 2\)"
    ):
        Spool(tmp_path, "sqlite:///x.db")
    for damaged in (
        "",
        whole[:40],
        "[]",
        "{}",
        whole.replace("search", "serach"),
        whole.replace(": 2", ': "2"'),
        "\0" * 99,
        "[" * 100_000,
    ):
        path.write_text(damaged)
        with pytest.raises(TrackingError, match=r"spool.json is damaged \(.*\); remove it and resume the search"):
            Spool(tmp_path, "sqlite:///x.db")
    path.write_text(whole)
    Spool(tmp_path, "sqlite:///x.db").close()  # nor is it locked after these


@pytest.mark.parametrize("uri", ["http://user:pa'ss@host:5000", 'postgresql://u:pa"ss@h/db', "mysql://h/d?password='x"])
def test_a_password_with_a_quote_is_not_kept(uri: str, tmp_path: Path) -> None:
    Spool(tmp_path, uri).close()
    kept = (tmp_path / "mlflow" / "spool.json").read_text()
    assert json.loads(kept)["has_credentials"] and "ss@" not in kept and "'x" not in kept and "***" in kept


def test_a_folder_with_an_at_is_no_password(tmp_path: Path) -> None:
    with Spool(tmp_path, "sqlite:////home/annika@uni/mlflow.db") as spool:
        assert not spool.address.has_credentials and spool.address.uri == "sqlite:////home/annika@uni/mlflow.db"


def written_by_an_earlier_program(search: Path, uri: str) -> None:
    """The address of a search's spool, hidden as it then was."""
    Spool(search, "sqlite:///x.db").close()
    path = search / "mlflow" / "spool.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"uri": uri, "has_credentials": True}))


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:////home/me@work/mlflow.db", "sqlite://***@work/mlflow.db"),
        ("postgresql://h/db?password=pa'ss&x=1", "postgresql://h/db?password=***'ss&x=1"),
        ("http://u:p@h:5000", "http://***@h:5000"),
    ],
)
def test_the_address_that_an_earlier_program_hid_is_known_again(
    uri: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_by_an_earlier_program(tmp_path / "s", shown)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrackingError, match=r"is not kept( whole)?; set MLFLOW_TRACKING_URI or give --tracking-uri"):
        remembered_uri(tmp_path / "s")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert remembered_uri(tmp_path / "s") == uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri + "2")
    with pytest.raises(TrackingError, match="set MLFLOW_TRACKING_URI"):
        remembered_uri(tmp_path / "s")


def test_the_database_of_a_storage_folder_with_an_at_is_known_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = tmp_path / "me@work" / "searches" / "s"
    written_by_an_earlier_program(search, "sqlite://***@work/searches/mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert remembered_uri(search) == default_uri(search.parent)


@pytest.mark.parametrize("damaged", ["[" * 100_000, "null", '{"uri": 1}', '{"offset": 1' + "0" * 30])
def test_a_damaged_state_is_as_none(damaged: str, tmp_path: Path) -> None:
    spool = Spool(tmp_path, "sqlite:///x.db")
    spool.epoch(0, 1, {"a": 1.0})
    whole = {"uri": "sqlite:///x.db", "offset": 0, "runs": {}, "refused": 0, "reasons": [], "error": ""}
    path = tmp_path / "mlflow" / "state.json"
    path.write_text(json.dumps(whole))
    assert read_state(tmp_path) == whole
    for state in (damaged, json.dumps(whole | {"offset": 10**30}), json.dumps(whole | {"offset": 3})):
        path.write_text(state)
        assert read_state(tmp_path) == {}
