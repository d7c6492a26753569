"""The memory of a graph whose capture fails, as torch counts who holds it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_tune.training import capture


class Counted:
    """What torch counts of a graph's memory: who holds it, and whether a capture takes from it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, ends: bool) -> None:
        self.held, self.open, self.least = 0, False, 0
        counted = self

        class Graph:
            ended = False

            def replay(self) -> None: ...

            def pool(self) -> None:
                if not self.ended:
                    raise RuntimeError("without a preceding successful capture")

            def __del__(self) -> None:
                if self.ended:
                    counted.release()

        @contextmanager
        def graph(made: Graph, pool: Any, stream: Any) -> Iterator[None]:
            counted.held, counted.open = counted.held + 1, True
            try:
                yield
            finally:
                if ends:
                    counted.open, made.ended = False, True

        def end(device: int, pool: Any) -> None:
            if not counted.open:
                raise RuntimeError("not currently recording")
            counted.open = False

        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", graph)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda device, pool: counted.release(), raising=False)
        monkeypatch.setattr(torch.cuda, "default_generators", (torch.default_generator,))

    def release(self) -> None:
        self.held -= 1
        self.least = min(self.least, self.held)


@pytest.mark.parametrize("ends", [True, False])
def test_a_failed_capture_gives_its_memory_back_once(ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """ends: torch's capture ends in order, as where the step itself raises; else it is broken, and its end raises."""
    counted = Counted(monkeypatch, ends=ends)
    monkeypatch.setattr(capture, "_VERSION", (2, 13))

    def full(*inputs: Tensor) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    class Buffer:
        device = torch.device("cuda", 0)

    with pytest.raises(torch.OutOfMemoryError):
        capture.record(full, (Buffer(),), None, "pool")  # type: ignore[arg-type]
    gc.collect()
    assert (counted.held, counted.open, counted.least) == (0, False, 0)
