"""All trials of a search, as Ray Tune runs them: its parts are put together here, and what they brought is told."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from rich.console import Console

from xlstm_tune.data.words import count
from xlstm_tune.errors import last_line
from xlstm_tune.layout import OPTUNA_JOURNAL
from xlstm_tune.report.leaderboard import best_baseline
from xlstm_tune.results import ResultsWriter
from xlstm_tune.search.driver import Driver
from xlstm_tune.search.endings import ended_by_themselves
from xlstm_tune.search.persistence.folder import disk_stop
from xlstm_tune.search.persistence.journal import Journal
from xlstm_tune.search.placement.resources import Placement
from xlstm_tune.search.plan import Plan
from xlstm_tune.search.progress import Progress, ProgressView
from xlstm_tune.search.sampling.fusion import Fusion
from xlstm_tune.search.sampling.goals import Goals
from xlstm_tune.search.sampling.searcher import OptunaSearcher
from xlstm_tune.search.scheduling.losses import COMPILING, FIRST_EPOCH, Losses, Watch, every_loss_told
from xlstm_tune.search.scheduling.referee import Referee
from xlstm_tune.search.scheduling.schedulers import make_scheduler
from xlstm_tune.search.stopping import (
    CUTS,
    DISK_FAILED,
    DISK_FULL,
    INTERRUPTED,
    STORAGE_AWAY,
    TIME_BUDGET,
    Stopping,
)
from xlstm_tune.search.trials.trainable import SearchTrial
from xlstm_tune.tracking import Spool
from xlstm_tune.training.clock import nothing_compiled

ANY = 1_000_000
"""Trials at a time: more than there will ever be."""


@dataclass(frozen=True)
class Outcome:
    """What the trials brought."""

    rows: list[dict[str, Any]]
    """Of the trials table; `params` as a dict."""
    data: Any
    """Ray's reference to the data."""
    cut: str | None
    """Why trials were left out: one of `stopping.CUTS`; None when none was."""
    exhausted: str | None
    """Why there was nothing new to try; None when there was."""
    separated: list[str]
    """Why configurations that were trained together were begun again one by one."""


def all_trials(
    plan: Plan,
    placement: Placement,
    journal: Journal,
    spool: Spool,
    results: ResultsWriter,
    stopping: Stopping,
    console: Console,
) -> Outcome:
    """Run all trials that the plan asks for and that the search's folder does not have yet."""
    spec, store = plan.spec, plan.store
    objective = spec.search.objective
    to_compile = nothing_compiled()
    progress = Progress(plan.trials, objective, best_baseline(plan.folder, objective))
    if not plan.address and not placement.gpus and to_compile:
        progress.waits = "compiling the kernels for this processor, which takes a minute, once"
    driver = Driver(spec, store, results, spool, progress, journal)
    if plan.resume:
        driver.recall(journal.history)
        for left in plan.folder.glob("ray-*"):  # of a driver that was killed
            shutil.rmtree(left, ignore_errors=True)
    timeout = spec.resources.trial_timeout
    # Nobody knows here what the machines of a cluster have compiled.
    first = COMPILING if plan.address or to_compile else FIRST_EPOCH
    watch = Watch(timeout, plan.folder, first) if isinstance(timeout, float) else None
    silent = watch.silent if watch and plan.kept else lambda trial_id: False
    losses = Losses(plan.folder, silent, stopping.out_of_time)
    searcher = OptunaSearcher(
        spec,
        plan.space,
        plan.folder,
        journal,
        resume=plan.resume,
        on_end=driver.on_end,
        fusion=Fusion(placement.width, placement.gpus > 0, placement.concurrent, plan.data.lookback, placement.room),
        why_lost=losses.why,
        goals=Goals(spec.search, plan.data),
        room=placement.room,
        none_begins=stopping.none_begins,
    )
    if searcher.made_up:
        console.print(
            f"note: the study {plan.folder / OPTUNA_JOURNAL} lacked {count(searcher.made_up, 'trial')} that the search "
            "has had; made anew from the search's own journal",
            highlight=False,
            markup=False,
        )
    data = ray.put(plan.data)
    scratch = plan.folder / f"ray-{os.getpid()}"
    tuner = tune.Tuner(
        _trainable(plan, placement, data),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=losses,
            num_samples=-1,  # the searcher says when it has no more
            # Where nodes may come the searcher keeps to the room that there is, and this is no limit.
            max_concurrent_trials=ANY if placement.room else placement.concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=scratch.name,
            storage_path=str(plan.folder),
            stop=Referee(make_scheduler(spec.search, spec.max_epochs()), store, journal, stopping),
            callbacks=[driver, *([watch] if watch else [])],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    with ProgressView(console, progress):
        budget = spec.search.time_budget
        stopping.allow(budget if isinstance(budget, float) else None)
        reason = _until_the_end(tuner, searcher, driver, stopping, scratch)
    rows = list(driver.rows.values())
    left_out = ended_by_themselves(rows) < plan.trials or reason == STORAGE_AWAY
    # A searcher that has nothing more to give says nothing of the trials that were under way.
    unfinished = reason in (STORAGE_AWAY, DISK_FULL, DISK_FAILED) or any(row["reason"] in CUTS for row in rows)
    cut = reason if left_out and (unfinished or not searcher.exhausted) else None
    exhausted = searcher.exhausted if left_out and cut is None else None
    return Outcome(rows, data, cut, exhausted, searcher.separated)


def _trainable(plan: Plan, placement: Placement, data: Any) -> Any:
    """What Ray starts for each trial, and what it may take. data: Ray's reference."""
    return tune.with_resources(
        # A reference inside a list is passed on as it is: the data stay in the object store, once per node.
        tune.with_parameters(SearchTrial, data=[data], spec=plan.spec.model_dump(by_alias=True), store=plan.store),
        tune.PlacementGroupFactory([{"CPU": placement.cpus} | ({"GPU": placement.gpus} if placement.gpus else {})]),
    )


def _until_the_end(
    tuner: tune.Tuner, searcher: OptunaSearcher, driver: Driver, stopping: Stopping, scratch: Path
) -> str:
    """Let Tune run, write down how it ended, and say what would have cut it short.

    scratch: Ray's own notes, which are removed: the search's record is ours.
    """
    try:
        with stopping.searching(), every_loss_told():
            tuner.fit()
    except KeyboardInterrupt:
        pass  # stop at once, and write down what there is
    except (OSError, tune.TuneError) as error:
        if (why := disk_stop(error)) is None:
            raise
        stopping.request(why, last_line(error))
    finally:
        # Before the budget is used up it is an interruption.
        reason = stopping.reason or (TIME_BUDGET if stopping.out_of_time() else INTERRUPTED)
        shutil.rmtree(scratch, ignore_errors=True)
        if reason != DISK_FULL:  # else there is no room to write it down; a resume does
            searcher.close(reason)
            if not driver.close():
                stopping.request(STORAGE_AWAY)
                reason = STORAGE_AWAY
    return reason
