"""Dropout compiled for one kind of device, as an operator: each member of a vmap has a rate and a seed of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xlstm_tune.kernels.dropout_reference import scalar
from xlstm_tune.kernels.library import Kernel, register

Dropout = Callable[[Tensor, float | Tensor, int | Tensor], Tensor]


def dropout_operator(name: str, dropped: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Dropout:
    """`dropout_reference` by `dropped`, as the operator xlstm_tune::<name>; x has at least one axis.

    dropped: (x, rate, seed) → y as x. x is contiguous and holds one member after the other, rate and seed are [members]
    in float64 and int64, and the places of each member are counted from its own start. The backward pass is the same
    function of the gradient, since it draws the same again: no mask is kept.
    """

    def forward(x: Tensor, rate: Tensor, seed: Tensor, train: bool) -> tuple[Tensor, ...]:
        return (dropped(x, rate, seed),)

    def backward(rate: Tensor, seed: Tensor, grad: Tensor | None) -> tuple[Tensor, ...]:
        assert grad is not None  # nothing but y comes out
        return (dropped(grad.contiguous(), rate, seed),)

    def forward_shapes(x: Tensor, *rest: object) -> tuple[Tensor, ...]:
        return (torch.empty_like(x),)

    def backward_shapes(rate: Tensor, seed: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        return (torch.empty_like(grad, memory_format=torch.contiguous_format),)

    in_layout = register(
        Kernel(
            name=name,
            inputs={"x": 0},
            constants={"rate": 0, "seed": 0},
            outputs={"y": 0},
            saved={},
            needs=("rate", "seed"),
            forward=forward,
            backward=backward,
            forward_shapes=forward_shapes,
            backward_shapes=backward_shapes,
        )
    )

    def call(x: Tensor, rate: float | Tensor, seed: int | Tensor) -> Tensor:
        rates = scalar(rate, torch.float64, x.device).unsqueeze(0)
        seeds = scalar(seed, torch.int64, x.device).unsqueeze(0)
        (y,) = in_layout(x.contiguous(), rates, seeds)
        return y

    return call
