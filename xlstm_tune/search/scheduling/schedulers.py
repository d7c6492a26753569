"""Which trials are stopped early.

ASHA and the median rule decide as Ray's do, but look a trial up among the others instead of going through all of them:
Ray's ASHA makes a list of a whole rung for each trial that reaches it, and its median rule goes through all results of
all trials for each new one, so that a search of 10,000 trials spends its time there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Iterable
from typing import Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from xlstm_tune.spec import SearchConfig

ENOUGH = 3
"""Other trials that the median rule wants before it stops one."""


class _Rule(FIFOScheduler, ABC):  # type: ignore[misc]
    """Judges trials by `metric`, the lower the better, at the epochs at which they are told.

    epochs: at which it may stop one; trials tell every epoch.
    """

    def __init__(self, metric: str, epochs: Iterable[int]) -> None:
        super().__init__()
        self._metric, self.epochs = metric, frozenset(epochs)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on."""
        stop = self._stops(trial.trial_id, int(result["epoch"]), float(result[self._metric]))
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Note the last result of a trial that has ended, unless it has been judged. A failed one tells nothing."""
        if math.isfinite(result[self._metric]):
            self._stops(trial.trial_id, int(result["epoch"]), float(result[self._metric]))

    @abstractmethod
    def _stops(self, trial: str, epoch: int, value: float) -> bool:
        """Note a result; whether it ends its trial. Said again, it changes nothing."""


class Asha(_Rule):
    """Asynchronous successive halving: at each rung a trial stops unless it is among the best 1/`factor` so far.

    Rungs lie at `grace` epochs and `factor` times as far each, up to `epochs`.
    """

    def __init__(self, metric: str, epochs: int, grace: int, factor: float) -> None:
        rungs = int(np.log(epochs / grace) / np.log(factor) + 1)
        self._rungs = [_Rung(grace * factor**index) for index in reversed(range(rungs))]
        super().__init__(metric, (math.ceil(rung.epoch) for rung in self._rungs))
        self._share = (1 - 1 / factor) * 100 / 100  # rounded as where Ray passes it on in per cent

    def _stops(self, trial: str, epoch: int, value: float) -> bool:
        for rung in self._rungs:
            if epoch < rung.epoch:
                continue
            if trial in rung.trials:  # judged there, and at all rungs below
                return False
            cutoff = rung.quantile(self._share)
            rung.add(trial, -value)
            return cutoff is not None and -value < cutoff
        return False


class _Rung:
    """What trials had reached when they came to `epoch`, the higher the better."""

    def __init__(self, epoch: float) -> None:
        self.epoch = epoch
        self.trials: set[str] = set()
        self._values: list[float] = []
        """Rising, those that are numbers."""

    def add(self, trial: str, value: float) -> None:
        """Note a trial's value."""
        self.trials.add(trial)
        if not math.isnan(value):
            insort(self._values, value)

    def quantile(self, share: float) -> float | None:
        """Of the values, as numpy interpolates it, to the last bit; None when there are none."""
        if not self._values:
            return None
        place = share * (len(self._values) - 1)
        low = int(place)
        if low >= len(self._values) - 1:
            return self._values[-1]
        below, above, part = self._values[low], self._values[low + 1], place - low
        step = above - below
        return above - step * (1 - part) if part >= 0.5 else below + step * part


class MedianRule(_Rule):
    """A trial stops when its best is worse than the median of what others had had on average up to the same epoch.

    Averages begin at epoch `grace`, and so does the rule.
    """

    def __init__(self, metric: str, epochs: int, grace: int) -> None:
        super().__init__(metric, range(grace, epochs + 1))
        self._grace = grace
        self._told: dict[str, int] = {}
        """The last epoch of each trial."""
        self._best: dict[str, float] = {}
        self._values: dict[str, list[float]] = {}
        """Of each trial from epoch `grace` on."""
        self._means: dict[int, list[float]] = {}
        """At each epoch the averages of the trials that have come to it, rising, those that are numbers."""

    def _stops(self, trial: str, epoch: int, value: float) -> bool:
        if self._told.get(trial) == epoch:
            return False
        self._told[trial] = epoch
        self._best[trial] = best = min(self._best.get(trial, value), value)
        if epoch < self._grace:
            return False
        values = self._values.setdefault(trial, [])
        values.append(value)
        means = self._means.setdefault(epoch, [])
        enough = len(means) >= ENOUGH
        stop = enough and not best <= _median(means)
        if math.isfinite(mean := float(np.mean(values))):
            insort(means, mean)
        return stop


def _median(rising: list[float]) -> float:
    middle = len(rising) // 2
    return rising[middle] if len(rising) % 2 else (rising[middle - 1] + rising[middle]) / 2


def make_scheduler(config: SearchConfig, epochs: int) -> TrialScheduler:
    """The scheduler that `search.scheduler` names.

    epochs: the most that any trial trains for.
    Trials are compared by their best objective so far (`best_<objective>`), because that is their score: a trial is
    judged by its best epoch, and one noisy epoch at a rung should not end it.
    A grace period longer than the training lets every trial train to its end.
    """
    if config.scheduler == "none":
        return FIFOScheduler()
    # A tenth: ASHA's rungs at 1/10, 3/10 and 9/10 of the training with the default reduction factor of 3, so that
    # two trials in three stop after a tenth of the work, yet past the first epochs, where learning rates warm up.
    grace = min(config.grace_epochs or max(1, epochs // 10), epochs)
    metric = f"best_{config.objective}"
    if config.scheduler == "median":
        return MedianRule(metric, epochs, grace)
    return Asha(metric, epochs, grace, config.reduction_factor)


def rungs(config: SearchConfig, epochs: int) -> frozenset[int]:
    """The epochs at which the scheduler may stop a trial.

    epochs: as for `make_scheduler`.
    """
    scheduler = make_scheduler(config, epochs)
    return scheduler.epochs if isinstance(scheduler, _Rule) else frozenset()
