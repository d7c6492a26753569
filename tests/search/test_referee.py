"""Early stopping of configurations that share a Ray trial: the same decisions as for trials of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import TrialScheduler

from xlstm_tune.search.folder import STOPPED, trial_folder
from xlstm_tune.search.fused_scheduler import FusedScheduler
from xlstm_tune.search.schedulers import make_scheduler
from xlstm_tune.spec import SearchConfig

STOP = TrialScheduler.STOP
EPOCHS = 10


@dataclass(frozen=True)
class Trial:
    """What schedulers look at of a Ray trial."""

    trial_id: str
    config: dict[str, Any] = field(compare=False)


def group(trial_id: str, numbers: list[int]) -> Trial:
    return Trial(trial_id, {"trials": [{"number": number} for number in numbers]})


def row(number: int, epoch: int, value: float, **changes: Any) -> dict[str, Any]:
    return {"number": number, "epoch": epoch, "best_val_rmse": value, "val_rmse": value, "done": False} | changes


def make(name: str) -> TrialScheduler:
    return make_scheduler(SearchConfig.parse({"scheduler": name, "grace_epochs": 2, "reduction_factor": 2}), EPOCHS)


@pytest.mark.parametrize("name", ["asha", "median"])
def test_decisions_are_those_of_separate_trials(name: str, tmp_path: Path) -> None:
    scores = np.random.default_rng(0).random((6, EPOCHS)).cumsum(axis=1)[:, ::-1]
    apart, alive, stopped_apart = make(name), set(range(6)), {}
    for number in alive:
        apart.on_trial_add(None, Trial(str(number), {}))
    for epoch in range(1, EPOCHS):
        for number in sorted(alive):
            one = Trial(str(number), {})
            result = row(number, epoch, scores[number, epoch - 1])
            if apart.on_trial_result(None, one, result) == STOP:
                apart.on_trial_complete(None, one, result)
                stopped_apart[number] = epoch
                alive.remove(number)

    together = FusedScheduler(make(name), tmp_path)
    for number in range(6):
        trial_folder(tmp_path, number).mkdir(parents=True)
    trial, running, stopped = group("t", list(range(6))), set(range(6)), {}
    together.on_trial_add(None, trial)
    for epoch in range(1, EPOCHS):
        rows = [row(number, epoch, scores[number, epoch - 1]) for number in sorted(running)]
        assert together.on_trial_result(None, trial, {"rows": rows}) == TrialScheduler.CONTINUE
        for one in rows:
            if one["done"]:
                stopped[one["number"]] = epoch
        running = {n for n in running if not (trial_folder(tmp_path, n) / STOPPED).exists()}
    assert stopped == stopped_apart and stopped
    assert running == set(range(6)) - set(stopped), "the trial reads from the folders what it has to leave out"


def test_a_trial_stops_with_its_last_configuration(tmp_path: Path) -> None:
    scheduler = FusedScheduler(make("asha"), tmp_path)
    good, bad = group("good", [0, 1]), group("bad", [2])
    for number in (0, 1, 2):
        trial_folder(tmp_path, number).mkdir(parents=True)
    for trial in (good, bad):
        scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, good, {"rows": [row(0, 2, 1.0), row(1, 2, 1.1)]}) != STOP
    result = {"rows": [row(2, 2, 9.0)]}
    assert scheduler.on_trial_result(None, bad, result) == STOP and result["rows"][0]["done"]
    scheduler.on_trial_complete(None, bad, result)


def test_failures_leave_no_mark_in_the_rungs_and_a_second_try_is_the_same_trial(tmp_path: Path) -> None:
    scheduler = FusedScheduler(make("asha"), tmp_path)
    trial = group("t", [0, 1])
    scheduler.on_trial_add(None, trial)
    failed = row(1, 1, math.nan, done=True)
    assert scheduler.on_trial_result(None, trial, {"rows": [row(0, 2, 1.0), failed]}) != STOP
    scheduler.on_trial_error(None, trial)
    again = group("again", [0])
    scheduler.on_trial_add(None, again)
    # Alone in its rung before and now: it would be stopped if it were compared with its own first try.
    assert scheduler.on_trial_result(None, again, {"rows": [row(0, 2, 1.5)]}) != STOP
    scheduler.on_trial_complete(None, again, {"rows": [row(0, 3, 1.5, done=True)]})
    assert "nan" not in scheduler.debug_string()
