"""What the control groups of this process allow it: those of a container, and those that Slurm or systemd make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MINE = Path("/proc/self/cgroup")


def memory_limit(root: Path = ROOT, mine: Path = MINE) -> int | None:
    """Bytes; None where nothing is said. root: where control groups are mounted. mine: which of them are this
    process's."""
    limits = []
    for folder in groups("memory", root, mine):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):  # not there, or "max"
                limits.append(int((folder / name).read_text()))
    return min(limits, default=None)


def cpu_limit(root: Path = ROOT, mine: Path = MINE) -> float | None:
    """Processors' worth of time; None where nothing is said. As `memory_limit`."""
    limits = []
    for folder in groups("cpu", root, mine):
        with suppress(OSError, ValueError):  # not there, or "max"
            quota, period = map(int, (folder / "cpu.max").read_text().split())
            limits.append(quota / period)
        with suppress(OSError, ValueError):
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            if quota > 0:  # -1: none
                limits.append(quota / period)
    return min(limits, default=None)


def groups(controller: str, root: Path = ROOT, mine: Path = MINE) -> Iterator[Path]:
    """The folders of this process's groups, outwards; they need not be there. A container that sees its own group alone
    has it at the root."""
    try:
        lines = mine.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in [*lines, "0::/", f"0:{controller}:/"]:
        _, controllers, path = [*line.split(":", 2), "?", "?"][:3]
        if not controllers:  # version 2, which has all of them in one tree
            mounts = [root]
        elif controller in controllers.split(","):
            mounts = [root / controllers, root / controller]
        else:
            continue
        inner = Path(path.lstrip("/"))
        for mount in mounts:
            yield from (mount / folder for folder in (inner, *inner.parents))
