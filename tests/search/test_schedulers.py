"""Early stopping as Ray's schedulers do it with our settings, fed with results by hand."""

from __future__ import annotations

import math
import random
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from xlstm_tune.search.scheduling.schedulers import make_scheduler, rungs
from xlstm_tune.spec import SearchConfig

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


@dataclass(frozen=True)
class Trial:
    """What the schedulers look at of a Ray trial."""

    trial_id: str


class Controller:
    """What the median rule looks at of Ray's controller: trials that wait for a turn."""

    def get_live_trials(self) -> list[Any]:
        @dataclass
        class Waiting:
            status: str = "PENDING"

        return [Waiting()]


def feed(scheduler: TrialScheduler, number: int, scores: list[float]) -> list[str]:
    """The scheduler's decisions over the epochs of one trial; the last epoch ends it, as Ray does."""
    trial, controller = Trial(str(number)), Controller()
    scheduler.on_trial_add(controller, trial)
    decisions = []
    best = math.inf
    for epoch, value in enumerate(scores, start=1):
        best = min(best, value)
        result = {"epoch": epoch, "val_rmse": value, "best_val_rmse": best}
        if epoch == len(scores):
            scheduler.on_trial_complete(controller, trial, result)
            break
        decisions.append(scheduler.on_trial_result(controller, trial, result))
        if decisions[-1] == STOP:
            scheduler.on_trial_complete(controller, trial, result)
            break
    return decisions


def make(name: str, epochs: int = 10, **settings: Any) -> TrialScheduler:
    return make_scheduler(SearchConfig.parse({"scheduler": name, **settings}), epochs)


def test_asha_stops_the_worse_at_the_end_of_the_grace_period() -> None:
    scheduler = make("asha", grace_epochs=2)
    for number in range(3):
        assert STOP not in feed(scheduler, number, [1.0 - number / 10] * 10)
    assert feed(scheduler, 3, [5.0] * 10) == [CONTINUE, STOP]
    assert STOP not in feed(scheduler, 4, [0.1] * 10)


@pytest.mark.parametrize(("epochs", "first"), [(1, 1), (9, 1), (30, 3), (100, 10)])
def test_asha_grace_period_is_a_tenth(epochs: int, first: int) -> None:
    scheduler = make("asha", epochs=epochs)
    for number in range(3):
        feed(scheduler, number, [1.0] * (epochs + 1))
    assert feed(scheduler, 3, [9.0] * (epochs + 1)) == [CONTINUE] * (first - 1) + [STOP]


def test_asha_judges_by_the_best_epoch_so_far() -> None:
    scheduler = make("asha", grace_epochs=3)
    for number in range(3):
        feed(scheduler, number, [1.0] * 10)
    assert STOP not in feed(scheduler, 3, [0.5, 0.5, 9.0] + [0.5] * 7)


def test_asha_leaves_the_last_epoch_to_the_trial() -> None:
    scheduler = make("asha", epochs=3)
    assert feed(scheduler, 0, [1.0, 1.0, 1.0, 1.0]) == [CONTINUE] * 3


def test_asha_takes_no_notice_of_failed_trials() -> None:
    scheduler = make("asha", grace_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feed(scheduler, 0, [math.nan])
        feed(scheduler, 1, [math.nan])
        assert feed(scheduler, 2, [1.0] * 3) == [CONTINUE, CONTINUE]
        assert feed(scheduler, 3, [2.0] * 3) == [STOP]


@pytest.mark.parametrize("factor", [2, 5])
def test_asha_reduction_factor_sets_the_rungs(factor: int) -> None:
    scheduler = make("asha", epochs=20, grace_epochs=1, reduction_factor=factor)
    for number in range(3):
        feed(scheduler, number, [1.0] + [0.1] * 19)
    # Best at the first rung, overtaken by the second, which lies `factor` times as far.
    assert feed(scheduler, 3, [0.9] * 20) == [CONTINUE] * (factor - 1) + [STOP]


def test_median_stops_the_worse_half_and_never_pauses() -> None:
    scheduler = make("median", grace_epochs=2)
    decisions = [feed(scheduler, number, [1.0] * 8) for number in range(3)]
    decisions.append(feed(scheduler, 3, [2.0] * 8))
    assert decisions[3] == [CONTINUE, STOP]
    assert {decision for row in decisions for decision in row} == {CONTINUE, STOP}
    feed(scheduler, 4, [math.nan])  # a failed trial
    assert STOP not in feed(scheduler, 5, [0.5] * 8)


def test_none_stops_nobody() -> None:
    scheduler = make("none")
    assert all(STOP not in feed(scheduler, number, [float(number)] * 5) for number in range(6))


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_grace_period_longer_than_the_training_stops_nobody(name: str) -> None:
    scheduler = make(name, grace_epochs=11)
    assert all(STOP not in feed(scheduler, number, [float(number)] * 10) for number in range(6))


def rays(name: str, epochs: int, grace: int, factor: float) -> TrialScheduler:
    """Ray's own scheduler with the same settings."""
    if name == "median":
        return MedianStoppingRule(
            time_attr="epoch", metric="best_val_rmse", mode="min", grace_period=grace, min_time_slice=math.inf
        )
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        metric="best_val_rmse",
        mode="min",
        max_t=epochs,
        grace_period=grace,
        reduction_factor=factor,
        stop_last_trials=False,
    )


@pytest.mark.parametrize("name", ["asha", "median"])
@pytest.mark.parametrize("seed", range(12))
def test_decisions_are_those_of_rays_scheduler(name: str, seed: int) -> None:
    """Trials side by side, with ties, flat curves and missing values, each told of its epochs in turn."""
    draw = random.Random(seed)
    epochs, factor = draw.choice([1, 9, 10, 27]), draw.choice([2, 3, 4])
    grace = draw.randint(1, epochs)
    ours = make(name, epochs=epochs, grace_epochs=grace, reduction_factor=factor)
    theirs = rays(name, epochs, grace, factor)
    live: dict[int, tuple[int, float]] = {}
    begun, stopped, decided = 0, 0, 0
    while begun < 80 or live:
        if begun < 80 and (not live or draw.random() < 0.3):
            live[begun] = (0, math.nan if draw.random() < 0.05 else 9.0)
            for scheduler in (ours, theirs):
                scheduler.on_trial_add(Controller(), Trial(str(begun)))
            begun += 1
            continue
        number = draw.choice(sorted(live))
        epoch, best = live[number][0] + 1, min(live[number][1], draw.choice([draw.random(), 0.5, 0.75, 9.0]))
        trial, result = Trial(str(number)), {"epoch": epoch, "best_val_rmse": best}
        live[number] = epoch, best
        if epoch == epochs:
            del live[number]
            if math.isfinite(best):  # the referee tells of no others
                for scheduler in (ours, theirs):
                    scheduler.on_trial_complete(Controller(), trial, result)
            continue
        decision, other = (scheduler.on_trial_result(Controller(), trial, result) for scheduler in (ours, theirs))
        assert decision == other, (number, epoch)
        decided += 1
        if decision == STOP:
            stopped += 1
            del live[number]
            if name == "asha":  # Ray's median rule counts a last value twice when it is told of it again
                theirs.on_trial_complete(Controller(), trial, result)
            ours.on_trial_complete(Controller(), trial, result)
    assert epochs == 1 or decided > 80
    assert stopped or grace > epochs // 2


@pytest.mark.parametrize(("grace", "factor", "at"), [(1, 3, {1, 3, 9}), (2, 2, {2, 4, 8}), (5, 3, {5})])
def test_asha_stops_trials_at_its_rungs_alone(grace: int, factor: float, at: set[int]) -> None:
    settings = {"grace_epochs": grace, "reduction_factor": factor}
    assert rungs(SearchConfig.parse({"scheduler": "asha", **settings}), 10) == at
    scheduler, stopped = make("asha", **settings), set()
    scores = random.Random(1)
    for number in range(200):
        decisions = feed(scheduler, number, [scores.random() for _ in range(10)])
        stopped |= {len(decisions)} if decisions[-1] == STOP else set()
    assert stopped == at


def test_the_median_rule_stops_trials_from_its_grace_on_and_none_at_no_epoch() -> None:
    assert rungs(SearchConfig.parse({"scheduler": "median", "grace_epochs": 3}), 5) == {3, 4, 5}
    assert not rungs(SearchConfig.parse({"scheduler": "none"}), 5)
