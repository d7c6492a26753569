"""benchmarks/gpu.py's comparison of storing and recomputing, as far as it goes without a GPU."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("benchmarks")


def test_check_recomputes_in_its_own_variant_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_checks
    from gpu_memory import VARIABLE

    from xlstm_tune.kernels import gated_triton

    assert VARIABLE == gated_triton.VARIABLE
    monkeypatch.delenv(VARIABLE, raising=False)
    right, said = gpu_checks.OPS["lstm"], []

    def call(inputs: list[torch.Tensor], **options: Any) -> tuple[torch.Tensor, ...]:
        said.append(os.environ[VARIABLE])
        return right.call(inputs, **options)

    monkeypatch.setitem(gpu_checks.OPS, "lstm", gpu_checks.Op(right.draw, call, right.inputs, right.state))
    for variant in ("masks", "recompute"):
        assert gpu_checks.check("lstm", "float32", 3, variant, (3, 2, 1), 0, CPU)["worst"] < 1e-5
    assert said == ["auto", "auto", "recompute", "recompute"]
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("way", ["store", "recompute"])
def test_a_way_is_measured_and_what_it_keeps_is_told_from_h(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_memory
    from gpu_cases import Case

    case = Case("slstm", batch=2, steps=3, heads=1, width=4, dtype="float32")
    h = 2 * 3 * 4 * 4  # bytes
    allocated = iter([1000, 1000 + h + 28 * 24])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: next(allocated))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1000 + 2**20)
    names = []

    def timed(run: Any, seconds: float) -> float:
        names.append(os.environ[gpu_memory.VARIABLE])
        run()
        return 1.5

    monkeypatch.setattr(gpu_memory, "median_ms", timed)
    found = gpu_memory.measure(case, way, 0.1, CPU)
    assert found.pop("same", None) == (True if way == "recompute" else None)
    assert found == {
        "chosen": way == "store", "forward_ms": 1.5, "both_ms": 1.5,
        "kept_mib": (h + 28 * 24) / 2**20, "kept_bytes_a_unit": 28.0, "peak_mib": 1.0,
    }  # fmt: skip
    assert names == [way, way]


def test_gates_of_a_measured_task_are_kept_by_the_op_alone() -> None:
    from gpu_cases import Case
    from gpu_memory import Made, forced
    from gpu_peers import Ours

    case = Case("lstm", batch=2, steps=3, heads=1, width=4, dtype="float32")
    for kind, shared in ((Ours, True), (Made, False)):
        task, places = kind(case, CPU), set()

        def keep(tensor: torch.Tensor, places: set[int] = places) -> torch.Tensor:
            places.add(tensor.data_ptr())
            return tensor

        with forced("recompute"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            task.h()
        assert (task.inputs[0].data_ptr() in places) == shared


def test_ways_stand_side_by_side_in_a_table() -> None:
    from gpu_tables import case_of, header, line
    from gpu_ways import CASES, ways_table

    case = asdict(CASES[0])
    measured = {"forward_ms": 1.0, "both_ms": 2.0, "kept_bytes_a_unit": 28.0, "kept_mib": 300.4, "peak_mib": 500.0}
    rows = [
        case | {"way": "store", "chosen": True} | measured,
        case | {"way": "recompute", "chosen": False, "same": True} | measured,
        case | {"way": "recompute", "error": "out of memory"},
    ]
    lines = ways_table(rows, header, line, lambda row: case_of(row).title)
    shape = "slstm, 16 × 1024 steps, 12 × 64, bfloat16"
    assert f"| {shape} | store* | 1.000 | 2.000 | 28.00 | 300 | 500 |  |" in lines
    assert f"| {shape} | recompute | 1.000 | 2.000 | 28.00 | 300 | 500 | the stored ones, to the last bit |" in lines
    assert f"| {shape} | recompute | out of memory |  |  |  |  |  |" in lines
    assert len({row.count("|") for row in lines if row.startswith("|")}) == 1
    assert ways_table([], header, line, str) == []
