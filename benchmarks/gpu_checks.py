"""Correctness on the device: the Triton ops against the reference in float64, and what else has to hold of them.

A problem is drawn in float64 and rounded to the dtype, and both sides get the rounded values, so what is compared is
the arithmetic. Compared are h, the final state, and the gradients of every input under a random weighting of the
outputs: of all of them in float32, of h alone in 16 bits, where rounding may flip the maximum in sLSTM's m, at which
the gradient of a final state jumps. An error is the largest difference as a share of the largest value. New memory
holds NaN throughout, so that reading it shows.

To add an op: its entry in OPS, its work and shapes in gpu_cases.py, and how it is drawn and called in gpu_peers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gpu_cases import DESIGNS
from gpu_memory import forced
from gpu_mlstm import call as call_mlstm
from gpu_ways import VARIANT as RECOMPUTE
from torch import Tensor

from xlstm_tune.kernels import LSTMState, MLSTMState, SLSTMState, lstm, slstm

SMALLEST = 0.01
"""Errors of a tensor whose largest value is smaller than this are shares of this."""
SAME = 1e-5
"""Of graph, compile and vmap against the plain call in float32: the same kernels, other launches."""


@dataclass(frozen=True)
class Op:
    """How an op is called, as a function of a flat list of inputs."""

    draw: Callable[..., list[Tensor]]
    """(draw, batch, steps, heads, width) → inputs, the initial state last."""
    call: Callable[..., tuple[Tensor, ...]]
    """(inputs, **options) → h and the parts of the final state."""
    inputs: tuple[str, ...]
    state: tuple[str, ...]


def _draw_lstm(draw: Callable[..., Tensor], batch: int, steps: int, heads: int, width: int) -> list[Tensor]:
    recurrent = draw(heads, 4, width, width) / width**0.5
    state = [draw(batch, heads, width) for _ in range(2)]
    return [draw(batch, steps, heads, 4, width), recurrent, draw(heads, 4, width), *state]


def _draw_slstm(draw: Callable[..., Tensor], batch: int, steps: int, heads: int, width: int) -> list[Tensor]:
    gates, recurrent, bias, h, c = _draw_lstm(draw, batch, steps, heads, width)
    return [gates, recurrent, bias, h, c, draw(batch, heads, width).abs() + 0.3, draw(batch, heads, width)]


def _call_lstm(inputs: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
    gates, recurrent, bias, *state = inputs
    h, final = lstm(gates, recurrent, bias, LSTMState(*state) if state else None, **options)
    return h, *final


def _call_slstm(inputs: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
    gates, recurrent, bias, *state = inputs
    h, final = slstm(gates, recurrent, bias, SLSTMState(*state) if state else None, **options)
    return h, *final


def _draw_mlstm(draw: Callable[..., Tensor], batch: int, steps: int, heads: int, width: int) -> list[Tensor]:
    """Values are wider than keys in narrow heads, and narrower in wide ones, for which the kernel may be too narrow."""
    values = 2 * width - 1 if width <= 24 else width // 2 + 1
    rows = [draw(batch, steps, heads, size) for size in (width, width, values)]
    gates = [2 * draw(batch, steps, heads), 2 * draw(batch, steps, heads) + 1]
    return [*rows, *gates, draw(batch, heads, width, values), draw(batch, heads, width), draw(batch, heads)]


def _call_mlstm(inputs: list[Tensor], design: str = "", **options: Any) -> tuple[Tensor, ...]:
    h, final = call_mlstm(inputs[:5], MLSTMState(*inputs[5:]) if inputs[5:] else None, design=design, **options)
    return h, *final


GATED = ("gates", "recurrent", "bias")
ROWS = ("q", "k", "v", "i", "f")
OPS = {
    "mlstm": Op(_draw_mlstm, _call_mlstm, ROWS, MLSTMState._fields),
    **{
        f"mlstm, {design}": Op(_draw_mlstm, partial(_call_mlstm, design=design), ROWS, MLSTMState._fields)
        for design in DESIGNS
    },
    "lstm": Op(_draw_lstm, _call_lstm, GATED, LSTMState._fields),
    "slstm": Op(_draw_slstm, _call_slstm, GATED, SLSTMState._fields),
}


def problem(op: str, width: int, size: tuple[int, int, int], seed: int, device: torch.device) -> list[Tensor]:
    """Random inputs in float64, the initial state last; size: (batch, steps, heads)."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device=device)

    return OPS[op].draw(draw, *size, width)


def results(
    op: str, inputs: list[Tensor], weights: list[Tensor], backend: str, options: dict[str, Any]
) -> tuple[Tensor, ...]:
    """Outputs, and the gradients of their weighted sum; weights: of the first outputs, the others have no gradient."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    outputs = OPS[op].call(leaves, backend=backend, **options)
    weighted = list(zip(outputs, weights, strict=False))
    upstream = [weight.to(out.dtype) for out, weight in weighted]
    gradients = torch.autograd.grad([out for out, _ in weighted], leaves, upstream, materialize_grads=True)
    return *(out.detach() for out in outputs), *gradients


def error(mine: Tensor, true: Tensor) -> float:
    """The largest difference as a share of the largest value; infinite where something is not finite."""
    share = (mine.double() - true).abs().max() / true.abs().max().clamp(min=SMALLEST)
    return share.item() if share.isfinite() else float("inf")


def check(
    op: str, dtype: str, width: int, variant: str, size: tuple[int, int, int], seed: int, device: torch.device
) -> dict[str, Any]:
    """{"worst": error, "where": which result} of Triton's op against the reference in float64; for variants see
    gpu_cases.VARIANTS and gpu_ways.VARIANT."""
    kind, what = getattr(torch, dtype), OPS[op]
    inputs, weights, options = rounded(op, kind, width, variant, size, seed, device)
    with _poisoned(), forced("recompute" if variant == RECOMPUTE else "auto"):
        mine = results(op, inputs, weights, "triton", options)
        true = results(op, [tensor.double() for tensor in inputs], weights, "reference", options)
    given = what.inputs + (what.state if variant != "plain" else ())
    names = ["h", *(f"final {name}" for name in what.state), *(f"gradient of {name}" for name in given)]
    errors = [error(one, other) for one, other in zip(mine, true, strict=True)]
    worst, where = max(zip(errors, names, strict=True))
    return {"worst": worst, "where": where}


def rounded(
    op: str, kind: torch.dtype, width: int, variant: str, size: tuple[int, int, int], seed: int, device: torch.device
) -> tuple[list[Tensor], list[Tensor], dict[str, Any]]:
    """Inputs in the dtype, initial states in float32 at least, the weights of outputs in float64, and masks."""
    what, (batch, steps, heads) = OPS[op], size
    exact = torch.promote_types(kind, torch.float32)
    drawn = problem(op, width, size, seed, device)
    count = len(what.inputs)
    inputs = [tensor.to(kind if at < count else exact) for at, tensor in enumerate(drawn)]
    generator = torch.Generator(device).manual_seed(seed + 1)
    made: dict[str, Any] = {"generator": generator, "device": device}
    outputs = 1 + len(what.state) if kind == exact else 1
    # Inputs 2 are the bias and v, as wide as h.
    shapes = [(batch, steps, heads, inputs[2].shape[-1]), *(tensor.shape for tensor in inputs[count:])]
    weights = [torch.randn(shape, dtype=torch.float64, **made) for shape in shapes[:outputs]]
    # In the dtype of h, so that both sides see the same.
    weights[0] = weights[0].to(kind).double()
    options: dict[str, Any] = {}
    if variant in ("masks", RECOMPUTE):
        options["resets"] = torch.rand(batch, steps, **made) < 0.2
        options["lengths"] = torch.randint(1, steps + 1, (batch,), **made)
    return inputs if variant != "plain" else inputs[:count], weights, options


class _poisoned:
    """New memory holds NaN inside."""

    def __enter__(self) -> None:
        torch.use_deterministic_algorithms(True, warn_only=True)
        assert torch.empty(3).isnan().all()

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(False)


def check_graph(op: str, width: int, size: tuple[int, int, int], device: torch.device) -> str:
    """Forward and backward captured in a CUDA graph and replayed on new inputs give the plain call's numbers."""
    if device.type != "cuda":
        return "not run: a CPU has no CUDA graphs"
    inputs, weights, _ = rounded(op, torch.float32, width, "state", size, 0, device)
    others, _, _ = rounded(op, torch.float32, width, "state", size, 7, device)
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    upstream = [weight.float() for weight in weights]

    def run() -> tuple[Tensor, ...]:
        outputs = OPS[op].call(leaves, backend="triton")
        return *outputs, *torch.autograd.grad(outputs, leaves, upstream)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        for leaf, other in zip(leaves, others, strict=True):
            leaf.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    mine = [tensor.detach().clone() for tensor in captured]
    return _verdict(mine, run())


def check_compile(op: str, width: int, size: tuple[int, int, int], device: torch.device) -> str:
    """torch.compile of the op, without a break in its graph, gives the plain call's numbers."""
    inputs, weights, options = rounded(op, torch.float32, width, "masks", size, 0, device)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return OPS[op].call(list(tensors), backend="triton", **options)

    compiled = torch.compile(run, fullgraph=True, backend="inductor" if device.type == "cuda" else "aot_eager")
    upstream = [weight.float() for weight in weights]
    found = []
    for call in (compiled, run):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        outputs = call(*leaves)
        found.append([*outputs, *torch.autograd.grad(outputs, leaves, upstream)])
    return _verdict(*found)


def check_vmap(op: str, width: int, size: tuple[int, int, int], device: torch.device) -> str:
    """Members by torch.vmap give each member's own numbers."""
    members = [rounded(op, torch.float32, width, "state", size, seed, device)[0] for seed in range(3)]
    stacked = [torch.stack(parts).requires_grad_() for parts in zip(*members, strict=True)]
    together = torch.vmap(lambda *own: OPS[op].call(list(own), backend="triton"))(*stacked)
    torch.manual_seed(0)
    upstream = [torch.randn_like(out) for out in together]
    mine = [*together, *torch.autograd.grad(together, stacked, upstream)]
    alone = []
    for number in range(3):
        leaves = [tensor[number].detach().requires_grad_() for tensor in stacked]
        outputs = OPS[op].call(leaves, backend="triton")
        alone.append([*outputs, *torch.autograd.grad(outputs, leaves, [one[number] for one in upstream])])
    return _verdict(mine, [torch.stack(parts) for parts in zip(*alone, strict=True)])


def _verdict(mine: Any, true: Any) -> str:
    """ok, or how far apart the two are."""
    worst = max(error(one.detach(), other.detach().double()) for one, other in zip(mine, true, strict=True))
    return "ok" if worst <= SAME else f"differs by {worst:.1e}"


FEATURES = {"graph": check_graph, "compile": check_compile, "vmap": check_vmap}
