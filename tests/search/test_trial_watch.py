"""A worker that hangs ends itself and leaves a note of where."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xlstm_tune.search.folder import HUNG

ROOT = Path(__file__).resolve().parents[2]
HANG = """
import sys, threading
from pathlib import Path
from xlstm_tune.search.trainable import SearchTrial
from xlstm_tune.spec import SearchSpec

data = {"source": "x.csv", "target": "y", "lookback": 10}
trial = SearchTrial.__new__(SearchTrial)
trial._spec = SearchSpec.parse({"name": "t", "data": data, "resources": {"trial_timeout": 0.5}})
trial._folder, trial._trials, trial._extra = sys.argv[1], [{"number": 3}], 0.0
with trial._watched():
    pass
assert not (Path(sys.argv[1]) / "trials" / "00003" / "hung.txt").exists()
with trial._watched():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
"""


SPOILT = """
import sys, torch
from pathlib import Path
from xlstm_tune.search.store import Shared
from xlstm_tune.search.trainable import SearchTrial
from xlstm_tune.spec import SearchSpec

def broken():
    raise getattr(torch, sys.argv[2])("CUDA error: device-side assert triggered")

trial = SearchTrial.__new__(SearchTrial)
trial._spec = SearchSpec.parse({"name": "t", "data": {"source": "x.csv", "target": "y", "lookback": 10}})
trial._folder, trial._store, trial._trials = Path(sys.argv[1]), Shared(Path(sys.argv[1])), [{"number": 3}]
trial._known, trial._started = {3: 0}, broken
print(trial.step()["reason"])
"""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=120,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_spoilt_gpu_ends_the_worker_and_no_other_error_does(tmp_path: Path) -> None:
    ended = run(SPOILT, str(tmp_path), "AcceleratorError")
    assert ended.returncode == 1 and not ended.stdout and not ended.stderr, ended
    assert "AcceleratorError: CUDA error" in (tmp_path / "trials" / "00003" / "error.txt").read_text()
    ended = run(
        SPOILT.replace("getattr(torch,", "getattr(builtins,").replace("import sys,", "import builtins, sys,"),
        str(tmp_path),
        "RuntimeError",
    )
    assert ended.returncode == 0 and ended.stdout.startswith("error: RuntimeError: CUDA error"), ended


@pytest.mark.slow
def test_a_hanging_epoch_ends_the_worker_with_a_traceback_on_disk(tmp_path: Path) -> None:
    ended = run(HANG, str(tmp_path))
    assert ended.returncode == 1 and "AssertionError" not in ended.stderr, ended.stderr
    assert "Timeout" in (tmp_path / "trials" / "00003" / HUNG).read_text()
