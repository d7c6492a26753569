"""Where a dropout's rate and seed come from: its own config and torch's generator, or what a population was given.

Under `torch.func.vmap` one model runs for all members of a population. `draws` gives it each member's rate and seeds,
so that a member drops what it drops alone:

    def loss(weights, x, rate, seeds):
        with draws(rate, seeds):
            return functional_call(model, weights, (x,)).sum()

    vmap(loss)(weights, x, rates, seeds).sum().backward()  # rates [M], seeds [M, count_draws(model)]

Alone, a model takes its seeds from torch's generator on the CPU, one for each dropout in the order of the calls, by
`new_seed`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xlstm_tune.kernels.around import dropout

_HIGHEST = 2**63 - 1


@dataclass
class _Draws:
    """What a population was given, and how much of it has been taken."""

    rate: Tensor
    seeds: Tensor
    taken: int = 0


_enclosing: list[_Draws] = []
"""The `draws` that are entered, the innermost last. One training loop a process: threads share it."""


@contextmanager
def draws(rate: Tensor, seeds: Tensor) -> Iterator[None]:
    """Inside, each dropout in training takes `rate`, whatever its own, and the next of `seeds`.

    rate: 0-d, 0 to 1 without 1; in float64, if a member is to drop exactly what it drops alone. seeds: int64 [calls],
    at least `count_draws` for a forward pass, each from `new_seed`.
    A dropout that finds no seed left raises RuntimeError.
    """
    _enclosing.append(_Draws(rate, seeds))
    try:
        yield
    finally:
        _enclosing.pop()


def draw(rate: float) -> tuple[float | Tensor, int | Tensor]:
    """Rate and seed of a dropout that runs now, whose own rate this is."""
    if not _enclosing:
        return rate, (new_seed() if rate else 0)
    given = _enclosing[-1]
    if given.taken == len(given.seeds):
        raise RuntimeError(
            f"draws: there must be a seed for each dropout that runs, got {len(given.seeds)}; "
            f"give as many as count_draws(model) for each forward pass"
        )
    given.taken += 1
    return given.rate, given.seeds[given.taken - 1]


def new_seed() -> int | Tensor:
    """0 to 2⁶³ - 2, from torch's generator on the CPU; a 0-d tensor where a compiler or a vmap cannot follow an int."""
    seed = torch.randint(_HIGHEST, (), device="cpu")
    if torch.compiler.is_compiling() or torch._C._functorch.is_batchedtensor(seed):
        return seed
    return int(seed)


def new_seeds(count: int, generator: torch.Generator) -> Tensor:
    """int64 [count], the ones that so many calls of `new_seed` would take from this generator on the CPU."""
    return torch.randint(_HIGHEST, (count,), generator=generator)


class Dropout(nn.Dropout):
    """torch's, but for what is drawn: it follows from a seed and a number's place alone, on every device and dtype."""

    def __init__(self, rate: float, backend: str = "auto"):
        super().__init__(rate)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape. Raises RuntimeError inside `draws` without a seed left."""
        return dropout(x, *draw(self.p), self.backend) if self.training else x


def count_draws(model: nn.Module) -> int:
    """How many seeds a forward pass in training takes inside `draws`, and alone with a dropout rate above 0.

    Every `Dropout` of a model runs exactly once a pass. torch's own LSTM draws inside, by itself: it is not counted.
    """
    return sum(isinstance(module, Dropout) for module in model.modules())
