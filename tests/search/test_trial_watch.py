"""A worker that hangs ends itself and leaves a note of where."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xlstm_tune.search.persistence.folder import HUNG
from xlstm_tune.search.scheduling.losses import SILENT, Losses

ROOT = Path(__file__).resolve().parents[2]
HANG = """
import sys, threading
from pathlib import Path
from xlstm_tune.search.trials.trainable import SearchTrial
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
from xlstm_tune.search.persistence.store import Shared
from xlstm_tune.search.trials.trainable import SearchTrial
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


def test_one_hang_does_not_make_later_losses_hangs(tmp_path: Path) -> None:
    """Workers of a bucket's search keep their notes elsewhere, and never clear what the driver left here."""
    losses = Losses(tmp_path)
    trial: Any = SimpleNamespace(trial_id="a", config={"trials": [{"number": 3}]}, error_file=None)
    note = tmp_path / "trials" / "00003" / HUNG
    note.parent.mkdir(parents=True)
    note.write_text(f"{SILENT} for 33 s; the search ended the worker\n")
    losses.on_trial_error(None, trial)
    assert losses.why("a").startswith("hung")
    losses.on_trial_error(None, trial)
    assert losses.why("a") == "worker died"
    note.write_text("Timeout (0:00:30)!\n")  # a worker's own note is its trial's, and its next worker's to clear
    losses.on_trial_error(None, trial)
    assert losses.why("a").startswith("hung") and note.exists()


@pytest.mark.slow
def test_what_a_workers_start_raised_is_the_reason(tmp_path: Path) -> None:
    """In the words of the Ray that is installed."""
    import ray
    from ray import tune

    class Trial(tune.Trainable):  # type: ignore[misc]  # local, so that it travels to the worker by value
        def setup(self, config: dict[str, Any]) -> None:
            raise ValueError("no such\nthing")

    losses = Losses(tmp_path)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        config = {"trials": [{"number": 3}]}
        place = {"name": "ray", "storage_path": str(tmp_path), "verbose": 0}
        (lost,) = tune.run(Trial, config=config, scheduler=losses, raise_on_failed_trial=False, **place).trials
    finally:
        ray.shutdown()
    assert losses.why(lost.trial_id) == "worker died at its start: ValueError: no such thing"


def test_a_note_of_an_earlier_worker_is_no_word_on_the_next(tmp_path: Path) -> None:
    """Killed before it came to write its own: the old note stays, as a file of the trial."""
    note = tmp_path / "trials" / "00003" / HUNG
    note.parent.mkdir(parents=True)
    note.write_text("Timeout (0:00:30)!\n")
    for again in (False, True):
        losses, after = Losses(tmp_path), "b" if again else "a"
        trial: Any = SimpleNamespace(trial_id=after, config={"trials": [{"number": 3}]}, error_file=None)
        losses.on_trial_add(None, trial)
        if again:
            note.write_text("Timeout (0:00:30)!\n")
        losses.on_trial_error(None, trial)
        assert losses.why(after).startswith("hung") == again and note.exists()


@pytest.mark.slow
def test_a_hanging_epoch_ends_the_worker_with_a_traceback_on_disk(tmp_path: Path) -> None:
    ended = run(HANG, str(tmp_path))
    assert ended.returncode == 1 and "AssertionError" not in ended.stderr, ended.stderr
    assert "Timeout" in (tmp_path / "trials" / "00003" / HUNG).read_text()
