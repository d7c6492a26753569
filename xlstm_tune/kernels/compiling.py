"""What Numba's compiling costs: its seconds, which say nothing of a trial, and whether it is still to come."""

from __future__ import annotations

import time
from pathlib import Path

from numba.core import event

from xlstm_tune.kernels.lstm_numba import _forward as some_kernel

_compiling = event.TimingListener()
event.register("numba:compiler_lock", _compiling)  # held while a kernel is compiled, or its code read from disk


def compile_seconds() -> float:
    """Seconds that this process has spent on getting kernels ready."""
    return _compiling.duration if _compiling.done else 0.0


def clock() -> float:
    """Seconds, as `time.perf_counter`, but the clock stands still while a kernel is made ready."""
    return time.perf_counter() - compile_seconds()


def nothing_compiled() -> bool:
    """Whether this machine keeps no compiled kernel yet, so that the first trials have to wait for theirs."""
    place = getattr(some_kernel._cache, "cache_path", None)  # type: ignore[attr-defined]
    return place is None or not any(Path(place).glob("*.nbi"))
