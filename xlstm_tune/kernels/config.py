"""What the environment says to the kernels; without Triton, which a machine that plans a search may lack."""

from __future__ import annotations

import os

from xlstm_tune.errors import SpecError

VARIABLE = "XLSTM_TUNE_BACKWARD"
"""The environment variable that forces `store` or `recompute` in `gated_triton`; unset or `auto`: by size."""


def asked() -> str:
    """auto, store or recompute. Raises SpecError for any other value of VARIABLE."""
    way = os.environ.get(VARIABLE) or "auto"
    if way not in ("auto", "store", "recompute"):
        raise SpecError(f"{VARIABLE} must be auto, store or recompute, got {way!r}; give it one of these, or unset it")
    return way
