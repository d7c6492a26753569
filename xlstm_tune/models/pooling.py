"""What the head sees of the body's states. Legend: B batch, T steps, W width of the states."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xlstm_tune.kernels.masks import at_end, blank_padding, padding


class Pooling(nn.Module):
    """States [B, T, W] to one vector [B, `width`] a sample; steps beyond a sample's length count for nothing.

    kind: `last`, the state at the end of the running direction; `mean` over steps; `attention`, their mean by the
    softmax of a learnt linear score, which starts as the plain mean; `flatten`, all of them side by side.
    direction: of the body. `reverse` ends at step 0. `both` ends twice: where the directions' states stand side by side
    (`halves`), each half gives its own end; where they were added, the two ends are averaged.
    """

    def __init__(self, kind: str, states: int, steps: int, direction: str = "forward", halves: bool = False):
        """states: W. steps: T, which `flatten` needs to be always the same."""
        super().__init__()
        self.kind, self.direction, self.halves, self.steps = kind, direction, halves, steps
        self.width = states * steps if kind == "flatten" else states
        self.score = nn.Parameter(torch.zeros(states)) if kind == "attention" else None

    def forward(self, states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """lengths: int64 [B] in 1..T, real steps of each sample; None = all. Raises ValueError where `flatten` gets
        other steps than it was made for, or lengths."""
        match self.kind:
            case "last":
                return self._last(states, lengths)
            case "mean":
                if lengths is None:
                    return states.mean(1)
                return blank_padding(states, lengths).sum(1) / lengths.unsqueeze(1)
            case "attention":
                assert self.score is not None
                scores = (states @ self.score).unsqueeze(2)  # [B, T, 1]
                if lengths is not None:
                    beyond = padding(lengths, states.shape[1]).unsqueeze(2)
                    scores, states = scores.masked_fill(beyond, -torch.inf), states.masked_fill(beyond, 0.0)
                return (scores.softmax(1) * states).sum(1)
            case _:
                if lengths is not None or states.shape[1] != self.steps:
                    got = "lengths" if lengths is not None else f"{states.shape[1]} steps"
                    raise ValueError(f"pooling 'flatten' wants {self.steps} steps of every sample, got {got}")
                return states.flatten(1)

    def _last(self, states: Tensor, lengths: Tensor | None) -> Tensor:
        first = states[:, 0]
        if self.direction == "reverse":
            return first
        last = states[:, -1] if lengths is None else at_end(states, lengths)
        if self.direction == "forward":
            return last
        if self.halves:
            return torch.cat([last.chunk(2, -1)[0], first.chunk(2, -1)[1]], -1)
        return (last + first) / 2
