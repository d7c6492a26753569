"""One side of scale.py: a driver's own objects, told of simulated trials in the order in which Ray Tune tells them.

    python benchmarks/scale_driver.py SIDE TRIALS SLOTS WINDOW FOLDER

Prints JSON. Started by scale.py, once for each side, so that its memory is one side's alone.

The clock is simulated: an epoch ends when its slot has had it for its seconds, and the driver handles one event after
the other. What it takes for each (processor time, and the time that it waits in fsync) passes on the clock too.

WINDOW: the sampler proposes this many trials before each of the moments at which figures are taken, and what they cost
is what is told; the trials between are drawn at random through the same objects, since 10,000 suggestions of a sampler
that is not thinned would take too long. 0 = the sampler proposes all.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from optuna.samplers import RandomSampler
from scale_space import EPOCHS, SPACE, curve, define_by_run, pace, worker_result

MOMENTS = (100, 1_000, 3_000, 10_000)
"""Ended trials at which figures are taken."""
EPOCH_SECONDS = 60.0
"""Mean of the simulated epochs."""


class Ours:
    """The searcher, the referee with its scheduler, and the driver's callback, with all that they write."""

    def __init__(
        self, trials: int, folder: Path, epochs: int = EPOCHS, scheduler: str = "asha", resume: bool = False
    ) -> None:
        from xlstm_tune.results import ResultsWriter
        from xlstm_tune.search.driver import Driver
        from xlstm_tune.search.persistence.folder import trial_folder
        from xlstm_tune.search.persistence.journal import Journal
        from xlstm_tune.search.persistence.store import Shared
        from xlstm_tune.search.progress import Progress
        from xlstm_tune.search.sampling.searcher import OptunaSearcher
        from xlstm_tune.search.sampling.space import Space
        from xlstm_tune.search.scheduling.losses import Losses
        from xlstm_tune.search.scheduling.referee import Referee
        from xlstm_tune.search.scheduling.schedulers import make_scheduler
        from xlstm_tune.search.stopping import Stopping
        from xlstm_tune.spec import SearchSpec
        from xlstm_tune.tracking import Spool

        raw = {
            "name": "scale",
            "data": {"source": "x.csv", "target": "y", "lookback": 10},
            "search": {"algorithm": "tpe", "scheduler": scheduler, "trials": trials, "seed": 1},
            "space": SPACE,
            "model": {"heads": 4},
            "training": {"epochs": epochs},
        }
        spec = SearchSpec.parse(raw)
        self.folder, self._trial_folder = folder, trial_folder
        self.results, self._spool, journal = ResultsWriter(folder), Spool(folder, "sqlite:///nowhere"), Journal(folder)
        progress, store = Progress(trials, spec.search.objective, None), Shared(folder)
        self.driver = Driver(spec, store, self.results, self._spool, progress)
        if resume:
            self.driver.recall(journal.history)
        self.losses = Losses(folder)
        judge = make_scheduler(spec.search, spec.max_epochs())
        self.referee = Referee(judge, store, journal, Stopping(lambda words: None))
        self.searcher = OptunaSearcher(
            spec, Space.from_spec(spec), folder, journal, resume=resume, on_end=self.driver.on_end
        )
        self.study = self.searcher.study
        self._trials: dict[str, _Trial] = {}
        self._last: dict[str, dict[str, Any]] = {}

    def suggest(self, trial_id: str) -> Mapping[str, Any] | None:
        """The next trial's point; None when there is no more."""
        config = self.searcher.suggest(trial_id)
        if not isinstance(config, dict):
            return None
        self._trials[trial_id] = _Trial(trial_id, config)
        params: Mapping[str, Any] = config["trials"][0]["params"]
        return params

    def prepare(self, trial_id: str) -> None:
        """What the worker does on its own time: the trial's folder."""
        number = self._trials[trial_id].config["trials"][0]["number"]
        self._trial_folder(self.folder, number).mkdir(parents=True, exist_ok=True)

    def start(self, trial_id: str) -> None:
        """A worker took the trial."""
        self.driver.on_trial_start(0, [], self._trials[trial_id])

    def report(self, trial_id: str, epoch: int) -> float:
        """What the worker does: a result, with rows as SearchTrial makes them. Returns the best error so far."""
        trial = self._trials[trial_id].config["trials"][0]
        best = self._last[trial_id]["best_val_rmse"] if trial_id in self._last else math.inf
        self._last[trial_id] = worker_result(trial, epoch, EPOCHS, best) | {"trial_id": trial_id}
        return float(self._last[trial_id]["best_val_rmse"])

    def result(self, trial_id: str) -> bool:
        """An epoch has ended: stopper, scheduler, searcher, callbacks. True when the trial stops."""
        from ray.tune.utils.util import flatten_dict

        trial = self._trials[trial_id]
        result = self._last[trial_id]
        stop = self.referee(trial_id, result) or result["done"]
        flat = flatten_dict(result)
        if not stop:
            self.losses.on_trial_result(None, trial, flat)
            self.searcher.on_trial_result(trial_id, flat)
        self.driver.on_trial_result(0, [], trial, result)
        self.referee.stop_all()
        return bool(stop)

    def complete(self, trial_id: str) -> None:
        """The trial stops with its last result."""
        from ray.tune.utils.util import flatten_dict

        trial, result = self._trials.pop(trial_id), self._last.pop(trial_id)
        self.losses.on_trial_complete(None, trial, result)
        self.searcher.on_trial_complete(trial_id, result=flatten_dict(result))
        self.driver.on_trial_complete(0, [], trial)

    def close(self) -> None:
        """The search has ended."""
        self.searcher.close("time budget")
        self.driver.close()
        self.results.close()
        self._spool.close()


@dataclass(frozen=True)
class _Trial:
    """What Tune's callbacks and schedulers look at of a Ray trial."""

    trial_id: str
    config: dict[str, Any] = field(compare=False)


class Stock:
    """Ray's OptunaSearch with ASHA, their defaults, nothing written anywhere."""

    def __init__(self, trials: int, folder: Path) -> None:
        import optuna
        from ray.tune.schedulers import AsyncHyperBandScheduler
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._left = trials
        self._search = OptunaSearch(define_by_run, metric="best", mode="min", seed=1)
        self.study = self._search._ot_study
        self._asha = AsyncHyperBandScheduler(
            time_attr="epoch", metric="best", mode="min", max_t=EPOCHS, grace_period=1, reduction_factor=3
        )
        self._trials: dict[str, _Trial] = {}
        self._last: dict[str, dict[str, Any]] = {}

    def suggest(self, trial_id: str) -> Mapping[str, Any] | None:
        """The next trial's point; None when there is no more."""
        if not self._left:
            return None
        self._left -= 1
        params: dict[str, Any] = self._search.suggest(trial_id)
        self._trials[trial_id] = _Trial(trial_id, params)
        self._asha.on_trial_add(None, self._trials[trial_id])
        return params

    def prepare(self, trial_id: str) -> None:
        """Nothing."""

    def start(self, trial_id: str) -> None:
        """Nothing."""

    def report(self, trial_id: str, epoch: int) -> float:
        """A worker's result."""
        value = curve(self._trials[trial_id].config, epoch)
        best = min(value, self._last.get(trial_id, {}).get("best", math.inf))
        self._last[trial_id] = {"epoch": epoch, "best": best, "done": epoch == EPOCHS, "training_iteration": epoch}
        return best

    def result(self, trial_id: str) -> bool:
        """An epoch has ended."""
        from ray.tune.utils.util import flatten_dict

        flat = flatten_dict(self._last[trial_id])
        if flat["done"]:
            return True
        if self._asha.on_trial_result(None, self._trials[trial_id], flat) == "STOP":
            return True
        self._search.on_trial_result(trial_id, flat)
        return False

    def complete(self, trial_id: str) -> None:
        """The trial stops with its last result."""
        trial, result = self._trials.pop(trial_id), self._last.pop(trial_id)
        self._asha.on_trial_complete(None, trial, result)
        self._search.on_trial_complete(trial_id, result=result)

    def close(self) -> None:
        """Nothing."""


SIDES: dict[str, type[Ours] | type[Stock]] = {"xlstm_tune": Ours, "stock": Stock}


@dataclass
class Moment:
    """Figures when so many trials had ended. Times are processor seconds of the driver's process."""

    trials: int
    results: int
    cpu: float
    """Since the start, the simulation's own work left out."""
    waited: float
    """In fsync."""
    rss_mib: float
    suggest_p50_ms: float
    """Of the sampler's latest suggestions: WINDOW, or a hundred, or a tenth of all where that is more."""
    suggest_p99_ms: float
    result_ms: float
    """Mean of the latest results."""
    rest_ms: float
    """What else a trial costs: its start and its end; mean of the latest."""
    best: float


@dataclass
class Report:
    """What one side did."""

    side: str
    began_rss_mib: float
    moments: list[Moment]
    epochs: list[int]
    """Of each trial, in the order of their starts."""
    paces: list[float]
    """Of each trial: seconds of an epoch by the mean of all."""
    trial_costs: list[float]
    """Seconds of the driver's for each trial: suggestion, start and end."""
    result_cost: float
    """Mean seconds for one result."""
    resume_seconds: float | None
    """Processor seconds in which another driver has taken the ended search up; None where nothing remains of it."""


class Clock:
    """What the driver's calls take: processor seconds, and seconds that it waits for the disk."""

    def __init__(self) -> None:
        self.cpu = self.waited = 0.0
        real = os.fsync

        def fsync(descriptor: int) -> None:
            wall, cpu = time.perf_counter(), time.process_time()
            real(descriptor)
            self.waited += max(0.0, time.perf_counter() - wall - (time.process_time() - cpu))

        os.fsync = fsync  # the same for whoever calls it; only the waiting is noted

    def call(self, function: Any, *arguments: Any) -> tuple[Any, float]:
        """What a call returns, and its seconds."""
        waited, began = self.waited, time.process_time()
        value = function(*arguments)
        cpu = time.process_time() - began
        self.cpu += cpu
        return value, cpu + self.waited - waited


def drive(
    side: Ours | Stock, trials: int, slots: int, window: int
) -> tuple[list[Moment], list[int], list[float], list[float], float]:
    """Run all trials on the simulated clock."""
    clock, now, ended, results, given, best = Clock(), 0.0, 0, 0, 0, math.inf
    events: list[tuple[float, int, str]] = []  # when which epoch of which trial ends
    suggestions: list[float] = []
    result_costs: list[float] = []
    rest: list[float] = []
    epochs: list[int] = []
    paces: list[float] = []
    costs: list[float] = []
    moments: list[Moment] = []
    sampler, anything = side.study.sampler, RandomSampler(seed=20261)
    proposes = [range(0, 100)] + [range(moment - window, moment) for moment in MOMENTS if window]

    def give() -> bool:
        """Give a free slot its next trial."""
        nonlocal now, given
        trial_id = f"t{given}"
        asked = not window or any(given in part for part in proposes)
        side.study.sampler = sampler if asked else anything
        params, cost = clock.call(side.suggest, trial_id)
        now += cost
        if params is None:
            return False
        given += 1
        if asked:
            suggestions.append(cost)
        side.prepare(trial_id)
        _, begun = clock.call(side.start, trial_id)
        now += begun
        epochs.append(0)
        rest.append(begun)
        paces.append(pace(params))
        costs.append(cost + begun)
        heapq.heappush(events, (now + EPOCH_SECONDS * paces[-1], 1, trial_id))
        return True

    for _ in range(slots):
        give()
    while events:
        when, epoch, trial_id = heapq.heappop(events)
        index, now = int(trial_id[1:]), max(now, when)
        best = min(best, side.report(trial_id, epoch))
        stop, cost = clock.call(side.result, trial_id)
        now += cost
        results += 1
        result_costs.append(cost)
        epochs[index] = epoch
        if not stop:
            heapq.heappush(events, (now + EPOCH_SECONDS * paces[index], epoch + 1, trial_id))
            continue
        _, cost = clock.call(side.complete, trial_id)
        now += cost
        costs[index] += cost
        rest[index] += cost
        ended += 1
        if ended in MOMENTS or ended == trials:
            last = max(100, ended // 10)
            latest = 1000 * np.array(suggestions[-(window or last) :])
            moment = Moment(
                ended,
                results,
                clock.cpu,
                clock.waited,
                rss_mib(),
                float(np.percentile(latest, 50)),
                float(np.percentile(latest, 99)),
                1000 * float(np.mean(result_costs[-last:])),
                1000 * float(np.mean(rest[-last - slots : -slots] or rest)),
                best,
            )
            moments.append(moment)
            print(json.dumps(asdict(moment)), file=sys.stderr, flush=True)
        give()
    return moments, epochs, paces, costs, float(np.mean(result_costs))


def resume(trials: int, folder: Path) -> float:
    """Processor seconds until a search with one trial more is taken up again and has begun that one."""
    began = time.process_time()
    driven = Ours(trials + 1, folder, resume=True)
    if driven.suggest("again") is None:
        raise RuntimeError("the search that was taken up again gives out no trial")
    driven.start("again")
    seconds = time.process_time() - began
    driven.close()
    return seconds


def rss_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    side, trials, slots, window, folder = sys.argv[1:]
    from xlstm_tune.search.libraries import quiet, set_environment

    set_environment()
    quiet()
    driven = SIDES[side](int(trials), Path(folder))
    began = rss_mib()
    found = drive(driven, int(trials), int(slots), int(window))
    driven.close()
    again = resume(int(trials), Path(folder)) if isinstance(driven, Ours) else None
    print(json.dumps(asdict(Report(side, began, *found, again))))


if __name__ == "__main__":
    main()
