"""Tiles of LANES samples for Numba kernels: how a kernel is compiled, shared among threads, and fed batch-first rows.

Legend: W = LANES samples side by side, D features. A tile is a flat array [D, W]: one vector a feature.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numba import config, njit
from torch import Tensor

from xlstm_tune.errors import BackendUnavailable
from xlstm_tune.kernels.simd import CONTRACT, LANES, transpose
from xlstm_tune.kernels.stale import forget_stale

f32 = np.float32
_pool: ThreadPoolExecutor | None = None
_own_threads: int | None = None


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, without holding the interpreter's lock, and keep the machine code on disk.

    Raises BackendUnavailable where Numba is told to compile nothing.
    """
    if config.DISABLE_JIT:
        raise BackendUnavailable(
            "the environment variable NUMBA_DISABLE_JIT is set, so that Numba would compile no kernel; unset it"
        )
    try:
        compiled: Callable[..., Any] = njit(nogil=True, fastmath=CONTRACT, cache=True)(function)
    except RuntimeError:  # no folder can be written: compiled anew in each process
        return cast(Callable[..., Any], njit(nogil=True, fastmath=CONTRACT)(function))
    _seen_to(compiled._cache.cache_path)  # type: ignore[attr-defined]
    return compiled


@cache
def _seen_to(place: str) -> None:
    """Stale code in Numba's folder is removed, once in a process."""
    forget_stale(Path(place))


def run(compiled: Callable[..., Any], tasks: int, *arguments: Any) -> None:
    """compiled(first, end, *arguments) for all tasks, split evenly among as many threads as kernels have."""
    if not tasks:
        return
    threads = min(_own_threads or torch.get_num_threads(), tasks)
    cuts = [tasks * number // threads for number in range(threads + 1)]
    # The first call compiles: one thread only, since compiling takes a lock.
    if threads == 1 or not compiled.signatures:  # type: ignore[attr-defined]
        compiled(0, tasks, *arguments)
        return
    others = [_threads().submit(compiled, *cuts[at : at + 2], *arguments) for at in range(1, threads)]
    compiled(*cuts[:2], *arguments)
    for other in others:
        other.result()


def kernel_threads() -> int | None:
    """How many threads kernels have; None: as many as torch has at the time."""
    return _own_threads


def set_kernel_threads(count: int | None) -> None:
    """As `kernel_threads` tells it from then on, for the whole process."""
    global _own_threads
    _own_threads = count


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max_workers=max(1, os.cpu_count() or 1), thread_name_prefix="kernel")
    return _pool


def _forget_pool() -> None:
    """The threads do not exist in a forked child."""
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)


def tiles_of(batch: int) -> int:
    """Tiles that hold a batch; the last one may be partly empty."""
    return -(-batch // LANES)


def flat(tensor: Tensor) -> Any:
    """A contiguous tensor's numbers as a flat numpy array that shares its memory."""
    return tensor.detach().view(-1).numpy()


@njit(forceinline=True)
def floats(size):
    """An uninitialised flat array that begins on a cache line: a vector that crosses one costs twice as much."""
    memory = np.empty(size + LANES, np.float32)
    skip = -(memory.ctypes.data // 4) % LANES
    return memory[skip : skip + size]


@njit
def own(array, number, size):
    """What belongs to a sample or a member in a flat array: `size` numbers each."""
    return array[number * size : (number + 1) * size]


@njit(forceinline=True)
def gather(rows, offset, stride, count, width, tile):
    """Rows [count samples, width] at a stride in a flat array → tile [width, W]; empty lanes repeat the last sample."""
    whole = width - width % LANES if count == LANES else 0
    for start in range(0, whole, LANES):
        transpose(rows, offset + start, stride, tile, start * LANES, LANES)
    for feature in range(whole, width):
        for lane in range(LANES):
            tile[feature * LANES + lane] = rows[offset + min(lane, count - 1) * stride + feature]


@njit(forceinline=True)
def scatter(tile, width, count, rows, offset, stride):
    """Tile [width, W] → rows [count samples, width] at a stride in a flat array."""
    whole = width - width % LANES if count == LANES else 0
    for start in range(0, whole, LANES):
        transpose(tile, start * LANES, LANES, rows, offset + start, stride)
    for lane in range(count):
        for feature in range(whole, width):
            rows[offset + lane * stride + feature] = tile[feature * LANES + lane]
