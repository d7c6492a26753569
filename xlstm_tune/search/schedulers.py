"""Which trials are stopped early."""

from __future__ import annotations

import math
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from xlstm_tune.spec import SearchConfig


class _Asha(AsyncHyperBandScheduler):  # type: ignore[misc]
    """ASHA in which a failed trial leaves no NaN in the rungs."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if math.isfinite(result[self.metric]):
            super().on_trial_complete(tune_controller, trial, result)
        else:
            self.on_trial_remove(tune_controller, trial)


def make_scheduler(config: SearchConfig, epochs: int) -> TrialScheduler:
    """The Ray scheduler that `search.scheduler` names.

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
        # Ray would rather pause a trial, checkpoint and all, than let it go on while there is too little to compare
        # with; an infinite time slice keeps it going.
        return MedianStoppingRule(
            time_attr="epoch", metric=metric, mode="min", grace_period=grace, min_time_slice=math.inf
        )
    return _Asha(
        time_attr="epoch",
        metric=metric,
        mode="min",
        max_t=epochs,
        grace_period=grace,
        reduction_factor=config.reduction_factor,
        # A trial ends itself at its last epoch; stopped by the scheduler there, it would look pruned.
        stop_last_trials=False,
    )
