"""What benchmarks/gpu.py does about mLSTM and the stack, as far as it goes without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_tune.kernels import mlstm_forms

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("benchmarks")


def cell(run: Callable[..., Tensor], heads_first: bool = False, steps: int = 40, **changes: Any) -> Any:
    from gpu_cases import Case
    from gpu_mlstm_peers import Cell

    sizes = {"batch": 2, "heads": 3, "width": 8, "value_width": 12, "members": 2} | changes
    return Cell(Case("mlstm", steps=steps, dtype="float32", **sizes), CPU, run, heads_first)


def row_of(task: Any) -> dict[str, Any]:
    """A row of results as gpu.py keeps it."""
    return {"op": "mlstm", "dtype": task.case.dtype, **task.agreement()}


def test_mlstm_work_counts_the_fewest_products_and_each_tensor_once() -> None:
    from gpu_cases import CHUNKS, Case, chunked

    case = Case("mlstm", batch=2, steps=64, heads=3, width=8, dtype="float32", members=5, value_width=24)
    counted = []
    for chunk in (size for size in CHUNKS if size <= 64):
        pairs = sum(step % chunk + 1 for step in range(64))
        between = 64 * 2 * 8 * 24 if chunk < 64 else 0
        counted.append(2 * 30 * (pairs * (8 + 24) + between))
    forward, both = chunked(case)
    assert forward.flops == min(counted) < max(counted)
    assert both.flops == 3 * forward.flops

    q, v, gates = torch.empty(10, 64, 3, 8), torch.empty(10, 64, 3, 24), torch.empty(10, 64, 3)
    inputs = 2 * q.nbytes + v.nbytes + 2 * gates.nbytes
    assert forward.bytes == inputs + v.nbytes
    # Inputs, h and its gradient in, the inputs' gradients out.
    assert both.bytes == forward.bytes + 2 * inputs + 2 * v.nbytes


def test_reference_as_a_side_is_right() -> None:
    from gpu_cases import ANY, NORM
    from gpu_mlstm import call
    from gpu_mlstm_tables import right

    task = cell(lambda *inputs: call(inputs, backend="reference")[0])
    row = row_of(task)
    assert right(row, ANY) and right(row, NORM) and row["differs"] < 1e-5
    assert [gradient.shape for gradient in task.both()] == [one.shape for one in task.inputs]
    assert task.forward().shape == (4, 40, 3, 12)


def test_side_that_leaves_out_the_denominator_is_right_behind_a_norm_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_cases import ANY, NORM
    from gpu_mlstm_tables import right

    whole = mlstm_forms._denominator
    monkeypatch.setattr(mlstm_forms, "_denominator", lambda total, m: whole(total.detach(), m.detach()))
    row = row_of(cell(lambda *inputs: mlstm_forms.mlstm_parallel(*inputs)[0]))
    assert not right(row, ANY) and right(row, NORM)
    assert row["gradients"][ANY]["q"] > 0.1 and row["gradients"][ANY]["v"] < 1e-5


def test_side_with_a_wrong_gradient_is_wrong() -> None:
    from gpu_cases import ANY, NORM
    from gpu_mlstm_tables import right, wrong_gradients

    def run(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
        return mlstm_forms.mlstm_parallel(q, k, 1.01 * v - 0.01 * v.detach(), i, f)[0]

    task = cell(run)
    row = row_of(task)
    assert not right(row, ANY) and not right(row, NORM)
    assert row["gradients"][ANY]["v"] == pytest.approx(0.01, rel=1e-2)
    row |= {"side": "xlstm_tune", "section": "mlstm", "batch": 2, "steps": 40, "heads": 3, "width": 8, "members": 2}
    (told,) = wrong_gradients({"timings": [row, {**row, "side": "another"}]})
    assert told.startswith("xlstm_tune: mlstm, 2 × 40 steps") and told.endswith("v or its gradient differs by 1.0e-02")


def test_side_with_another_function_is_refused() -> None:
    from gpu_cases import Refused

    with pytest.raises(Refused, match="not the same function"):
        cell(lambda *inputs: 1.1 * mlstm_forms.mlstm_parallel(*inputs)[0]).agreement()


@pytest.mark.parametrize("steps", [64, 70, 96])
@pytest.mark.parametrize(("name", "exact"), [("native_autograd", True), ("native_custbw", False)])
@pytest.mark.parametrize("form", ["chunkwise", "parallel"])
def test_mlstm_kernels_computes_what_ours_does(form: str, name: str, exact: bool, steps: int) -> None:
    """Its own torch versions, by the way that its Triton kernels are called; `custbw` has their backward pass."""
    pytest.importorskip("mlstm_kernels")
    pytest.importorskip("einops")
    from gpu_cases import ANY, NORM
    from gpu_mlstm_peers import build_mlstm
    from gpu_mlstm_tables import right

    case = cell(lambda *_: torch.empty(0), steps=steps).case
    row = row_of(build_mlstm(f"mlstm_kernels {form}--{name}", case, CPU))
    assert right(row, NORM) and right(row, ANY) == exact


def test_official_parallel_form_computes_what_ours_does() -> None:
    pytest.importorskip("xlstm")
    from gpu_cases import ANY
    from gpu_mlstm_peers import build_mlstm
    from gpu_mlstm_tables import right

    case = cell(lambda *_: torch.empty(0)).case
    assert right(row_of(build_mlstm("xlstm parallel_stabilized_simple", case, CPU)), ANY)


def test_attention_is_as_wide_as_the_wider() -> None:
    from gpu_mlstm_peers import build_mlstm

    task = build_mlstm("FlashAttention", cell(lambda *_: torch.empty(0)).case, CPU)
    assert task.forward().shape == (4, 3, 40, 12) and len(task.both()) == 3 and task.agreement() == {}


def test_chunks_of_mlstm_kernels_divide_the_length_or_it_is_padded() -> None:
    from gpu_mlstm_peers import fitting_chunk

    lengths = (96, 365, 512, 16)
    assert [fitting_chunk("chunkwise--triton_limit_chunk", steps) for steps in lengths] == [32, 64, 64, 16]
    assert {fitting_chunk("chunkwise--triton_xl_chunk", steps) for steps in lengths} == {128}


def test_designs_are_checked_and_timed_where_the_kernel_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    import gpu_checks
    import gpu_mlstm
    from gpu_cases import Refused
    from gpu_mlstm_peers import build_mlstm

    from xlstm_tune.kernels import mlstm_triton as module

    case = cell(lambda *_: torch.empty(0)).case
    monkeypatch.setattr(module, "mlstm_triton", lambda q, k, v, i, f, initial_state=None: None)
    assert gpu_mlstm.designs() == []
    with pytest.raises(Refused, match="no design 'walk'"):
        build_mlstm("xlstm_tune, walk", case, CPU)
    seen = []

    def designed(q: Any, k: Any, v: Any, i: Any, f: Any, initial_state: Any = None, *, design: str = "auto") -> Any:
        seen.append(design)
        return mlstm_forms.mlstm_parallel(q, k, v, i, f, initial_state)

    monkeypatch.setattr(module, "mlstm_triton", designed)
    assert gpu_mlstm.designs() == ["walk", "parallel"]
    assert list(gpu_mlstm.widest()) == ["mlstm", "mlstm, walk", "mlstm, parallel"]
    assert gpu_checks.check("mlstm, parallel", "float32", 5, "state", (3, 7, 2), 0, CPU)["worst"] < 1e-5
    assert build_mlstm("xlstm_tune, walk", case, CPU).agreement()["differs"] < 1e-5
    assert seen == ["parallel", "walk"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stacks_of_both_sides_train_alike(dtype: str) -> None:
    pytest.importorskip("xlstm")
    from gpu_cases import Case
    from gpu_stack import build_stack

    case = Case("ms", batch=5, steps=20, heads=4, width=8, dtype=dtype)
    ours, theirs = (build_stack(side, case, CPU) for side in ("xlstm_tune", "xlstm stack, sLSTM vanilla"))
    tolerance = 1e-4 if dtype == "float32" else 0.05
    for side in (ours, theirs):
        assert side.agreement()["differs"] < tolerance
    losses = [[side.both()[0].item() for _ in range(3)] for side in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance / 10) and losses[0][2] < losses[0][0]


def rows(*others: dict[str, Any], ours: dict[str, Any] | None = None) -> dict[str, Any]:
    """Results of the first wanted case: ours of 1 ms, and others."""
    from dataclasses import asdict

    from gpu_cases import MLSTM

    common = {"section": "mlstm", **asdict(MLSTM[0]), "forward_ms": 0.5, "peak_gib": 1.0, "differs": 0.0}
    fine = {"gradients": {"any": dict.fromkeys("qkvif", 0.01), "behind a norm": dict.fromkeys("qkvif", 0.01)}}
    mine = {"side": "xlstm_tune", "both_ms": 1.0, **(ours or {})}
    return {"timings": [{**common, **fine, **one} for one in (mine, *others)]}


BEHIND = {"gradients": {"any": dict.fromkeys("qkvif", 1.0), "behind a norm": dict.fromkeys("qkvif", 0.01)}}
WRONG = {"gradients": dict.fromkeys(("any", "behind a norm"), dict.fromkeys("qkvif", 1.0))}
LATE = {"error": "not run: no time was left"}


@pytest.mark.parametrize(
    ("others", "ours", "judged"),
    [
        ([{"side": "a", "both_ms": 1.3}], {}, "met (ours 1.000 ms; 1.30× a, 1.300 ms)"),
        ([{"side": "a", "both_ms": 1.1}], {}, "MISSED (ours 1.000 ms; 1.10× a, 1.100 ms)"),
        (
            [{"side": "a", "both_ms": 2.0}, {"side": "b", "both_ms": 1.5, **BEHIND}],
            {},
            "met (ours 1.000 ms; 1.50× b, 1.500 ms; the fastest that is right for any gradient of h: 2.00× a, 2.000 ms",
        ),
        (
            [{"side": "a", "both_ms": 2.0}, {"side": "b", "both_ms": 0.5, **WRONG}],
            {},
            "met (ours 1.000 ms; 2.00× a, 2.000 ms; the fastest of all: 0.50× b, 0.500 ms)",
        ),
        (
            [{"side": "FlashAttention", "both_ms": 0.5}, {"side": "a", "both_ms": 2.0}],
            {},
            "met (ours 1.000 ms; 2.00× a, 2.000 ms)",
        ),
        (
            [{"side": "a", "both_ms": 2.0}, {"side": "b", **LATE}],
            {},
            "not decided (ours 1.000 ms; 2.00× a, 2.000 ms; not run for want of time: b)",
        ),
        ([{"side": "a", "both_ms": 1.0}, {"side": "b", **LATE}], {}, "MISSED (ours 1.000 ms; 1.00× a"),
        ([{"side": "a", "error": "out of memory"}], {}, "not decided (ours 1.000 ms; nobody to compare with)"),
        (
            [{"side": "a", "both_ms": 2.0, **WRONG}],
            {},
            "not decided (ours 1.000 ms; nobody to compare with; the fastest of all: 2.00× a, 2.000 ms)",
        ),
        ([{"side": "a", "both_ms": 2.0}], {"error": "out of memory"}, "MISSED (out of memory)"),
        ([{"side": "a", "both_ms": 2.0}], LATE, "not decided (not run: no time was left)"),
    ],
)
def test_wanted_figure_is_held_against_the_fastest_with_right_gradients(
    others: list[dict[str, Any]], ours: dict[str, Any], judged: str
) -> None:
    from gpu_mlstm_tables import wanted

    (said,) = wanted(rows(*others, ours=ours))
    assert said.startswith(
        "mlstm, 256 × 96 steps, 4 × 32, bfloat16, forward + backward, at least 1.2× the speed of the "
    )
    assert f": {judged}" in said


def test_agreement_table_tells_errors_under_both_gradients_and_who_is_right() -> None:
    from gpu_mlstm_tables import agreement_table

    results = rows({"side": "b", "both_ms": 1.0, **BEHIND}, {"side": "c", "both_ms": 1.0, **WRONG})
    lines = agreement_table(results)
    title = "mlstm, 256 × 96 steps, 4 × 32, bfloat16"
    assert f"| {title} | xlstm_tune | 0e+00 |{' 1e-02 / 1e-02 |' * 5} right |" in lines
    assert f"| {title} | b | 0e+00 |{' 1e+00 / 1e-02 |' * 5} right behind a norm |" in lines
    assert f"| {title} | c | 0e+00 |{' 1e+00 / 1e+00 |' * 5} WRONG |" in lines
    assert {line.count("|") for line in lines if line.startswith("|")} == {10}
