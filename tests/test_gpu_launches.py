"""benchmarks/gpu_launches.py as far as it goes without a GPU."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("benchmarks")


@pytest.mark.parametrize("op", ["lstm", "slstm", "mlstm"])
def test_other_parameters_are_used_and_held_against_the_tables(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_launch_times
    from gpu_cases import Case

    case = Case(op, batch=3, steps=20, heads=1, width=8, dtype="float32")
    own = gpu_launch_times.by_table(case, CPU)
    other = own | ({"CHUNK": 32} if op == "mlstm" else {"samples": 16})
    used = []

    def timed(run: Any, seconds: float) -> float:
        used.append(gpu_launch_times.by_table(case, CPU))
        run()
        return 1.5

    monkeypatch.setattr(gpu_launch_times, "median_ms", timed)
    found = gpu_launch_times.measure(case, other, 0.1, CPU)
    assert not found["own"] and found["worst"] < 1e-5 and used == [other, other]
    assert found["forward_ms"] == found["both_ms"] == 1.5
    same = gpu_launch_times.measure(case, own, 0.0, CPU)
    assert same == {"own": True, "worst": 0.0}


def test_every_kernel_for_all_steps_has_its_own_parameters_among_the_candidates() -> None:
    from gpu_launch_times import by_table
    from gpu_launches import SHAPES, wanted

    tried = wanted("", False)
    assert len(tried) == len({(case, *cut.items()) for case, cut in tried})
    for case in {case for case, _ in tried}:
        for batch, members in SHAPES:
            assert (case, by_table(replace(case, batch=batch, members=members), CPU)) in tried, case.title
    with pytest.raises(ValueError, match="no kernel runs all steps of"):
        by_table(next(iter(tried))[0].__class__("lstm", 1, 1, 1, 128, "float32"), CPU)


@pytest.mark.slow
def test_candidates_are_checked_in_the_interpreter() -> None:
    finished = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu_launches.py"), "--interpret"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    lines = finished.stdout.splitlines()
    assert [line.split(",")[0] for line in lines] == ["lstm", "slstm", "mlstm"]
    assert all(line.endswith(": ok") for line in lines)


def test_the_fastest_stands_beside_the_tables_own() -> None:
    from gpu_cases import Case
    from gpu_launches import judged, tables

    case = asdict(Case("slstm", 32, 365, 4, 16, "float32"))
    own, other = ({"samples": samples, "warps": warps, "stages": 3} for samples, warps in ((16, 1), (8, 4)))
    rows = [
        case | {"cut": own, "own": True, "worst": 0.0, "forward_ms": 1.0, "both_ms": 3.0},
        case | {"cut": other, "own": False, "worst": 1e-6, "forward_ms": 0.5, "both_ms": 1.5},
        judged(case | {"cut": other, "own": False, "worst": 0.3, "forward_ms": 0.1, "both_ms": 0.2}),
        case | {"cut": other, "error": "out of memory"},
    ]
    assert rows[2]["wrong"]
    lines = tables([rows[0], rows[1], rows[3]])
    title = "slstm, 32 × 365 steps, 4 × 16, float32"
    assert (
        f"| {title} | 16 samples, 1 warps, 3 stages | 3.000 | 8 samples, 4 warps, 3 stages | 1.500 | 2.00× |" in lines
    )
    assert f"| {title} | 8 samples, 4 warps, 3 stages | out of memory |" in lines
    assert "| 0.200 |" not in "".join(tables(rows)), "a wrong result is no candidate"
