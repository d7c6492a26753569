"""benchmarks/gpu.py as far as it goes without a GPU: checks in Triton's interpreter, counting, tables, accidents."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from xlstm_tune.kernels.lstm_reference import LSTMState, lstm_steps

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("benchmarks")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_gpu_without_a_gpu_says_so_in_a_sentence(tmp_path: Path) -> None:
    finished = run("--out", str(tmp_path))
    assert finished.returncode == 2
    assert finished.stdout.startswith("There is no GPU: torch ") and finished.stdout.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_gpu_interpret_checks_on_a_cpu() -> None:
    pytest.importorskip("triton")
    finished = run("--interpret")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    rows = [line for line in finished.stdout.splitlines() if line.startswith(("| lstm ", "| slstm ", "| mlstm "))]
    assert [row.split(" | ")[1] for row in rows[:6]] == ["float32"] * 3 + ["float16"] * 3
    counts = ["7 of 7", "7 of 7", "6 of 6"] * 2  # recomputing, which mLSTM always does, is no variant of it
    assert all(row.endswith(f"| {count} | ok |") for row, count in zip(rows[:6], counts, strict=True))
    assert [row.rsplit(" | ", 1)[1] for row in rows[6:]] == ["not run: a CPU has no CUDA graphs |", "ok |", "ok |"] * 3


@pytest.mark.slow
def test_lane_goes_on_after_an_accident() -> None:
    from gpu_child import Lane, environment

    with Lane(environment(True)) as lane:
        assert lane.ask({"do": "describe"}, 0.0) == {"error": "took longer than 0 s for 'describe'"}
        late = lane.ask({"do": "describe"}, 60, left=0.0)["error"]
        assert late == "not run: no time was left to finish it", "what a deadline cuts short is no failure"
        crashed = lane.ask({"do": "nothing that is known"}, 60)["error"]
        assert crashed.startswith("the process ended with exit code 1: AttributeError")
        assert lane.ask({"do": "floor", "op": "none", "dtype": "float32"}, 60)["error"].startswith("KeyError: ")
        assert lane.ask({"do": "describe"}, 60)["device"] == ""


def test_work_counts_the_products_of_forward_and_backward() -> None:
    from gpu_cases import Case, gated

    case = Case("lstm", batch=2, steps=5, heads=1, width=8, dtype="float32", members=3)
    gates = torch.randn(2, 5, 3, 4, 8, requires_grad=True)
    recurrent, bias = torch.randn(3, 4, 8, 8, requires_grad=True), torch.randn(3, 4, 8, requires_grad=True)
    state = LSTMState(*(torch.randn(2, 3, 8, requires_grad=True) for _ in range(2)))
    forward, both = gated(case)
    with FlopCounterMode(display=False) as counter:
        h, _ = lstm_steps(gates, recurrent, bias, state)
        assert forward.flops == counter.get_total_flops()
        h.sum().backward()
    assert both.flops == counter.get_total_flops()

    weights = recurrent.nbytes + bias.nbytes
    assert forward.bytes == gates.nbytes + h.nbytes + weights
    # Gates, h and its gradient in, gates' gradients out; weights in, their gradients out.
    assert both.bytes == forward.bytes + 2 * gates.nbytes + 2 * h.nbytes + 2 * weights


def test_limit_is_the_slower_of_products_and_memory() -> None:
    from gpu_cases import Work

    assert Work(flops=6.0, bytes=4.0).limit(flops=2.0, bandwidth=4.0) == 3
    assert Work(flops=6.0, bytes=20.0).limit(flops=2.0, bandwidth=4.0) == 5


def test_check_finds_a_gradient_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    import gpu_checks

    arguments: Any = ("lstm", "float32", 4, "masks", (3, 2, 1), 0, CPU)
    assert gpu_checks.check(*arguments)["worst"] < 1e-5
    right = gpu_checks.OPS["lstm"]

    def call(inputs: list[torch.Tensor], **options: Any) -> tuple[torch.Tensor, ...]:
        if options["backend"] == "triton":
            inputs = [inputs[0], inputs[1], inputs[2] * 1.01 - inputs[2].detach() * 0.01, *inputs[3:]]
        return right.call(inputs, **options)

    changed = gpu_checks.Op(right.draw, call, right.inputs, right.state)
    monkeypatch.setitem(gpu_checks.OPS, "lstm", changed)
    found = gpu_checks.check(*arguments)
    assert found["worst"] == pytest.approx(0.01, rel=1e-2) and found["where"] == "gradient of bias"


@pytest.mark.parametrize(
    ("side", "package"),
    [("xlstm vanilla", "xlstm"), ("FlashRNN vanilla", "flashrnn"), ("FlashRNN vanilla_fwbw", "flashrnn")],
)
def test_peer_computes_what_ours_does(side: str, package: str) -> None:
    pytest.importorskip(package)
    from gpu_cases import Case
    from gpu_peers import build

    task = build(side, Case("slstm", batch=16, steps=20, heads=2, width=16, dtype="float32", members=2), CPU)
    assert task.agreement()["differs"] < 1e-5
    assert all(gradient.isfinite().all() for gradient in task.both())


def test_peer_with_another_function_is_refused() -> None:
    from gpu_cases import Case, Refused
    from gpu_peers import Ours, differs

    task = Ours(Case("slstm", batch=2, steps=4, heads=1, width=3, dtype="float32"), CPU, backend="reference")
    with pytest.raises(Refused, match="not the same function"):
        differs(task.case, 1.1 * task.forward(), *task.inputs)


@pytest.mark.parametrize("op", ["lstm", "slstm"])
def test_vmapped_members_are_more_heads(op: str) -> None:
    from gpu_cases import Case
    from gpu_peers import Ours, Vmapped

    case = Case(op, batch=3, steps=4, heads=2, width=3, dtype="float32", members=2)
    plain, vmapped = Ours(case, CPU, "reference"), Vmapped(case, CPU, "reference")
    vmapped.upstream = plain.upstream
    for one, other in zip((plain.forward(), *plain.both()), (vmapped.forward(), *vmapped.both()), strict=True):
        torch.testing.assert_close(one, other)


def made_up() -> dict[str, Any]:
    """Results as if there had been a device."""
    case = {"section": "long", "op": "slstm", "batch": 16, "steps": 1024, "heads": 12, "width": 64, "members": 1}
    case |= {"dtype": "bfloat16"}
    times = {"forward_ms": 2.0, "both_ms": 4.0, "peak_gib": 1.0}
    check = {"op": "slstm", "dtype": "float32", "width": 5}
    return {
        "command": "python benchmarks/gpu.py", "device": "A device", "processors": 7, "memory_gib": 8.0,
        "versions": {"torch": "2"}, "date": "today", "seed": 3, "unfinished": False,
        "checks": [
            {**check, "variant": "plain", "worst": 2e-6, "where": "h"},
            {**check, "variant": "masks", "worst": 2e-5, "where": "final c"},
            {**check, "variant": "state", "error": "not run: no time was left"},
        ],
        "features": [{"op": "slstm", "name": "graph", "width": 64, "said": "ok"}],
        "limits": {"flops": {"bfloat16": 1e12, "float32": 1e11}, "bandwidth": 1e11},
        "floors": [{"op": "slstm", "dtype": "bfloat16", "forward": 1e-6, "both": 2e-6}],
        "timings": [
            {**case, **times, "side": "FlashRNN cuda", "both_ms": 6.0},
            {**case, **times, "side": "xlstm_tune", "graph_ms": 3.5},
            {**case, "side": "FlashRNN triton_fused", "error": "AssertionError: a | b"},
            {**case, "width": 128, "side": "FlashRNN triton_fused", "error": "AssertionError: a | b"},
        ],
        "ways": [],
        "first": [{"op": "slstm", "dtype": "bfloat16", "width": 64, "first": 6.0, "second": 0.004, "other": 0.5}],
        "refused": [{"side": "FlashRNN cuda_fused", "error": "it needs nvcc"}],
    }  # fmt: skip


def test_tables_tell_times_shares_and_why_peers_did_not_run() -> None:
    from gpu_tables import failures, tables

    lines = tables(made_up())
    assert failures(made_up()) == []
    assert "| slstm | float32 | 2.0e-05 | final c, width 5, masks | 1e-04 | 2 of 3 | incomplete |" in lines
    shape = "slstm, 16 × 1024 steps, 12 × 64, bfloat16"
    # 8 · 64 flops a unit and 10 bytes, 12.6 million units, at 1 TFLOP/s and 100 GB/s: 6.4 ms, of 2 ms, by products.
    # Three times the bytes with backward too, and of flops: 19.3 ms, of 4 ms.
    ours = f"| {shape} | **xlstm_tune** | 2.000 | 4.000 | 1.95 / 3.91 | 3.500 | 322% / 483% | 51% / 51% | 1.0 |"
    theirs = f"| {shape} | FlashRNN cuda | 2.000 | 6.000 | 1.95 / 5.86 |  | 322% / 322% | 51% / 34% | 1.0 |"
    assert lines[lines.index(ours) + 1] == theirs
    assert "| FlashRNN cuda_fused | all | it needs nvcc |" in lines
    assert f"| FlashRNN triton_fused | 2, such as {shape} | AssertionError: a / b |" in lines
    assert "- slstm, 16 × 1024 steps, 12 × 64, bfloat16, at most 5 ms: met (4.00 ms)." in lines
    (race,) = (line for line in lines if "best backend at every width" in line)
    assert "width: met, ahead at 1 of 1; not running at every shape: FlashRNN cuda_fused, FlashRNN triton" in race
    first = lines.index("- first call of a shape, at most 5 s: MISSED.")
    assert lines[first + 1] == "- not so: slstm, width 64, bfloat16: 6.0 s."
    columns = [line.count("|") for line in lines if line.startswith("|")]
    assert all(count > 2 for count in columns)


@pytest.mark.parametrize(
    ("change", "verdict", "of_5_ms"),
    [
        ({"both_ms": 7.0}, "MISSED, ahead at 0 of 1", "MISSED (7.00 ms)"),
        (
            {"error": "OutOfResources: shared memory"},
            "MISSED, ahead at 0 of 1",
            "MISSED (OutOfResources: shared memory)",
        ),
        (
            {"error": "not run: no time was left"},
            "not decided, ahead at 0 of 1",
            "not decided (not run: no time was left)",
        ),
    ],
)
def test_targets_are_missed_where_we_are_slower_or_cannot_run(
    change: dict[str, Any], verdict: str, of_5_ms: str
) -> None:
    from gpu_tables import targets

    results = made_up()
    results["timings"][1] = {name: one for name, one in results["timings"][1].items() if not name.endswith("_ms")}
    results["timings"][1] |= {"forward_ms": 1.0, **change}
    race, *_ = targets(results)
    assert f"at every width: {verdict}" in race
    assert any(line.endswith(f"at most 5 ms: {of_5_ms}.") for line in targets(results))


def test_a_rival_that_had_no_time_leaves_a_target_open() -> None:
    from gpu_tables import targets

    results = made_up()
    results["timings"][0] = {**results["timings"][2], "side": "FlashRNN cuda", "error": "not run: no time was left"}
    results["timings"][2] = {**results["timings"][1], "side": "FlashRNN triton_fused", "both_ms": 9.0}
    race, *_ = targets(results)
    assert "at every width: not decided, ahead at 0 of 1" in race
    results["timings"][2]["both_ms"] = 3.0
    race, *_ = targets(results)
    assert "at every width: MISSED" in race


def test_failures_are_errors_beyond_the_tolerance_and_accidents() -> None:
    from gpu_tables import failures, tables

    results = made_up()
    results["checks"][0]["worst"] = float("inf")
    results["checks"][1] = {**results["checks"][1], "error": "AcceleratorError: CUDA error"}
    results["features"][0]["said"] = "differs by 1.0e-02"
    assert failures(results) == [
        "slstm, width 5, float32, plain: h differs by inf",
        "slstm, width 5, float32, masks: AcceleratorError: CUDA error",
        "slstm, graph, width 64: differs by 1.0e-02",
    ]
    assert "| slstm | float32 | inf | h, width 5, plain | 1e-04 | 0 of 3 | FAILED |" in tables(results)
    broken = [{"members": 1, "error": "ImportError: x"}, {"members": 4, "error": "not run: no time was left"}]
    results["capture"] = [*broken, {"members": 16, "differs": 0.5}, {"members": 16, "differs": 0.0}]
    assert failures(results)[3:] == [
        "training step, 1 together: ImportError: x",
        "training step, 16 together: losses differ by 5.0e-01 when captured",
    ]


class FakeLane:
    """Answers as a worker on a GPU would."""

    wrong = False
    accident = ""
    """What is asked when the program is interrupted."""

    def __init__(self, variables: dict[str, str]):
        self.variables = variables

    def __enter__(self) -> FakeLane:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def end(self) -> None:
        pass

    def ask(self, request: dict[str, Any], seconds: float, left: float = math.inf) -> dict[str, Any]:
        json.dumps(request)
        assert seconds > 0 and left > 0
        if request["do"] == self.accident:
            raise KeyboardInterrupt
        case = request.get("case", {})
        agreement: dict[str, Any] = {"differs": 0.0}
        if case.get("op") == "mlstm":
            agreement["gradients"] = dict.fromkeys(("any", "behind a norm"), dict.fromkeys("qkvif", 0.0))
        answers: dict[str, dict[str, Any]] = {
            "describe": {
                "device": "Some GPU 80GB", "versions": {"torch": "2"}, "memory_gib": 80.0, "processors": 1,
                "widest": {"mlstm": 64, "mlstm, walk": 24}, "designs": ["walk", "parallel"],
            },
            "check": {"worst": 1.0 if self.wrong else 1e-6, "where": "h"},
            "feature": {"said": "ok"},
            "limits": {"flops": {"bfloat16": 1e15, "float32": 1e13}, "bandwidth": 1e12},
            "floor": {"forward": 1e-6, "both": 2e-6},
            "prepare": {"error": "out of memory"} if case.get("width") == 768 else agreement,
            "time": {"forward_ms": 1.0, "both_ms": 2.0, "peak_gib": 1.0},
            "way": {"forward_ms": 1.0, "both_ms": 2.0, "kept_bytes_a_unit": 28.0, "kept_mib": 3.0, "peak_mib": 4.0},
            "capture": {"eager_ms": 10.0, "captured_ms": 4.0, "captured": True, "differs": 0.0},
            "first": {"first": 1.0, "second": 0.1, "other": 0.2},
            "refusal": {"error": "not installed"} if request.get("side", "").startswith("xlstm") else {},
        }  # fmt: skip
        return answers[request["do"]]


def drive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> Any:
    """The program with a made-up worker."""
    import gpu
    import gpu_compiled

    for module in (gpu, gpu_compiled):
        monkeypatch.setattr(module, "Lane", FakeLane)
    monkeypatch.setattr(gpu_compiled, "EXTENSIONS", tmp_path / "extensions")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path), *arguments])
    return gpu.main()


def test_gpu_goes_through_all_parts_and_writes_both_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gpu_cases import LONG, MLSTM, MLSTM_SEARCH, SEARCH, SECTIONS
    from gpu_ways import CASES

    assert drive(monkeypatch, tmp_path) == 0
    results = json.loads((tmp_path / "some-gpu-80gb.json").read_text())
    assert not results["unfinished"]
    ours = [row for row in results["timings"] if row["side"] == "xlstm_tune"]
    assert len(ours) == sum(len(cases) for cases in SECTIONS.values()) > len(LONG) + len(SEARCH)
    assert len(results["ways"]) == 2 * len(CASES) and all("error" not in row for row in results["ways"])
    assert [row["members"] for row in results["capture"]] == [1, 4, 16]
    assert sum(row["variant"] == "recompute" for row in results["checks"]) == 3 * 3 * 2
    fused = [row for row in results["timings"] if row["side"] == "FlashRNN cuda_fused"]
    assert len(fused) == len(LONG) and sum("both_ms" in row for row in fused) == len(LONG) - 2
    walks = [row for row in results["timings"] if row["side"] == "xlstm_tune, walk"]
    assert len(walks) == len(MLSTM) + 4
    chunkwise = [row for row in results["timings"] if row["side"] == "mlstm_kernels chunkwise--triton_limit_chunk"]
    assert len(chunkwise) == len(MLSTM) + len(MLSTM_SEARCH)
    assert max(row["width"] for row in results["checks"] if row["op"] == "mlstm") == 64
    assert max(row["width"] for row in results["checks"] if row["op"] == "mlstm, walk") == 24
    assert {row["variant"] for row in results["checks"] if row["op"] == "mlstm, parallel"} == {"plain", "state"}
    sides = ("parallel_stabilized_simple", "stack, sLSTM vanilla", "stack, sLSTM cuda", "vanilla")
    assert results["refused"] == [{"side": f"xlstm {side}", "error": "not installed"} for side in sides]
    (figure,) = (line for line in results["targets"] if line.startswith("mlstm, 256 × 96 steps"))
    assert "at least 1.2× the speed of the fastest public kernel with right gradients: MISSED (ours 2.000 ms;" in figure
    text = (tmp_path / "some-gpu-80gb.md").read_text()
    assert f"- {figure}" in text.splitlines()
    assert "out of memory" in text and "Unfinished" not in text


def test_gpu_fails_with_its_checks_after_writing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(FakeLane, "wrong", True)
    assert drive(monkeypatch, tmp_path, "--quick", "--no-peers") == 1
    text = (tmp_path / "some-gpu-80gb-partial.md").read_text()
    assert "FAILED" in text and "xlstm_tune" in text and "FlashRNN c" not in text


def test_gpu_keeps_what_was_measured_before_an_interruption(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(FakeLane, "accident", "first")
    with pytest.raises(KeyboardInterrupt):
        drive(monkeypatch, tmp_path, "--quick")
    results = json.loads((tmp_path / "some-gpu-80gb-partial.json").read_text())
    assert results["unfinished"] and results["timings"]
    assert "**Unfinished**" in (tmp_path / "some-gpu-80gb-partial.md").read_text()


def test_gpu_prepare_compiles_peers_and_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert drive(monkeypatch, tmp_path, "--prepare", "--only", "12 × 64") == 0
    assert drive(monkeypatch, tmp_path, "--prepare") == 1  # one shape does not fit
    assert [path.name for path in tmp_path.iterdir()] == ["extensions"]


def test_gpu_only_takes_what_has_the_words_in_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert drive(monkeypatch, tmp_path, "--only", "12 × 64") == 0
    results = json.loads((tmp_path / "some-gpu-80gb-partial-12-64.json").read_text())
    assert results["checks"] == results["first"] == []
    assert {(row["heads"], row["width"]) for row in results["timings"]} == {(12, 64)}
