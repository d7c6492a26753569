"""A GPU's memory that runs out within a search, on one that is emulated (tests/emulated)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import emulated_gpu
import pytest
from fault_search import NAME, STATES, epochs_of, runs_of, study_of, trials_of, write_search
from tracked import give_database

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulated_gpu.missing() is not None, reason=str(emulated_gpu.missing())),
]
SECTIONS: dict[str, Any] = {
    "data": {"lookback": 24},
    "space": {"training.learning_rate": {"choice": [0.003, 0.01]}},
    "model": {"family": "lstm", "layers": 2, "dropout": 0.0},
    "training": {"epochs": 3, "batch_size": 64, "precision": "fp32"},
}


def search(folder: Path, code: int = 0, **environment: str) -> tuple[dict[int, dict[str, Any]], str]:
    """The rows of a search's trials, and what it printed."""
    file, storage = write_search(folder, **SECTIONS), folder / "searches"
    give_database(storage)
    ended = subprocess.run(
        [sys.executable, "-m", "xlstm_tune.search", str(file), "--storage", str(storage)],
        env=emulated_gpu.environment(TRITON_INTERPRET="0", **environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    found = storage / NAME
    rows, epochs, study, runs = trials_of(found), epochs_of(found), study_of(found), runs_of(found)
    assert sorted(rows) == sorted(study) == sorted(runs) == [0, 1], "every trial once"
    for number, row in rows.items():
        assert study[number].state.name == STATES[row["status"]]
        curve = sorted((epoch, one["val_rmse"]) for (trial, epoch), one in epochs.items() if trial == number)
        assert runs[number][1] == curve and len(curve) == (0 if row["status"] == "failed" else 3)
    return rows, ended.stdout


def test_trials_that_run_out_of_it_go_on_in_pieces_or_fail_by_themselves(tmp_path: Path) -> None:
    true, _ = search(tmp_path / "enough")
    for row in true.values():
        assert "steps replayed from a CUDA graph" in row["backend"] and row["micro_batch"] is None
    most = min(row["peak_memory_mib"] for row in true.values()) * 2**20

    halved, printed = search(tmp_path / "little", EMULATED_GPU_BYTES=str(int(0.3 * most)))
    for number, row in halved.items():
        assert row["status"] == "completed" and row["micro_batch"] <= 32
        assert row["val_rmse"] == pytest.approx(true[number]["val_rmse"], rel=1e-4)
    assert "2 trials ran out of memory and went on" in " ".join(printed.split())

    none, printed = search(tmp_path / "none", code=1, EMULATED_GPU_BYTES="20000")
    for row in none.values():
        assert row["status"] == "failed" and "CUDA out of memory" in row["reason"]
