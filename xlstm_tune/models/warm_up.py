"""Compiles the kernels for this processor ahead of the first search: `python -m xlstm_tune.models.warm_up`.

Numba compiles a kernel at its first call and keeps the machine code on disk. Without this, the first trials of a fresh
installation do it, each worker process for itself.
"""

from __future__ import annotations

import torch

from xlstm_tune.models.config import FAMILIES, ModelConfig
from xlstm_tune.models.forecaster import Shape, build_model

WIDTH = 16
"""Heads of one whole vector: narrower ones go other ways in places, which every width compiles as well."""


def warm_up() -> None:
    """Train one step of a small model of every family."""
    shape = Shape(features=1, lookback=4, horizon=1, targets=1)
    for family in FAMILIES:
        model = build_model(ModelConfig(family=family, hidden_size=WIDTH, heads=1, layers=1), shape)
        model(torch.randn(2, shape.lookback, shape.features)).sum().backward()


if __name__ == "__main__":
    warm_up()
