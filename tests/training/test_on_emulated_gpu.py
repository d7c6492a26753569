"""What a GPU does around kernels, on one that is emulated (tests/emulated): devices, graphs, memory that runs out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import emulated_gpu
import pytest

ROOT = Path(__file__).parent.parent.parent
EMULATED = ROOT / "tests" / "emulated"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulated_gpu.missing() is not None, reason=str(emulated_gpu.missing())),
]


def run(name: str, interpret: str = "0") -> Any:
    """What came of one of gpu_runs.RUNS. interpret: "1" for Triton's kernels in its interpreter, else the reference."""
    command = [sys.executable, str(EMULATED / "gpu_runs.py"), name]
    environment = emulated_gpu.environment(TRITON_INTERPRET=interpret)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


def assert_replayed(found: dict[str, Any]) -> None:
    """It was captured, with the eager steps' bits, and gave its memory back."""
    assert found["captured"] and found["captures"] and found["replays"], found
    assert found["same"] and found["same_weights"], "replays give the eager steps' bits"
    assert found["from_cpu"] < 1e-3, "the CPU's kernels round in other places, and Adam makes much of little"
    assert found["kept"] == 0, "bytes that nobody needs any more"


def test_what_is_tested_on_a_gpu_holds_on_an_emulated_one() -> None:
    """As `make test-gpu` runs them, but for torch's own LSTM, of whose kernel a CPU has none."""
    files = [f"tests/training/test_{name}.py" for name in ("capture", "micro")]
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-m", "gpu", "-k", "not lstm_torch", *files]
    environment = emulated_gpu.environment(TRITON_INTERPRET="0", XLSTM_TUNE_TEST_GPU="1")
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:]
    passed = re.search(r"(\d+) passed, (?!.*(failed|skipped))", ended.stdout)
    assert passed and int(passed[1]) >= 18, ended.stdout[-500:]


@pytest.mark.parametrize("name", ["ms", "padded"])
def test_a_step_lies_on_the_device_and_is_replayed(name: str) -> None:
    found = run(name)
    assert_replayed(found)
    assert found["captures"] == 2, "the smaller last batch has a graph of its own"


def test_kernels_are_started_where_their_tensors_lie() -> None:
    for family, found in run("kernels", interpret="1").items():
        assert f"{family}: triton" in found["backend"]
        assert_replayed(found)
    assert_replayed(run("kernels together", interpret="1"))


def test_a_step_that_waits_for_the_device_is_not_captured_and_goes_on() -> None:
    found = run("waiting")
    assert not found["captured"] and found["broken"] == 1 and found["replays"] == 0
    assert "no CUDA graph: capturing one failed (RuntimeError: CUDA error: operation not permitted" in found["backend"]
    assert found["same"] and found["kept"] == 0, "a capture that broke left nothing behind"


@pytest.mark.parametrize("interpret", ["0", "1"], ids=["reference", "triton"])
def test_torch_compile_follows_no_kernel(interpret: str) -> None:
    """It followed Triton as that looked for a driver, and stopped there: what chooses a kernel is a constant."""
    for name, found in run("compiled", interpret).items():
        assert found == {"same": True, "same_gradients": True}, name


@pytest.mark.parametrize(("name", "key"), [("memory", "micro_batch"), ("memory together", "together")])
def test_memory_that_runs_out_changes_no_number(name: str, key: str) -> None:
    """Where the allocator itself refuses: batches are done by halves, members by fewer at a time, graphs are let go."""
    rows = run(name)
    fitted = {share: [row[key] for row in rows if row["share"] == share] for share in (1.05, 0.7, 0.4)}
    assert fitted[1.05] == [None, None]
    assert all(fitted[0.7]) and all(fitted[0.4]) and fitted[0.4][0] < fitted[0.7][0]
    for row in rows:
        # Some processors' products of one member round otherwise than those of several.
        assert row["apart"] < (1e-6 if row["micro_batch"] or row["together"] else 1e-12), row
        assert not row["captured"]
    refused = [row["backend"].partition("no CUDA graph: ")[2] for row in rows if row["capture"] == "auto"]
    assert refused[0].startswith("capturing one failed (OutOfMemoryError: CUDA out of memory")
    assert refused[1:] == ["a whole batch does not fit in memory, and how it is split may change"] * 2
