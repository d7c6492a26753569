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
from xlstm_tune.kernels.embedding_numba import embedding_fits, embedding_numba
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

    def narrows(self) -> bool:
        """Whether `normalised` spares the first layer work: on a CPU, in the dtype that the tokens have."""
        width, features = self.weight.shape
        at_home = self.tokens.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        return at_home and self.tokens.element_size() >= 4 and 2 * _padded(features + 1) <= width

    def normalised(self, norm: nn.Module, lengths: Tensor | None, last: bool) -> tuple[Narrow, Tensor]:
        """`norm` of `dense()`, and `dense()` itself, [B, T, E], or if `last` each sample's last real step, [B, 1, E].

        norm: a `Norm`, or the identity.
        """
        basis = torch.cat([self.weight.t(), self.bias.unsqueeze(0)])  # [F + 1, E]
        count = _padded(len(basis))
        seen = basis
        if isinstance(norm, Norm):
            seen = (basis if norm.rms else basis - basis.mean(1, keepdim=True)) * (1.0 + norm.weight)
        seen = F.pad(seen, (0, 0, 0, count - len(basis))).t()
        if isinstance(norm, Norm) and embedding_fits(self.tokens, basis):
            kept = 1 if last and lengths is None else self.tokens.shape[1]
            rows, dense = embedding_numba(self.tokens, basis, count, kept, norm.rms)
        else:
            dense, rows = self.dense(), F.pad(self.tokens, (0, 1), value=1.0)
            if isinstance(norm, Norm):
                centred = dense if norm.rms else dense - dense.mean(-1, keepdim=True)
                rows = rows * torch.rsqrt(centred.square().mean(-1, keepdim=True) + NORM_EPSILON)
            rows = F.pad(rows, (0, count - len(basis)))
        return Narrow(rows, seen), last_steps(dense, lengths) if last else dense


def as_torch_made_it(layer: nn.Module) -> bool:
    """Whether a linear layer does what its weights say, so that it need not be called: no hook, as pruning has, no
    parametrisation, and nothing put in its place."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return type(layer) is nn.Linear and not any(hooks)


def _padded(features: int) -> int:
    return -(-features // LANES) * LANES
