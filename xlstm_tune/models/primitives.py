"""Sigmoid, tanh and the matrix product from exponential and arithmetic alone: what `lstm_scratch` is built on."""

from __future__ import annotations

import torch
from torch import Tensor

_PRODUCTS = 2**18
"""Products of a matrix product held at a time: 1 MiB in float32, which stays in cache."""


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), elementwise. The exponential only ever sees -|x|, so neither it nor its gradient overflows."""
    positive = x >= 0
    small = torch.exp(torch.where(positive, -x, x))
    return torch.where(positive, 1.0, small) / (1.0 + small)


def tanh(x: Tensor) -> Tensor:
    """(1 - exp(-2x)) / (1 + exp(-2x)), elementwise, with the sign taken outside so that nothing overflows.

    By expm1(x) = exp(x) - 1, which keeps all digits where x is near 0 and exp(x) rounds to 1.
    """
    positive = x >= 0
    less = torch.expm1(torch.where(positive, -2.0 * x, 2.0 * x))  # in (-1, 0]
    size = -less / (2.0 + less)
    return torch.where(positive, size, -size)


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """out[r, c] = Σ_k left[r, k] · right[k, c]: [n, m] times [m, p] gives [n, p].

    Every product of a block of rows is formed by one broadcast multiplication, then summed over k.
    Raises ValueError when either is not a matrix, or the inner sizes differ.
    """
    for name, matrix in (("left", left), ("right", right)):
        if matrix.dim() != 2:
            raise ValueError(f"matmul: {name} must be a matrix [rows, columns], got {list(matrix.shape)}")
    if left.shape[1] != right.shape[0]:
        raise ValueError(
            f"matmul: the columns of left must equal the rows of right, "
            f"got {list(left.shape)} times {list(right.shape)}: {left.shape[1]} is not {right.shape[0]}"
        )
    rows = max(1, _PRODUCTS // max(1, right.numel()))
    # split, whose backward joins the blocks' gradients: that of a slice is as large as the whole for every block.
    return torch.cat([(block.unsqueeze(2) * right.unsqueeze(0)).sum(1) for block in torch.split(left, rows)])
