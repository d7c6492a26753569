"""A process of gpu.py: answers requests, lines of JSON, until standard input closes; see gpu_child.py."""

from __future__ import annotations

import gc
import json
import os
import platform
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from gpu_cases import Case, Refused

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LONGEST = 240
"""Characters of a reason."""


class Worker:
    """Answers requests; keeps what `prepare` built for `time`."""

    def __init__(self) -> None:
        self.task: Any = None

    def describe(self) -> dict[str, Any]:
        """The device ("" without one), versions, and what mLSTM's kernel can do."""
        versions = {"Python": platform.python_version()}
        for name in ("torch", "triton", "numba", "flashrnn", "xlstm", "mlstm_kernels"):
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                continue
        found: dict[str, Any] = {"device": "", "versions": versions}
        if DEVICE.type == "cuda":
            properties = torch.cuda.get_device_properties(DEVICE)
            versions["CUDA"] = str(torch.version.cuda)
            found["device"] = properties.name
            found["memory_gib"] = properties.total_memory / 2**30
            found["processors"] = properties.multi_processor_count
        try:
            from gpu_mlstm import designs, widest
        except ImportError as error:
            found["error"] = f"xlstm_tune.kernels cannot be imported: {error}; `make gpu-packages` brings what it needs"
            return found
        return found | {"widest": widest(), "designs": designs()}

    def refusal(self, side: str) -> dict[str, Any]:
        """{"error": reason} where a side cannot run anything here."""
        from gpu_peers import expect

        expect(side, DEVICE)
        return {}

    def limits(self) -> dict[str, Any]:
        """What the device can do: see gpu_limits.py."""
        from gpu_limits import rates

        return rates(DEVICE)

    def floor(self, op: str, dtype: str) -> dict[str, Any]:
        """Seconds of a step of one program of ours."""
        from gpu_limits import floor

        return floor(op, dtype, DEVICE)

    def check(
        self, op: str, dtype: str, width: int, variant: str, size: tuple[int, int, int], seed: int
    ) -> dict[str, Any]:
        """The worst relative error of a problem: see gpu_checks.py."""
        from gpu_checks import check

        return check(op, dtype, width, variant, size, seed, DEVICE)

    def feature(self, op: str, name: str, width: int, size: tuple[int, int, int]) -> dict[str, Any]:
        """Whether capture, compilation or vmap give the same numbers."""
        from gpu_checks import FEATURES

        return {"said": FEATURES[name](op, width, size, DEVICE)}

    def prepare(self, side: str, case: dict[str, Any]) -> dict[str, Any]:
        """Build a case and run it once, forward and backward; `agrees` where its output could be held against ours."""
        from gpu_peers import build

        self.task = None
        task = build(side, Case(**case), DEVICE)
        found: dict[str, Any] = task.agreement()
        task.both()
        _wait()
        self.task = task
        return found

    def time(self, seconds: float, graph: bool) -> dict[str, Any]:
        """Milliseconds of the case that was prepared last, forward, and forward and backward."""
        from gpu_limits import graphed, median_ms

        assert self.task is not None
        found: dict[str, Any] = {"forward_ms": median_ms(self.task.forward, seconds)}
        found["both_ms"] = median_ms(self.task.both, seconds)
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if graph:
            try:
                found["graph_ms"] = median_ms(graphed(self.task.both), seconds)
            except RuntimeError as error:  # the other times are good, but a broken capture leaves the process spoilt
                found |= {"graph_error": reason(error), "graph_trace": traceback.format_exc(), "fatal": True}
        self.task = None
        return found

    def way(self, case: dict[str, Any], way: str, seconds: float) -> dict[str, Any]:
        """Times and memory of a case that stores or recomputes: see gpu_memory.py."""
        from gpu_memory import measure

        self.task = None
        return measure(Case(**case), way, seconds, DEVICE)

    def capture(self, members: int) -> dict[str, Any]:
        """A training step eager and captured: see gpu_capture.py."""
        from gpu_capture import measure

        self.task = None
        return measure(members, DEVICE)

    def launch(self, case: dict[str, Any], cut: dict[str, int], seconds: float) -> dict[str, Any]:
        """A case launched with other parameters: see gpu_launch_times.py."""
        from gpu_launch_times import measure

        self.task = None
        return measure(Case(**case), cut, seconds, DEVICE)

    def first(self, op: str, dtype: str, width: int) -> dict[str, Any]:
        """Seconds of the first forward and backward of a shape."""
        from gpu_limits import first

        return first(op, dtype, width, DEVICE)


def respond(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request."""
    handle: Callable[..., dict[str, Any]] = getattr(worker, request.pop("do"))
    try:
        return handle(**request)
    except Exception as error:  # one case's accident is its own result, and must not end the others
        spoilt = "CUDA" in str(error) and not isinstance(error, (torch.OutOfMemoryError, Refused))
        answer = {"error": reason(error), "fatal": spoilt}
        return answer if isinstance(error, Refused) else answer | {"trace": traceback.format_exc()}


def reason(error: Exception) -> str:
    """An error in one line: of a compiler's output the line that tells the error, else the first and the last."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    if isinstance(error, Refused):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "error:" in line.lower()]
    picked = telling[:1] or ([lines[0], lines[-1]] if len(lines) > 1 else lines)
    return f"{type(error).__name__}: {' … '.join(picked)}"[:LONGEST]


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    worker = Worker()
    say({"ready": True})
    for line in sys.stdin:
        answer = respond(worker, json.loads(line))
        say(answer)
        if answer.get("fatal"):
            return
        gc.collect()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
