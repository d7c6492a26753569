"""Compiles the kernels for this processor ahead of the first search: `python -m xlstm_tune.models.warm_up`.

Numba compiles a kernel at its first call and keeps the machine code on disk. Without this, the first trials of a fresh
installation do it, each worker process for itself.
"""

from __future__ import annotations

import itertools

import torch

from xlstm_tune.models.config import FAMILIES, ModelConfig
from xlstm_tune.models.forecaster import Shape, build_model

WIDTH, HEADS, BATCH = 64, 2, 16
"""Whole vectors and tiles, which take the compiled way everywhere."""
STEPS = (8, 16)
"""Few steps, at which an mLSTM layer runs in parts, and enough for it to be one op."""


def warm_up() -> None:
    """Train one step of small models of every family: a block that runs in full, and a last one."""
    for family, steps in itertools.product(FAMILIES, STEPS):
        shape = Shape(features=1, lookback=steps, horizon=1, targets=1)
        model = build_model(ModelConfig(family=family, layers=2, hidden_size=WIDTH, heads=HEADS, dropout=0.1), shape)
        model(torch.randn(BATCH, shape.lookback, shape.features)).sum().backward()


if __name__ == "__main__":
    warm_up()
