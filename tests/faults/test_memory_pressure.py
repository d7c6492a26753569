"""Another program takes the machine's memory: Ray ends a worker, and its trial goes on when there is room again."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from fault_search import Search, check_accounted, write_search

from xlstm_tune.search.persistence.journal import JOURNAL

pytestmark = pytest.mark.slow
GIB = 2**30
ROOM = 3 * GIB
"""What the search and other tests may take beside the other program until Ray calls the memory full."""
STEP = 256 * 2**20


def memory() -> tuple[int, int]:
    """All of the machine's memory and what of it is available, in bytes, as Ray sees it."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    found = {name: int(value) * 1024 for name, value, *_ in lines}
    return found["MemTotal:"], found["MemAvailable:"]


class OtherProgram:
    """Takes memory and gives it back, so that so much of the machine's is in use, whatever others do."""

    def __init__(self) -> None:
        self._taken: list[bytearray] = []

    def hold(self, level: float) -> None:
        """level: bytes in use, by everybody. A few steps towards it."""
        for _ in range(4):
            total, available = memory()
            missing = level - (total - available)
            if missing > 0 and available > 2 * GIB:
                self._taken.append(bytearray(b"\1") * STEP)
            elif missing < -2 * STEP and self._taken:
                self._taken.pop()

    def end(self) -> None:
        """Give all of it back."""
        self._taken.clear()


def test_a_worker_that_rays_memory_monitor_ends_is_replaced(tmp_path: Path, undisturbed: Callable[..., Path]) -> None:
    """The other program is this test. A trial waits for it, which would have ended before it has so much memory."""
    total, available = memory()
    if available < 3 * ROOM:
        pytest.skip(f"needs {3 * ROOM / GIB:.0f} GiB of free memory, there are {available / GIB:.1f}")
    full = total - available + ROOM
    watching = {"RAY_memory_usage_threshold": f"{full / total:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    search, other = Search(tmp_path / "searches", XLSTM_TUNE_CHECKPOINT_SHARE="1000", **watching), OtherProgram()
    search.start(str(write_search(tmp_path)))

    def is_training() -> bool:
        other.hold(full - 1.5 * GIB)
        return search.epochs(0) > 1

    def has_lost_a_worker() -> bool:
        other.hold(full + GIB / 2)
        return "memory ran out" in (search.folder / JOURNAL).read_text()

    search.until(is_training)
    waiting = search.worker(0)
    os.kill(waiting, signal.SIGSTOP)
    search.until(has_lost_a_worker)
    other.end()
    with suppress(ProcessLookupError):  # it is the one that was lost
        os.kill(waiting, signal.SIGCONT)
    search.end()
    check_accounted(search.folder, undisturbed())
    told = [json.loads(line) for line in (search.folder / JOURNAL).read_text().splitlines()]
    died = {event["why"] for event in told if event["e"] == "died"}
    assert "worker killed: the machine's memory ran out" in died
