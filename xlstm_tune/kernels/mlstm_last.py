"""The mLSTM cell's output at the last step alone: one row of the matrix of all pairs, instead of the recurrence.

Legend: B batch, T steps, N heads, D width of keys, V of values. With q of the last step T, F_s the sum of
logsigmoid(f_r) over the steps r after s, and the equations of `mlstm_forms` unrolled from the empty state:

    e_s = i_s + F_s,  m = max e_s                   exponent of step s, and the stabiliser
    p_s = exp(e_s - m) (k_s · q) / √D
    h_T = Σ p_s v_s / (max(|Σ p_s|, exp(-m)) + ε)

Neither C nor n is made, and the work is linear in T.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xlstm_tune.kernels.masks import check_masks, mask_gates
from xlstm_tune.kernels.mlstm_forms import EPSILON, largest_floor
from xlstm_tune.kernels.shapes import expect_shape


def mlstm_last_weights(scores: Tensor, i: Tensor, f: Tensor, lengths: Tensor | None = None) -> Tensor:
    """What the value of each step weighs in the cell's output at the last one, [B, T, N]; h_T = Σ_s weight_s v_s.

    scores: (k_s · q_T) / √D. i, f: the gates before exponential and sigmoid. All [B, T, N], in float32 or float64.
    lengths: integers [B] in 1..T, the real steps of each sample, the last of which is meant; None = T for all. Steps
    behind it weigh nothing. All inputs are differentiable. Raises ValueError for a wrong shape.
    """
    expect_shape(scores, "mlstm_last_weights: scores", B=None, T=None, N=None)
    batch, steps, heads = scores.shape
    expect_shape(i, "mlstm_last_weights: i", B=batch, T=steps, N=heads)
    expect_shape(f, "mlstm_last_weights: f", B=batch, T=steps, N=heads)
    check_masks("mlstm_last_weights", None, lengths, batch, steps)
    if lengths is not None:
        i, f = mask_gates(torch.stack([i, f], -1), 3, None, lengths).unbind(-1)
    later = F.pad(F.logsigmoid(f[:, 1:]), (0, 0, 0, 1))  # from one step to the next, and nothing after the last
    exponent = i + later.flip(1).cumsum(1).flip(1)
    m = exponent.amax(1, keepdim=True)
    product = torch.exp(exponent - m) * scores
    floor = (-m).clamp(max=largest_floor(m.dtype)).exp()
    return product / (torch.maximum(product.sum(1, keepdim=True).abs(), floor) + EPSILON)
