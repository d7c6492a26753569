"""One driver for a search at a time, whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.errors import StorageError
from xlstm_tune.layout import LOCK
from xlstm_tune.search.__main__ import app
from xlstm_tune.search.persistence.folder import create_folder
from xlstm_tune.search.persistence.lock import locked
from xlstm_tune.spec import SearchSpec

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import subprocess, sys, time
from pathlib import Path
from xlstm_tune.search.persistence.lock import locked
with locked(Path(sys.argv[1])):
    child = subprocess.Popen(["sleep", "60"])  # as MLflow's writer and Ray's processes, which may outlive the driver
    print(child.pid, flush=True)
    time.sleep(60)
"""


def test_a_search_that_is_run_is_refused_and_named(tmp_path: Path) -> None:
    who = rf"is being run by process {os.getpid()} on \S+ since 20"
    with locked(tmp_path), pytest.raises(StorageError, match=who), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass  # free again
    assert (tmp_path / LOCK).read_text() == ""


def test_a_disk_that_fails_at_the_end_is_no_error(tmp_path: Path) -> None:
    """What the driver had to say of it has been said, and the next one writes over the name that stays."""
    with locked(tmp_path):
        (held,) = (int(one.name) for one in Path("/proc/self/fd").iterdir() if points_to(one, tmp_path / LOCK))
        read_only = os.open(tmp_path / LOCK, os.O_RDONLY)
        os.dup2(read_only, held)  # it takes no more changes
        os.close(read_only)
    assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    with locked(tmp_path):
        pass
    assert (tmp_path / LOCK).read_text() == ""


def points_to(link: Path, file: Path) -> bool:
    """Whether an open file is this one."""
    return link.exists() and link.samefile(file)


def test_a_name_that_is_no_text_is_shown_all_the_same(tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / LOCK).write_bytes(b"pro\xffcess 7\n")
        with pytest.raises(StorageError, match="is being run by pro\ufffdcess 7; wait"), locked(tmp_path):
            pass


def test_a_killed_driver_leaves_no_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(StorageError, match=f"process {holder.pid} on"), locked(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with locked(tmp_path):  # although a process that it started lives on
            os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_resuming_a_search_that_runs_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("y\n" + "\n".join(str((n * 37) % 101) for n in range(200)) + "\n")
    section = {"source": str(tmp_path / "t.csv"), "target": "y", "lookback": 12, "horizon": 3}
    spec = SearchSpec.parse({"name": "mine", "data": section, "model": {"family": "lstm"}})
    folder = tmp_path / "searches" / "mine"
    folder.parent.mkdir()
    create_folder(folder, spec, prepare(load_table(spec.data), spec.data).fingerprint)
    before = sorted(path.name for path in folder.iterdir())
    with locked(folder):
        result = CliRunner().invoke(app, ["--resume", "mine", "--storage", str(folder.parent)])
    assert result.exit_code == 2, result.output
    assert "the search 'mine' is being run by process" in result.output
    assert sorted(path.name for path in folder.iterdir()) == sorted([*before, LOCK])
