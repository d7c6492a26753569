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


@pytest.mark.slow
def test_a_hanging_epoch_ends_the_worker_with_a_traceback_on_disk(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANG, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1 and "AssertionError" not in ended.stderr, ended.stderr
    assert "Timeout" in (tmp_path / "trials" / "00003" / HUNG).read_text()
