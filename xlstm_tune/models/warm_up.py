"""Compiles the kernels for this processor ahead of the first search: `python -m xlstm_tune.models.warm_up`.

Numba compiles a kernel at its first call and keeps the machine code on disk. Without this, the first trials of a fresh
installation do it, each worker process for itself.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import torch

from xlstm_tune.models.config import FAMILIES, Family, ModelConfig
from xlstm_tune.models.forecaster import Shape, build_model

WIDTH, HEADS, BATCH = 64, 2, 16
"""Whole vectors and tiles, which take the compiled way everywhere."""
STEPS = (16, 8)
"""Enough steps for an mLSTM layer to be one op, and few, at which it runs in parts."""
LONGEST: tuple[Family, ...] = ("mlstm", "slstm")
"""Families that take longest to compile, begun first; xlstm is made of them."""
PROCESSES = 4
"""More would wait for the one that has most to compile."""


def warm_up() -> None:
    """Train one step of small models of every family: a block that runs in full, and a last one."""
    for family, steps in itertools.product(FAMILIES, STEPS):
        _train(family, steps)


def _train(family: Family, steps: int) -> None:
    shape = Shape(features=1, lookback=steps, horizon=1, targets=1)
    model = build_model(ModelConfig(family=family, layers=2, hidden_size=WIDTH, heads=HEADS, dropout=0.1), shape)
    model(torch.randn(BATCH, shape.lookback, shape.features)).sum().backward()


def _warm_up_side_by_side() -> None:
    """As `warm_up`, by as many processes as there are processors; they find on disk what another has compiled."""
    longest_first = itertools.product((*LONGEST, *(one for one in FAMILIES if one not in LONGEST)), STEPS)
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(PROCESSES, os.cpu_count() or 1), mp_context=fresh) as pool:
        list(pool.map(_train, *zip(*longest_first, strict=True)))


if __name__ == "__main__":
    _warm_up_side_by_side()
