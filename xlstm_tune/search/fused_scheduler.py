"""Early stopping of configurations that share a Ray trial: the scheduler judges each, as if it were a trial of its own.

One that is stopped is marked so in the trial's result, where the searcher reads it, and by an empty file in its folder,
where the trial reads it before its next epoch: Ray knows no way to tell a running trial anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from xlstm_tune.search.folder import STOPPED, trial_folder


@dataclass(frozen=True)
class _Trial:
    """What Ray's schedulers look at of a trial. Tried again by itself, a configuration is still the same trial."""

    trial_id: str


class FusedScheduler(FIFOScheduler):  # type: ignore[misc]
    """`inner`, one of `schedulers.make_scheduler`, asked about each configuration. folder: of the search."""

    def __init__(self, inner: TrialScheduler, folder: Path) -> None:
        super().__init__()
        self._inner, self._folder = inner, folder
        self._live: dict[str, dict[int, _Trial]] = {}

    @property
    def metric(self) -> str | None:
        """What `inner` decides by."""
        found: str | None = self._inner.metric
        return found

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Several configurations begin."""
        numbers = [one["number"] for one in trial.config["trials"]]
        self._live[trial.trial_id] = {number: _Trial(str(number)) for number in numbers}
        for one in self._live[trial.trial_id].values():
            self._inner.on_trial_add(tune_controller, one)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """Judge an epoch of each; STOP when none of them goes on."""
        live = self._live[trial.trial_id]
        for row in result["rows"]:
            if row["number"] not in live:
                continue
            if row["done"]:
                self._ended(tune_controller, live, row)
            elif self._inner.on_trial_result(tune_controller, live[row["number"]], row) == TrialScheduler.STOP:
                row["done"] = True
                if len(live) > 1:
                    (trial_folder(self._folder, row["number"]) / STOPPED).touch()
                self._ended(tune_controller, live, row)
        return str(TrialScheduler.CONTINUE if live else TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> None:
        """The Ray trial has ended; the result that ends one by itself comes this way alone."""
        live = self._live.pop(trial.trial_id)
        for row in result["rows"]:
            if row["number"] in live:
                self._ended(tune_controller, live, row)
        self._remove(tune_controller, live)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """A worker died."""
        self.on_trial_remove(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Forget the configurations; those that are tried again are added anew."""
        self._remove(tune_controller, self._live.pop(trial.trial_id, {}))

    def debug_string(self) -> str:
        """What Ray prints of it."""
        return str(self._inner.debug_string())

    def _ended(self, tune_controller: Any, live: dict[int, _Trial], row: Mapping[str, Any]) -> None:
        one = live.pop(row["number"])
        value = row.get(str(self.metric))
        if value is not None and math.isfinite(value):
            self._inner.on_trial_complete(tune_controller, one, row)
        else:
            self._inner.on_trial_remove(tune_controller, one)

    def _remove(self, tune_controller: Any, live: dict[int, _Trial]) -> None:
        for one in live.values():
            self._inner.on_trial_remove(tune_controller, one)
        live.clear()
