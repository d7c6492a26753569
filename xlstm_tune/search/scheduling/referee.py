"""The first to see every result: says which epochs are new, which configurations the scheduler ends, and notes both.

Ray asks its stopper before anybody else about each result, so this is one. The scheduler judges each configuration as
if it were a trial of its own, also where several share a Ray trial and after a worker has died. One that is stopped
while others of its Ray trial go on is marked in the search's store, where the trial looks before its next epoch: Ray
knows no way to tell a running trial anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.schedulers import TrialScheduler

from xlstm_tune.search.persistence.folder import disk_stop, trial_folder
from xlstm_tune.search.persistence.journal import Journal
from xlstm_tune.search.persistence.store import Shared
from xlstm_tune.search.stopping import STORAGE_AWAY, Stopping
from xlstm_tune.search.worker_time import compiling


@dataclass(frozen=True)
class _Trial:
    """What Ray's schedulers look at of a trial. Given to another worker, a configuration is still the same trial."""

    trial_id: str


class Referee(tune.Stopper):  # type: ignore[misc]
    """Judges by `scheduler`, one of `schedulers.make_scheduler`. store: of the search's files.

    What the journal holds has been judged already: the scheduler is shown it again, which brings its rungs back, but
    only the journal says which rows ended their configurations.
    """

    def __init__(self, scheduler: TrialScheduler, store: Shared, journal: Journal, stopping: Stopping) -> None:
        self._scheduler, self._store, self._journal, self._stopping = scheduler, store, journal, stopping
        self._known: dict[int, int] = {}
        """The last epoch of each configuration."""
        self._over: set[int] = set()
        self._compiled: dict[str, float] = {}
        """Seconds of compiling kernels in what a Ray trial's worker has repeated; its next row is told them."""
        for row, stopped in journal.history.rows:
            self._show(row)
            if row["done"] or stopped:
                self._end(row)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Judge the rows of a result and leave the new ones in it. True when none of the Ray trial goes on.

        Once the time budget is used up, none does. So all of a trial's epochs have been heard of when it stops, and its
        weights are of one of them; those that Ray stops while they run have trained on.
        """
        if "disk" in result:
            self._stopping.request(*result["disk"])
        if "storage_away" in result:
            self._stopping.request(STORAGE_AWAY)
        rows: list[dict[str, Any]] = result["rows"]
        compiled = self._compiled.pop(trial_id, 0.0) + max(map(compiling, rows), default=0.0)
        new, stopped = [], []
        for row, newest in _newest(rows):
            if row["number"] in self._over or not self._is_new(row):
                continue
            stop = self._judge(row, newest)
            if compiled:
                row["compile_seconds"] = compiled
            try:
                self._journal.epoch(row, stop)
            except OSError as error:
                if (why := disk_stop(error)) is None:
                    raise
                self._stopping.request(why, str(error))
                break
            if stop:
                row["done"] = True
                stopped.append(trial_folder(self._store.folder, row["number"]))
            new.append(row)
        rows[:] = new
        if not new:
            self._compiled[trial_id] = compiled
        over = all(number in self._over for number in result["numbers"])
        if not over:  # else Ray ends it
            self._store.mark(stopped)
        # A worker that repeats what another one was lost with has not come to where its weights are those of a row.
        return over or (bool(new) and self._stopping.out_of_time())

    def stop_all(self) -> bool:
        """Ray asks after every event."""
        return self._stopping.at_once()

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its Tuner, and never needs the copy."""
        return {}

    def _is_new(self, row: Mapping[str, Any]) -> bool:
        return bool(row["status"] == "failed" or row["epoch"] > self._known.get(row["number"], 0))

    def _judge(self, row: Mapping[str, Any], newest: bool) -> bool:
        """Show the scheduler a row; whether it ends the configuration. That only the newest row can: before another
        one, whoever heard of it let the configuration go on.
        """
        stop = self._show(row) and newest
        if row["done"] or stop:
            self._end(row)
        return stop

    def _show(self, row: Mapping[str, Any]) -> bool:
        """Show the scheduler a row; whether it would end the configuration with that."""
        number = row["number"]
        one = _Trial(str(number))
        if number not in self._known:
            self._scheduler.on_trial_add(None, one)
        self._known[number] = row["epoch"]
        if row["done"]:
            return False
        return bool(self._scheduler.on_trial_result(None, one, dict(row)) == TrialScheduler.STOP)

    def _end(self, row: Mapping[str, Any]) -> None:
        """The configuration has ended with this row."""
        self._over.add(row["number"])
        value = row.get(str(self._scheduler.metric))
        if value is not None and math.isfinite(value):
            self._scheduler.on_trial_complete(None, _Trial(str(row["number"])), dict(row))


def _newest(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bool]]:
    """Each row, and whether none of its configuration comes after it."""
    places = {row["number"]: place for place, row in enumerate(rows)}
    for place, row in enumerate(rows):
        yield row, places[row["number"]] == place
