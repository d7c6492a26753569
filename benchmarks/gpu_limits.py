"""Timing with events, and what the device can do: products, memory, the floor under a step, a first call.

A time is the median of single calls between two events, the device idle before each, so what a call costs on the host
counts where the device waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Any

import torch
from gpu_cases import OURS, Case

MOST_CALLS = 100
LARGE = {torch.bfloat16: 8192, torch.float16: 8192, torch.float32: 4096}
"""Rows and columns of the square matrices whose product is timed."""
COPIED = 2**30
"""Bytes of the copied tensor: far more than any cache."""
FLOOR_STEPS = 4096
FLOOR_WIDTH = 16
SECONDS = 0.5


def median_ms(run: Callable[[], object], seconds: float) -> float:
    """Milliseconds of a call: the median of calls for about so many seconds, at least one, after one to warm up."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    run()
    torch.cuda.synchronize()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while not times or (time.perf_counter() < until and len(times) < MOST_CALLS):
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return median(times)


@cache
def _warming() -> torch.cuda.Stream:
    """One for all captures: torch keeps memory for products on each stream for good."""
    return torch.cuda.Stream()


def graphed(run: Callable[[], object]) -> Callable[[], None]:
    """A call that replays `run`, captured in a CUDA graph."""
    stream = _warming()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def rates(device: torch.device) -> dict[str, Any]:
    """Flops a second of large products by dtype (float32 as such, not TensorFloat-32), bytes a second of a copy."""
    assert not torch.backends.cuda.matmul.allow_tf32
    flops = {}
    for dtype, size in LARGE.items():
        square = torch.randn(size, size, device=device, dtype=dtype)
        out = torch.empty_like(square)
        ms = median_ms(lambda square=square, out=out: torch.mm(square, square, out=out), SECONDS)  # type: ignore[misc]
        flops[str(dtype).removeprefix("torch.")] = 2 * size**3 / (ms / 1e3)
    source = torch.ones(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    ms = median_ms(lambda: target.copy_(source), SECONDS)
    return {"flops": flops, "bandwidth": 2 * COPIED / (ms / 1e3)}


def floor(op: str, dtype: str, device: torch.device) -> dict[str, Any]:
    """Seconds of a step of one program: one head of 16 units, one sample; more processors do not help."""
    from gpu_peers import Ours

    task = Ours(Case(op, 1, FLOOR_STEPS, 1, FLOOR_WIDTH, dtype), device)
    forward, both = median_ms(task.forward, SECONDS), median_ms(task.both, SECONDS)
    return {"forward": forward / 1e3 / FLOOR_STEPS, "both": both / 1e3 / FLOOR_STEPS}


def first(op: str, dtype: str, width: int, device: torch.device) -> dict[str, Any]:
    """Seconds of forward and backward of a shape: the first call, the second, and the first with another batch and
    number of steps. The device and its libraries are started before."""
    from gpu_peers import Task, build

    def seconds(task: Task) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        task.both()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    for kind in (torch.float32, torch.bfloat16):
        square = torch.ones(1, 64, 64, device=device, dtype=kind)
        torch.bmm(square, square)
    task = build(OURS, Case(op, 32, 365, 4, width, dtype), device)
    once, again = seconds(task), seconds(task)
    other = build(OURS, Case(op, 23, 90, 4, width, dtype), device)
    return {"first": once, "second": again, "other": seconds(other)}
