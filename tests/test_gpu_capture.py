"""benchmarks/gpu.py's comparison of eager and captured training steps, as far as it goes without a GPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("benchmarks")


@pytest.mark.parametrize("members", [1, 2])
def test_both_ways_train_the_same_on_a_cpu(members: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_capture

    monkeypatch.setattr(gpu_capture, "BATCHES", 2)
    monkeypatch.setattr(gpu_capture, "EPOCHS", gpu_capture.SETTLED + 1)
    monkeypatch.setenv("XLSTM_TUNE_CAPTURE", "auto")
    found = gpu_capture.measure(members, torch.device("cpu"), {"batch": 4, "steps": 12, "width": 16})
    assert found["differs"] == 0.0 and not found["captured"]
    assert found["eager_ms"] > 0 and found["captured_ms"] > 0
    assert os.environ["XLSTM_TUNE_CAPTURE"] == "auto"


def test_times_stand_side_by_side_and_wrong_losses_are_failures() -> None:
    from gpu_capture import capture_table, wrong_captures
    from gpu_tables import header, line

    measured: dict[str, Any] = {"eager_ms": 10.0, "captured_ms": 4.0, "captured": True, "differs": 0.0}
    rows = [
        {"members": 1} | measured,
        {"members": 4} | measured | {"captured": False, "differs": 0.01},
        {"members": 16, "error": "out of memory"},
    ]
    lines = capture_table(rows, header, line)
    assert "| 1 | 10.00 | 4.00 | 2.50 | 0.0e+00 |" in lines
    assert "| 4 | 10.00 | 4.00 (was not captured) | 2.50 | 1.0e-02 |" in lines
    assert "| 16 | out of memory |  |  |  |" in lines
    assert capture_table([], header, line) == []
    assert wrong_captures(rows) == [
        "training step, 4 together: losses differ by 1.0e-02 when captured",
        "training step, 16 together: out of memory",
    ]
    assert not wrong_captures([{"members": 16, "error": "not run: no time was left"}])
