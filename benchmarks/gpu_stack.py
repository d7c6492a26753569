"""A training step of a whole two-block stack, mLSTM and sLSTM, ours and xlstm's with the same weights: forward, loss,
backward and AdamW (fused), the input without a gradient.

bfloat16 is autocast over float32 weights on both sides, as both packages train; float32 is plain. `forward` is the
stack without gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from gpu_cases import OURS, Case, Refused
from torch import Tensor, nn

PATTERN = "ms"
SAME = 0.02
"""Beyond it, as a share of the largest, an output in float32 is that of another stack: torch's convolutions are in
TensorFloat-32. In 16 bits the difference is told alone, since xlstm keeps sLSTM's states in them."""
COMPARED = 4
"""Samples whose output is compared."""


class Stack:
    """A side's stack with its optimiser."""

    def __init__(self, case: Case, device: torch.device, model: nn.Module, reference: nn.Module):
        """reference: our stack with the same weights, in float32 and plain torch."""
        self.case, self.model, self.reference = case, model.to(device), reference.to(device)
        self.parameters = list(self.model.parameters())
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-3, fused=True)
        generator = torch.Generator(device).manual_seed(0)
        shape = (case.batch, case.steps, case.heads * case.width)
        self.x, self.y = (torch.randn(shape, generator=generator, device=device) for _ in range(2))

    def output(self) -> Tensor:
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.case.dtype == "bfloat16"):
            found: Tensor | tuple[Tensor, Any] = self.model(self.x)
        return found[0] if isinstance(found, tuple) else found

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.output()

    def both(self) -> tuple[Tensor, ...]:
        """A training step; the loss."""
        loss = nn.functional.mse_loss(self.output().float(), self.y)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return (loss.detach(),)

    def agreement(self) -> dict[str, Any]:
        with torch.no_grad():
            true = self.reference(self.x[:COMPARED])[0]
        differs = ((self.forward()[:COMPARED].float() - true).abs().max() / true.abs().max()).item()
        if self.case.dtype == "float32" and not differs <= SAME:
            raise Refused(f"its output differs from the reference by {differs:.1e} of the largest: not the same stack")
        return {"differs": differs}


def build_stack(side: str, case: Case, device: torch.device) -> Stack:
    """The task of a side. Raises Refused with the reason where it is known that it cannot run."""
    from worker import roughen

    try:
        from xlstm_tune.models.config import ModelConfig
        from xlstm_tune.models.official import to_official
        from xlstm_tune.models.stack import XLSTMStack
    except ImportError as error:
        raise Refused(f"xlstm_tune's models cannot be imported: {error}; `make gpu-packages` helps") from None
    torch.manual_seed(0)
    config = ModelConfig(family="xlstm", pattern=PATTERN, hidden_size=case.heads * case.width, heads=case.heads)
    reference, ours = XLSTMStack(config, backend="reference"), XLSTMStack(config)
    roughen(reference)
    ours.load_state_dict(reference.state_dict())
    if side == OURS:
        return Stack(case, device, ours, reference)
    backend = side.rpartition(" ")[2]
    theirs = official_stack(case, backend)
    theirs.load_state_dict(to_official(reference, "cuda" if backend == "cuda" else "vanilla"))
    return Stack(case, device, theirs, reference)


def official_stack(case: Case, backend: str) -> nn.Module:
    """xlstm's stack at its defaults, but for the sizes, sLSTM's backend and its dtype."""
    from xlstm import (
        FeedForwardConfig,
        mLSTMBlockConfig,
        mLSTMLayerConfig,
        sLSTMBlockConfig,
        sLSTMLayerConfig,
        xLSTMBlockStack,
        xLSTMBlockStackConfig,
    )

    layer = sLSTMLayerConfig(backend=backend, num_heads=case.heads, dtype=case.dtype, batch_size=case.batch)
    config = xLSTMBlockStackConfig(
        mlstm_block=mLSTMBlockConfig(mlstm=mLSTMLayerConfig(num_heads=case.heads)),
        slstm_block=sLSTMBlockConfig(slstm=layer, feedforward=FeedForwardConfig()),
        context_length=case.steps,
        num_blocks=len(PATTERN),
        embedding_dim=case.heads * case.width,
        slstm_at=[at for at, block in enumerate(PATTERN) if block == "s"],
    )
    stack: nn.Module = xLSTMBlockStack(config)
    return stack
