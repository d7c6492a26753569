"""Whose the seconds of workers are: a trial's cost is its share of those for which one had it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class WorkerTime:
    """One configuration's."""

    together: list[int] = field(default_factory=list)
    """The configurations that it was last trained with, itself included; none where no worker was given it."""
    since: float | None = None
    """Until when its seconds are counted, where a worker has it; since 1970."""
    spent: float = 0.0
    """Its share of the seconds for which workers had it, as far as they are counted, without compiling kernels."""


def compiling(row: Mapping[str, Any]) -> float:
    """Seconds of a result that went to compiling kernels, the same in all of its rows."""
    return float(row.get("compile_seconds", 0.0))


def count(times: Mapping[int, WorkerTime], numbers: Iterable[int], until: float, then: float | None) -> None:
    """Count the seconds of those of these that a worker has, shared by all that it still has.

    times: of all; those that have ended may be missing among the companions. then: from when on the next ones count;
    None = nobody has these any more.
    """
    going = [time for number in numbers if (time := times[number]).since is not None]
    for time in going:
        sharing = sum(other in times and times[other].since is not None for other in time.together)
        time.spent += max(0.0, until - (time.since or 0.0)) / sharing
    for time in going:
        time.since = then
