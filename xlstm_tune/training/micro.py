"""A batch in as many pieces as memory asks for, with the same mathematics.

A loss is a mean over samples, so the gradient of a batch is the sum of its pieces' gradients, each weighted by its
share of the samples. Only rounding differs, and which numbers dropout draws.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_WORDS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",  # as Windows says it
    # On a GPU what lies outside torch's allocator: contexts, kernels being loaded, the libraries' workspaces.
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # its handle is made when it is first used, and a full GPU has no room for it
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
)
"""What a RuntimeError says when there is no memory left."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that there is no memory left, on a GPU or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def fitting(attempt: Callable[[int], T], size: int) -> tuple[T, int]:
    """`attempt(size)` with the first size that fits in memory, and that size: each is half of the one before.

    attempt: takes at most this many samples (or members) at a time; begins anew after it ran out of memory.
    Raises the last error when not even one fits, and at once any other error.
    """
    while True:
        try:
            return attempt(size), size
        except Exception as error:
            if size == 1 or not out_of_memory(error):
                raise
        # Here and not above: the error holds the frames of the failed attempt, and those its tensors.
        size = -(-size // 2)
        give_back()


def give_back() -> None:
    """Let go of what a failed attempt left behind, and of memory that torch keeps for later."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def backward(
    loss_at: Callable[[Tensor, int], Tensor],
    index: Tensor,
    clear: Callable[[], None],
    size: int | None = None,
    weight: float | Tensor = 1.0,
) -> tuple[Tensor, int | None]:
    """The gradients of a batch, in the parameters' `grad`, by pieces of at most `size` samples.

    loss_at: the mean loss over the samples at these positions, which are the batch's piece of this number, [] or one
    for each member of a population, [M]; what is differentiated is their sum, each times its weight.
    index: int64 [B, ...]. clear: takes all gradients away.
    size: None = the whole batch at once. weight: a number, or one for each member, [M].
    Returns the loss of the whole batch, detached and without the weight, and the size that fitted; raises as `fitting`.
    """

    tried = len(index) if size is None else min(size, len(index))
    loss, fitted = fitting(lambda most: in_pieces(loss_at, index, clear, most, weight), tried)
    return loss, size if fitted == tried else fitted


def in_pieces(
    loss_at: Callable[[Tensor, int], Tensor],
    index: Tensor,
    clear: Callable[[], None],
    most: int,
    weight: float | Tensor = 1.0,
) -> Tensor:
    """As `backward`, by pieces of at most `most` samples whether they fit or not; returns the loss alone."""
    clear()  # a failed attempt may have left some
    losses = []
    for number, piece in enumerate(torch.split(index, most)):
        loss = loss_at(piece, number)
        if len(piece) < len(index):
            loss = loss * (len(piece) / len(index))
        weighted = loss if isinstance(weight, float) and weight == 1.0 else loss * weight
        weighted.sum().backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum(dim=0)
