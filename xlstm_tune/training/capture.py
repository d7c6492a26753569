"""A training step that a GPU replays from a CUDA graph: its kernels are started by one call instead of one by one.

A step is a function of tensors on the device. All that changes from step to step is among them (samples, learning rate,
seeds of the dropout), so that a graph of it is right for every step. For each shape of the inputs the first steps run
as they are, on the stream that will be captured, which compiles kernels and makes the optimiser's moments; they are
steps of the training, as are all replays. Then the step is captured, which computes nothing, over buffers that hold
the inputs from then on. A smaller last batch has a graph of its own, since in a small data set it is one batch of few.
The graphs of a step share their memory: none runs beside another, and nothing in it outlives a step but the outputs,
which the caller takes before the next.

Where capture is refused, the training goes on without it, with the same numbers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from xlstm_tune.errors import SpecError
from xlstm_tune.training.micro import give_back

Outputs = tuple[Tensor, Tensor]
"""A step's loss and the norm of its gradients, [] or one for each member [M], left on the device."""

VARIABLE = "XLSTM_TUNE_CAPTURE"
"""The environment variable that forces eager training with `off`; unset or `auto`: captured where it can be."""
WARM_UP = 3
"""Steps of a shape before it is captured, as many as torch's own helper takes."""
NO_MEMORY = "a whole batch does not fit in memory, and how it is split may change"

_VERSION = tuple(map(int, torch.__version__.split(".")[:2]))

log = logging.getLogger(__name__)


def asked() -> str:
    """auto or off. Raises SpecError for any other value of VARIABLE."""
    mode = os.environ.get(VARIABLE) or "auto"
    if mode not in ("auto", "off"):
        raise SpecError(f"{VARIABLE} must be auto or off, got '{mode}'; give it one of these, or unset it")
    return mode


def possible(device: torch.device) -> bool:
    """Whether a device knows graphs. There learning rates and seeds are tensors, captured or not: the same numbers."""
    return device.type == "cuda"


def refusal(model: nn.Module, padded: bool) -> str | None:
    """Why a step of this model cannot be captured, where that is known before it is tried. padded: it gets lengths."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase) and module.dropout:
            return "torch's own LSTM draws its dropout by itself"
        if isinstance(module, nn.RNNBase) and padded:
            return "torch's own LSTM reads the lengths of its samples on the host"
    return None


@dataclass(frozen=True)
class _Recorded:
    """A captured step, the buffers that it reads and those that it fills."""

    inputs: tuple[Tensor, ...]
    outputs: Outputs
    replay: Callable[[], None]


class Captured:
    """A step that is called as ever, and replayed from a graph as soon as and as long as that goes."""

    def __init__(self, eager: Callable[..., Outputs], whole: Callable[..., Outputs], device: torch.device) -> None:
        """eager: the step, which may find that memory runs out and split itself. whole: the same in one piece.

        Raises SpecError for an unknown value of XLSTM_TUNE_CAPTURE.
        """
        mode = asked()
        self._eager, self._whole, self._device = eager, whole, device
        self.active = mode == "auto" and possible(device)
        """Steps are captured and replayed, or will be."""
        self._refused = "XLSTM_TUNE_CAPTURE is off" if mode == "off" else ""
        self.peak_mib = 0.0
        """MiB allocated at the most when a step was captured: what a replay works in, torch does not count again."""
        self._warmed: dict[tuple[torch.Size, ...], int] = {}
        self._recorded: dict[tuple[torch.Size, ...], _Recorded] = {}
        on_gpu = self.active and device.type == "cuda"
        self._stream = _stream_of(device) if on_gpu else None
        self._pool: Any = torch.cuda.graph_pool_handle() if on_gpu else None

    def __call__(self, *inputs: Any) -> Outputs:
        """A step. inputs: tensors on the device where graphs are `possible`, else whatever the step takes.

        The outputs are to be read before the next call: it may write others in their place.
        """
        if not self.active:
            return self._eager(*inputs)
        shapes = tuple(one.shape for one in inputs)
        recorded = self._recorded.get(shapes)
        if recorded is None:
            if (done := self._warmed.get(shapes, 0)) < WARM_UP:
                self._warmed[shapes] = done + 1
                return self._warm_up(inputs)
            recorded = self._record(inputs)
            if recorded is None:
                return self._eager(*inputs)
            self._recorded[shapes] = recorded
        for buffer, one in zip(recorded.inputs, inputs, strict=True):
            buffer.copy_(one)
        recorded.replay()
        return recorded.outputs

    @property
    def replaying(self) -> bool:
        """Whether steps of some shape are replayed by now."""
        return bool(self._recorded)

    def describe(self) -> str:
        """For people, after what computes the recurrences: whether steps are replayed on a GPU, or why not."""
        if not possible(self._device):
            return ""
        if self._refused:
            return f"; no CUDA graph: {self._refused}"
        return "; steps replayed from a CUDA graph" if self.replaying else ""

    def stop(self, reason: str) -> None:
        """Capture no more and let go of the graphs and their memory; the reason is logged, once in a process."""
        if self.active:
            _tell(reason)
            self._refused = reason
        self.active, self.peak_mib = False, 0.0
        self._recorded.clear()

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> Outputs:
        """A step as it is, on the stream that will be captured: libraries keep workspaces for each stream.

        Over copies, as the capture will be: a row of a larger tensor may begin where Triton takes another kernel for
        it, and one that is first loaded during a capture breaks it.
        """
        if self._stream is None:
            return self._eager(*(one.clone() for one in inputs))
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            found = self._eager(*(one.clone() for one in inputs))
        outside.wait_stream(self._stream)
        return found

    def _record(self, inputs: tuple[Tensor, ...]) -> _Recorded | None:
        """The step captured, or None where that failed: nothing has been computed then."""
        buffers = tuple(one.clone() for one in inputs)
        try:
            replay, outputs = record(self._whole, buffers, self._stream, self._pool)
        except RuntimeError as error:  # of torch, CUDA and Triton alike
            reason = _first_line(error)
        else:
            if self._device.type == "cuda":
                self.peak_mib = max(self.peak_mib, torch.cuda.max_memory_allocated(self._device) / 2**20)
            return _Recorded(buffers, outputs, replay)
        self.stop(f"capturing one failed ({reason})")
        give_back()
        return None


def record(
    step: Callable[..., Outputs], buffers: tuple[Tensor, ...], stream: Any, pool: Any
) -> tuple[Callable[[], None], Outputs]:
    """What replays `step` over these buffers, and the outputs that it fills. pool: of the graph's memory, a handle.

    Raises RuntimeError where the step cannot be captured; torch can be used as before.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        # Entered here too, since a capture that breaks does not leave the stream again.
        with torch.cuda.stream(stream), torch.cuda.graph(graph, pool=pool, stream=stream):
            outputs = step(*buffers)
    except BaseException:
        _end_of_a_broken_capture(graph, buffers[0].device.index, pool)
        raise
    return graph.replay, outputs


def _end_of_a_broken_capture(graph: torch.cuda.CUDAGraph, device: int, pool: Any) -> None:
    """Tell the allocator and the random generator, which would go on as during a capture, what torch did not tell them.

    A step that raises by itself, as where memory runs out, breaks nothing: torch ends the capture in order, and the
    graph gives its memory back when it goes. Giving it back here too would end the process.
    """
    with suppress(RuntimeError):  # only a graph whose capture ended in order tells its pool
        graph.pool()
        return
    if _VERSION < (2, 14):  # later ones give the memory back however the capture ended (pytorch/pytorch#190348)
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(device, pool)
        with suppress(RuntimeError):
            torch._C._cuda_releasePool(device, pool)
    with suppress(RuntimeError):
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())  # the copy knows of no capture


def _first_line(error: BaseException) -> str:
    """What went wrong; where the end of a broken capture fails too, what broke it."""
    first = error.__context__ or error
    return f"{type(first).__name__}: {str(first).partition(chr(10))[0]}"


@cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    """The one that steps are captured on. Libraries keep a workspace for every stream they have seen, for good."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@cache
def _tell(reason: str) -> None:
    """Warn once for each reason."""
    log.warning("Training steps run without a CUDA graph: %s.", reason)
