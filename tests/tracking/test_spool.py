"""The spool: what the driver writes down without MLflow, in one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tracked import ROOT

from xlstm_tune.errors import StorageError
from xlstm_tune.tracking import Spool


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
