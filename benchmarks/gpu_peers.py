"""Our side and the others' of gpu.py, each as a task: forward without gradients, and forward and backward. Here the
LSTM and sLSTM; mLSTM's are in gpu_mlstm_peers.py, a whole stack's in gpu_stack.py.

All get the same gates, recurrent weights and bias, each in the layout that its kernel takes without a copy, and the
same gradient of h. Where a side computes the same function from the same inputs, its first steps have to agree with
our reference's; otherwise it is refused. Members of a population are more heads of one call.

* FlashRNN (the package flashrnn): `flashrnn(Wx, R, b, config=...)`, states from zero. Gates i, f, z, o; all states over
  time come out, h first. Backends triton_fused (heads a power of two), cuda_fused and cuda (compiled for each shape by
  nvcc), vanilla and vanilla_fwbw (torch).
* xlstm: its sLSTM cell with backend vanilla, a loop of torch's functions.
* cuDNN: torch.nn.LSTM of heads × width units. It has one full recurrent matrix instead of a head's blocks, and its
  inputs' products are part of the time, so it does more. Members are one module after another.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from gpu_cases import OURS, PEERS, VMAPPED, Case, Refused
from torch import Tensor, nn

from xlstm_tune.kernels import lstm, slstm

SEED = 0
SAME_STEPS = 16
"""Steps whose h is held against the reference."""
SAME = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""That it may differ, as a share of the largest h: others keep their states in 16 bits."""
OURS_BY_OP: dict[str, Callable[..., Any]] = {"lstm": lstm, "slstm": slstm}


class Task(Protocol):
    """A case as one side runs it."""

    def forward(self) -> Tensor:
        """h."""

    def both(self) -> tuple[Tensor, ...]:
        """Gradients of gates, weights and bias."""

    def agreement(self) -> dict[str, Any]:
        """{"differs": share} of the first steps' h from the reference, {} where the function is another."""


def draw(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Gates [N, B, T, 4, D], recurrent [N, 4, D out, D in], bias [N, 4, D]: the same for every side."""
    heads, width, dtype = case.heads * case.members, case.width, getattr(torch, case.dtype)
    generator = torch.Generator(device).manual_seed(SEED)
    options: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
    gates = torch.randn(heads, case.batch, case.steps, 4, width, **options)
    recurrent = torch.randn(heads, 4, width, width, **options) / width**0.5
    return gates, recurrent, torch.randn(heads, 4, width, **options)


def differs(case: Case, h: Tensor, gates: Tensor, recurrent: Tensor, bias: Tensor) -> dict[str, Any]:
    """How far h [B, T, N, D] is from the reference in the first steps; Refused where it is something else."""
    few = min(SAME_STEPS, case.steps)
    inputs = gates[:, :, :few].permute(1, 2, 0, 3, 4).float()
    with torch.no_grad():
        true = OURS_BY_OP[case.op](inputs, recurrent.float(), bias.float(), backend="reference")[0]
    share = ((h[:, :few].float() - true).abs().max() / true.abs().max()).item()
    if not share <= SAME[case.dtype]:
        raise Refused(f"its h differs from the reference by {share:.1e} of the largest: not the same function")
    return {"differs": share}


class Ours:
    """xlstm_tune's op with backend triton, gates head first as the model's own gate projection leaves them."""

    def __init__(self, case: Case, device: torch.device, backend: str = "triton"):
        self.case = case
        self.op, self.backend = OURS_BY_OP[case.op], backend
        self.inputs = [tensor.requires_grad_() for tensor in draw(case, device)]
        shape = (case.batch, case.steps, case.heads * case.members, case.width)
        self.upstream = torch.randn(shape, device=device, dtype=self.inputs[0].dtype)

    def h(self) -> Tensor:
        gates, recurrent, bias = self.inputs
        h: Tensor = self.op(gates.permute(1, 2, 0, 3, 4), recurrent, bias, backend=self.backend)[0]
        return h

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.h()

    def both(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.h(), self.inputs, self.upstream)

    def agreement(self) -> dict[str, Any]:
        return differs(self.case, self.forward(), *self.inputs)


class Vmapped(Ours):
    """The same with members by torch.func.vmap over the op: gates [M, N, B, T, 4, D]."""

    def h(self) -> Tensor:
        gates, recurrent, bias = (one.unflatten(0, (self.case.members, self.case.heads)) for one in self.inputs)

        def member(gates: Tensor, recurrent: Tensor, bias: Tensor) -> Tensor:
            h: Tensor = self.op(gates.permute(1, 2, 0, 3, 4), recurrent, bias, backend=self.backend)[0]
            return h

        return torch.vmap(member, out_dims=2)(gates, recurrent, bias).flatten(2, 3)


LAYOUTS = {
    "triton_fused": ("BTGHD", "GHDP", "GHD", "TSBHD"),
    "vanilla_fwbw": ("BTGHD", "GHDP", "GHD", "TSBHD"),
    "vanilla": ("TBGHD", "HPGD", "GHD", "TBSHD"),
    "cuda": ("TBHGD", "HPGD", "HGD", "STBHD"),
    "cuda_fused": ("TBHDG", "HDGP", "HDG", "STBHD"),
}
"""FlashRNN's backend → axes of Wx, R, b and the states that it takes and gives without a copy, in its letters: B, T, H
heads, G gates, D units out, P units in, S states."""


class FlashRNN:
    """FlashRNN with one of its backends."""

    def __init__(self, case: Case, device: torch.device, backend: str):
        from flashrnn import FlashRNNConfig, flashrnn

        inputs, recurrent, bias, outputs = LAYOUTS[backend]
        kinds = {f"dtype_{one}": case.dtype for one in "wrb"}
        self.case, self.call = case, flashrnn
        self.config = FlashRNNConfig(
            num_heads=case.heads * case.members, head_dim=case.width, batch_size=case.batch, function=case.op,
            backend=backend, dtype=case.dtype, input_shape=inputs, recurrent_shape=recurrent, bias_shape=bias,
            output_shape=outputs, **kinds,
        )  # fmt: skip
        self.drawn = draw(case, device)
        self.inputs = [
            _axes(tensor, axes, wanted).contiguous().requires_grad_()
            for tensor, axes, wanted in zip(
                self.drawn, ("HBTGD", "HGDP", "HGD"), (inputs, recurrent, bias), strict=True
            )
        ]
        count = {"lstm": 2, "slstm": 4}[case.op]
        sizes = {"S": count, "T": 1, "B": case.batch, "H": case.heads * case.members, "D": case.width}
        self.start = self.inputs[0].new_zeros([sizes[letter] for letter in outputs])
        self.to_h = (outputs.index("S"), outputs.replace("S", ""))
        states = self._states(no_grad=True)
        self.upstream = torch.zeros_like(states, memory_format=torch.contiguous_format)
        self.upstream.select(self.to_h[0], 0).normal_()

    def _states(self, no_grad: bool) -> Tensor:
        with torch.set_grad_enabled(not no_grad):
            states: Tensor = self.call(*self.inputs, states=self.start, config=self.config)[0]
        return states

    def forward(self) -> Tensor:
        return self._states(no_grad=True)

    def both(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self._states(no_grad=False), self.inputs, self.upstream)

    def agreement(self) -> dict[str, Any]:
        h = _axes(self.forward().select(self.to_h[0], 0), self.to_h[1], "BTHD")
        return differs(self.case, h, *self.drawn)


class XLSTM:
    """xlstm's sLSTM cell with backend vanilla."""

    def __init__(self, case: Case, device: torch.device):
        from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig

        heads = case.heads * case.members
        config = sLSTMCellConfig(
            hidden_size=heads * case.width, num_heads=heads, backend="vanilla", batch_size=case.batch,
            enable_automatic_mixed_precision=False, dtype=case.dtype, dtype_b=case.dtype, dtype_r=case.dtype,
            input_shape="SBGNH", output_shape="SBNH",
        )  # fmt: skip
        self.case = case
        self.cell = sLSTMCell(config).to(device)
        self.drawn = draw(case, device)
        gates, recurrent, bias = self.drawn
        with torch.no_grad():
            self.cell._recurrent_kernel_.copy_(recurrent.flatten(1, 2))
            self.cell._bias_.copy_(bias.transpose(0, 1).flatten())
        self.x = _axes(gates, "HBTGD", "TBGHD").flatten(2).requires_grad_()
        shape = (case.steps, case.batch, heads, case.width)
        self.upstream = torch.randn(shape, device=device, dtype=self.x.dtype)

    def forward(self) -> Tensor:
        with torch.no_grad():
            h: Tensor = self.cell(self.x)[0]
        return h

    def both(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.cell(self.x)[0], [self.x, *self.cell.parameters()], self.upstream)

    def agreement(self) -> dict[str, Any]:
        return differs(self.case, self.forward().transpose(0, 1), *self.drawn)


class CuDNN:
    """torch.nn.LSTM, one a member."""

    def __init__(self, case: Case, device: torch.device):
        units, dtype = case.heads * case.width, getattr(torch, case.dtype)
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.bodies = [nn.LSTM(units, units, **options) for _ in range(case.members)]
        shape = (case.members, case.steps, case.batch, units)
        self.x = torch.randn(shape, **options).requires_grad_()
        self.upstream = torch.randn(shape[1:], **options)

    def forward(self) -> Tensor:
        with torch.no_grad():
            return torch.stack([body(x)[0] for body, x in zip(self.bodies, self.x, strict=True)])

    def both(self) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        for body, x in zip(self.bodies, self.x, strict=True):
            found += torch.autograd.grad(body(x)[0], [x, *body.parameters()], self.upstream)
        return tuple(found)

    def agreement(self) -> dict[str, Any]:
        return {}


def _axes(tensor: Tensor, axes: str, wanted: str) -> Tensor:
    """The tensor with its axes in another order, both in letters."""
    return tensor.permute([axes.index(letter) for letter in wanted])


def expect(side: str, device: torch.device) -> None:
    """Raise Refused with the reason where it is known that a peer cannot run anything here."""
    (peer,) = (one for one in PEERS if one.name == side)
    missing = [name for name in peer.packages if find_spec(name) is None]
    if missing:
        raise Refused(f"not installed: {', '.join(missing)}; `make gpu-packages` brings it")
    if not peer.compiled or device.type != "cuda":
        return
    from torch.utils.cpp_extension import CUDA_HOME

    nvcc = CUDA_HOME is not None and (Path(CUDA_HOME) / "bin" / "nvcc").exists()
    found = {"nvcc": nvcc, "ninja": shutil.which("ninja") is not None, "g++": shutil.which("g++") is not None}
    missing = [name for name, there in found.items() if not there]
    if missing:
        raise Refused(f"it is compiled on the spot, which needs {', '.join(missing)}, not found here")


def build(side: str, case: Case, device: torch.device) -> Task:
    """The task of a side. Raises Refused with the reason where it is known that it cannot run."""
    if not side.startswith(OURS):
        expect(side, device)
    if case.op == "mlstm":
        from gpu_mlstm_peers import build_mlstm

        return build_mlstm(side, case, device)
    if case.op == "ms":
        from gpu_stack import build_stack

        return build_stack(side, case, device)
    if side == OURS:
        return Ours(case, device)
    if side == VMAPPED:
        return Vmapped(case, device)
    package, _, backend = side.partition(" ")
    if package == "FlashRNN":
        return FlashRNN(case, device, backend)
    return XLSTM(case, device) if package == "xlstm" else CuDNN(case, device)
