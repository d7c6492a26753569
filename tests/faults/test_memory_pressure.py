"""Another program takes the machine's memory: Ray ends a worker, and its trial goes on when there is room again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_search import Search, check_accounted, write_search

from xlstm_tune.search.journal import JOURNAL

pytestmark = pytest.mark.slow
GIB = 2**30
ROOM = 3 * GIB
"""What the search and other tests may take beside the other program until Ray calls the memory full."""


def memory() -> tuple[int, int]:
    """All of the machine's memory and what of it is available, in bytes, as Ray sees it."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    found = {name: int(value) * 1024 for name, value, *_ in lines}
    return found["MemTotal:"], found["MemAvailable:"]


def test_a_worker_that_rays_memory_monitor_ends_is_replaced(tmp_path: Path, undisturbed: Callable[..., Path]) -> None:
    """The other program is this test, which takes memory until a worker has gone."""
    total, available = memory()
    if available < 3 * ROOM:
        pytest.skip(f"needs {3 * ROOM / GIB:.0f} GiB of free memory, there are {available / GIB:.1f}")
    full = (total - available + ROOM) / total
    watching = {"RAY_memory_usage_threshold": f"{full:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    search = Search(tmp_path / "searches", XLSTM_TUNE_CHECKPOINT_SHARE="1000", **watching)
    search.start(str(write_search(tmp_path)))
    search.until(lambda: search.epochs(0) > 1)
    taken: list[bytearray] = []

    def has_ended_a_worker() -> bool:
        """Takes more where other programs have given some back."""
        if "memory ran out" in (search.folder / JOURNAL).read_text():
            return True
        total, available = memory()
        if total - available < full * total + GIB / 4 and available > 2 * GIB:
            taken.append(bytearray(b"\1") * (GIB // 2))
        return False

    search.until(has_ended_a_worker)
    taken.clear()
    search.end()
    check_accounted(search.folder, undisturbed())
    told = [json.loads(line) for line in (search.folder / JOURNAL).read_text().splitlines()]
    died = {event["why"] for event in told if event["e"] == "died"}
    assert "worker killed: the machine's memory ran out" in died
