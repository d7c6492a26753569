"""Configurations of one shape, trained together without being asked for: `search.fuse`.

A grid and a random search know what they will try before the first result. Of the configurations waiting, those that
differ only in what leaves every tensor's shape alone (training/members.py) go to one Ray trial, which trains them in
one pass. To everything else they stay trials of their own: in Optuna, in the tables, in MLflow, for the scheduler, and
when they fail.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from xlstm_tune.search.sampling.space import Params, Space
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.members import SHAPE_PRESERVING, WIDTH_CPU, WIDTH_GPU, width_for

LOOK_AHEAD = 256
"""Points of a random search that are drawn before they are needed."""

Attributes = dict[str, Any]


@dataclass(frozen=True)
class Fusion:
    """How many configurations of one shape share a Ray trial."""

    width: int = 1
    """At most; 1 = none are fused."""
    gpu: bool = False
    slots: int = 1
    """Ray trials that run at a time."""
    lookback: int = 1
    """L of the data."""
    room: Callable[[], int] | None = None
    """Tells the `slots` of this moment, on a cluster whose nodes come and go."""

    def most(self, config: TrialConfig, waiting: int, running: int = 0) -> int:
        """For a configuration like this one, with `waiting` of any (itself included) not started yet.

        running: Ray trials that run. Every free slot gets something to do before any gets more than its share.
        """
        free = max(1, (self.room() if self.room else self.slots) - running)
        return max(1, min(self.width, width_for(config, self.lookback, self.gpu), -(-waiting // free)))


NO_FUSION = Fusion()


def fuses(spec: SearchSpec) -> bool:
    """Whether the search knows its configurations ahead and may train several of them together."""
    search = spec.search
    return search.fuse == "auto" and search.algorithm in ("grid", "random") and spec.population is None


def widest(spec: SearchSpec, space: Space, trials: int, gpu: bool) -> int:
    """The most configurations that can share a Ray trial, memory aside; 1 where none can."""
    if not fuses(spec):
        return 1
    alike = 1
    for domain in space.domains:
        if domain.key in SHAPE_PRESERVING:
            grid = spec.search.algorithm == "grid"
            values = domain.grid_values if grid else domain.values
            alike *= trials if values is None else max(1, len(values))
    return max(1, min(WIDTH_GPU if gpu else WIDTH_CPU, alike, trials))


def shape_of_point(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """What two points must have in common to be trained together."""
    return tuple(sorted((key, value) for key, value in params.items() if key not in SHAPE_PRESERVING))


class Waiting:
    """Points to be tried, first come first served, from which those of one shape can be taken out of turn."""

    def __init__(self) -> None:
        self._points: OrderedDict[int, tuple[Params, Attributes]] = OrderedDict()
        self._alike: defaultdict[tuple[tuple[str, Any], ...], deque[int]] = defaultdict(deque)
        self._next = 0

    def __len__(self) -> int:
        return len(self._points)

    def add(self, points: Iterable[Params], attributes: Attributes | None = None) -> None:
        """Put complete points at the end. attributes: of the Optuna trials that they will be."""
        for point in points:
            self._alike[shape_of_point(point)].append(self._next)
            self._put(point, attributes or {})

    def add_start(self, point: Params, attributes: Attributes) -> None:
        """Put a point at the end that may be partial, and is therefore never taken out of turn."""
        self._put(point, attributes)

    def pop(self) -> tuple[Params, Attributes]:
        """Take the first one out. Raises KeyError when there is none."""
        return self._points.popitem(last=False)[1]

    def take(self, params: Mapping[str, Any]) -> tuple[Params, Attributes] | None:
        """Take out the first complete point of the same shape as `params`; None when there is none."""
        alike = self._alike[shape_of_point(params)]
        while alike:
            point = self._points.pop(alike.popleft(), None)
            if point is not None:
                return point
        return None

    def _put(self, point: Params, attributes: Attributes) -> None:
        self._points[self._next] = (point, attributes)
        self._next += 1
