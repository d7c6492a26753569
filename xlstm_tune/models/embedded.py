"""An embedding that is not written out, for a first layer that can do with less than its width.

Legend: B batch, T steps, F features of a token, E width of the residual stream, K = F + 1 made a multiple of LANES.

A norm of an affine map of F features spans F + 1 dimensions: with e = W x + b, norm(e) = G (x, 1) / s(x), where G is
W and b side by side less the mean over E, times the norm's weight, and s² the mean square of what G was before that
weight. A projection U norm(e) is then (U G) (x, 1) / s, which for one feature and E = 64 is a product of a quarter of
the size, and the norm itself takes no pass over B T E numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm_tune.kernels.around import NORM_EPSILON
from xlstm_tune.kernels.simd import LANES
from xlstm_tune.models.block import Norm
from xlstm_tune.models.steps import last_steps


class Narrow(NamedTuple):
    """rows [B, T, K] times basisᵀ [K, E], not multiplied out."""

    rows: Tensor
    basis: Tensor


class Embedded(NamedTuple):
    """tokens [B, T, F] times weightᵀ [F, E] plus bias [E], not multiplied out."""

    tokens: Tensor
    weight: Tensor
    bias: Tensor

    def dense(self) -> Tensor:
        """[B, T, E]."""
        return F.linear(*self)

    def last(self, lengths: Tensor | None) -> Tensor:
        """Each sample's last real step, [B, 1, E]."""
        return F.linear(last_steps(self.tokens, lengths), self.weight, self.bias)

    def narrows(self) -> bool:
        """Whether `normalised` spares the first layer work: on a CPU, in the dtype that the tokens have."""
        width, features = self.weight.shape
        at_home = self.tokens.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        return at_home and self.tokens.element_size() >= 4 and 2 * _padded(features + 1) <= width

    def normalised(self, norm: nn.Module) -> Narrow:
        """`norm` of `dense()`; norm: a `Norm`, or the identity."""
        rows = F.pad(self.tokens, (0, 1), value=1.0)
        basis = torch.cat([self.weight, self.bias.unsqueeze(1)], 1)
        if isinstance(norm, Norm):
            basis = basis if norm.rms else basis - basis.mean(0)
            # In float64, since the terms of a small sum of squares may be large.
            wide, exact = rows.double(), basis.double()
            square = (wide @ (exact.t() @ exact / len(basis)) * wide).sum(-1, keepdim=True)
            rows = rows * torch.rsqrt(square + NORM_EPSILON).to(rows.dtype)
            basis = basis * (1.0 + norm.weight).unsqueeze(1)
        spare = (0, _padded(rows.shape[2]) - rows.shape[2])
        return Narrow(F.pad(rows, spare), F.pad(basis, spare))


def _padded(features: int) -> int:
    return -(-features // LANES) * LANES
