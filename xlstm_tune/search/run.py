"""A checked plan, run: Ray places, Optuna proposes, the folder remembers, MLflow shows."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from xlstm_tune.data.words import count
from xlstm_tune.errors import UserError
from xlstm_tune.report.leaderboard import Leaderboard, best_baseline, build_leaderboard, print_leaderboard
from xlstm_tune.results import ResultsWriter, read
from xlstm_tune.search.finalists import Judge, finalists, mean_scores, score_remotely
from xlstm_tune.search.folder import ENVIRONMENT, SPEC, create_folder
from xlstm_tune.search.fusion import Fusion
from xlstm_tune.search.lock import locked
from xlstm_tune.search.packing import cluster_gpu_mib
from xlstm_tune.search.plan import Plan, fit
from xlstm_tune.search.population import population_params
from xlstm_tune.search.progress import Progress, ProgressView
from xlstm_tune.search.resources import Placement, local_resources, place
from xlstm_tune.tracking import Spool, Writer, hide_credentials, ui_command

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
DRAIN_SECONDS = float(os.environ.get("XLSTM_TUNE_DRAIN_SECONDS", "120"))
"""How long a finished search waits for MLflow to take what is left."""


@dataclass(frozen=True)
class Outcome:
    """What the trials brought."""

    rows: list[dict[str, Any]]
    """Of the trials table; `params` as a dict."""
    data: Any
    """Ray's reference to the data."""
    cut: str | None
    """Why trials were left out: `time budget` or `interrupted`; None when none was."""
    exhausted: str | None
    """Why there was nothing new to try; None when there was."""
    separated: list[str]
    """Why configurations that were trained together were begun again one by one."""


def run(plan: Plan, console: Console) -> int:
    """Run a search to its end and print who won.

    Returns the exit code: 0, 1 when no trial could be scored, 130 when it was interrupted.
    """
    quiet()
    if not plan.resume:
        create_folder(plan.folder, plan.spec, plan.data.fingerprint)
    with locked(plan.folder):
        return _run_alone(plan, console)


def _run_alone(plan: Plan, console: Console) -> int:
    """`run`, while no other process runs this search."""
    if plan.resume and _finished(plan):
        console.print(
            f"Search [bold]{plan.spec.name}[/] is finished: all {plan.trials:,} trials have ended. "
            "Give it more with --trials.",
            highlight=False,
        )
        print_leaderboard(build_leaderboard(plan.folder, plan.spec.search.objective), console, plan.best_possible)
        return 0
    console.print(
        f"{'Resuming' if plan.resume else 'Search'} [bold]{plan.spec.name}[/]: {count(plan.trials, 'trial')} out of "
        f"{plan.size()}. Results: {plan.folder}",
        highlight=False,
    )
    for note in (*plan.data.notes, *plan.space.notes):
        console.print(f"note: {note}", highlight=False, markup=False)
    try:
        board, outcome = _run(plan, console)
    except UserError:
        # What a cluster or a study refuses is known only now; a search that never began leaves no name behind.
        began = (plan.folder / "results").is_dir() and read(plan.folder, "trials").num_rows
        if not plan.resume and not began:
            shutil.rmtree(plan.folder)
        raise
    print_leaderboard(board, console, plan.best_possible)
    if split := sum(bool(row["micro_batch"] or row["members_at_once"]) for row in outcome.rows):
        console.print(
            f"note: {count(split, 'trial')} ran out of memory and went on with fewer members or samples at a time and "
            "the same mathematics (columns members_at_once and micro_batch of the trials).",
            highlight=False,
            markup=False,
        )
    if outcome.separated:
        console.print(
            f"note: {count(len(outcome.separated), 'group')} of configurations trained together failed as a whole, and "
            f"each was trained again by itself (the first: {outcome.separated[0]}).",
            highlight=False,
            markup=False,
        )
    if outcome.exhausted:
        console.print(f"The search ended early: {outcome.exhausted}.", highlight=False, markup=False)
    if outcome.cut:
        storage = shlex.quote(str(plan.folder.parent))
        resume = f"python -m xlstm_tune.search --resume {plan.spec.name} --storage {storage}"
        console.print(f"Stopped early ({outcome.cut}); go on with: {resume}", highlight=False, markup=False)
    address = ui_command(plan.tracking_uri, plan.folder.parent)
    verb = "Open" if address.startswith("http") else "Open the MLflow pages with:"
    console.print(f"\n{verb} {address}", highlight=False, soft_wrap=True, markup=False)
    if outcome.cut == "interrupted":
        return INTERRUPTED
    return 0 if board.winner else 1


def _run(plan: Plan, console: Console) -> tuple[Leaderboard, Outcome]:
    """All trials, the finalists' test scores and the leaderboard, with everything recorded."""
    with Spool(plan.folder, plan.tracking_uri) as spool, tracked(plan, spool, console):
        with ResultsWriter(plan.folder) as results, ray_session(plan) as placement:
            if placement.why:
                console.print(f"note: {placement.why}", highlight=False, markup=False)
            judge = Judge(plan.table, plan.data)
            _record_start(plan, judge, spool, results)
            outcome = _search(plan, placement, spool, results, console)
            _score_finalists(plan, judge, placement, outcome, results, spool)
        board = build_leaderboard(plan.folder, plan.spec.search.objective)
        _record_end(plan, spool, board, outcome)
    return board, outcome


def quiet() -> None:
    """Silence what Ray, Optuna and torch say to developers; set before Ray is imported."""
    defaults = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # per-trial CSV, JSON and TensorBoard files: 77 ms a trial
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        "TUNE_WARN_THRESHOLD_S": "10",
        "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # snapshots of Ray's own state, which nothing here reads
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        # torch's idle OpenMP threads would spin on the processors that a trial's kernels have threads of their own for.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module=r"(ray|optuna)\b.*")
    for name in ("ray", "ray.tune", "ray.train", "optuna"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def tracked(plan: Plan, spool: Spool, console: Console) -> Iterator[None]:
    """MLflow's writer process, from before the search to after its last event."""
    writer = Writer.start(plan.folder, plan.tracking_uri)
    try:
        yield
    except BaseException:
        spool.search_ended("interrupted")
        raise
    finally:
        with console.status("writing the last records to MLflow"):
            unsent = writer.finish(DRAIN_SECONDS)
        if unsent:
            console.print(f"note: {unsent}", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def ray_session(plan: Plan) -> Iterator[Placement]:
    """Ray on this machine, or the cluster at the plan's address. Raises ResourceError when the cluster is too small."""
    import ray

    if plan.address:
        ray.init(address=plan.address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        here = local_resources()
        ray.init(
            address="local",  # not a cluster that happens to run here: that is what --address is for
            num_cpus=int(here["CPU"]),
            num_gpus=int(here["GPU"]),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    _protect_token()
    try:
        yield plan.placement or _place_on_cluster(plan, ray.cluster_resources())
    finally:
        ray.shutdown()


def _place_on_cluster(plan: Plan, available: dict[str, float]) -> Placement:
    where = f"the cluster at {plan.address}"
    placement = place(plan.spec.resources, available, where)
    return fit(placement, plan.spec, plan.space, plan.data, available, cluster_gpu_mib, where)


def _protect_token() -> None:
    """Ray writes the token that lets others submit work readable by everyone; it is the user's alone."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if token.is_file() and token.stat().st_uid == os.getuid():
        token.chmod(0o600)


def _finished(plan: Plan) -> bool:
    """Every trial of an earlier part of this search has ended by itself."""
    return _ended_by_themselves(read(plan.folder, "trials").to_pylist()) >= plan.trials


def _ended_by_themselves(rows: list[dict[str, Any]]) -> int:
    """Configurations of these rows of the trials table that were not cut short by the search's own end."""
    from xlstm_tune.search.driver import CUTS

    return sum(row["status"] != "duplicate" and row["reason"] not in CUTS for row in rows)


def _record_start(plan: Plan, judge: Judge, spool: Spool, results: ResultsWriter) -> None:
    """The parent run, the baselines' scores, and what was known before the first trial."""
    spec, data = plan.spec, plan.data
    params: dict[str, Any] = {
        "task": data.task,
        "targets": ", ".join(data.target_names),
        "lookback": data.lookback,
        "horizon": data.horizon,
        "objective": spec.search.objective,
        "algorithm": spec.search.algorithm,
        "scheduler": spec.search.scheduler,
        "trials": plan.trials,
        "seed": spec.search.seed,
        "data_fingerprint": data.fingerprint,
        "source": hide_credentials(", ".join(spec.data.source)),
        **population_params(spec.population),
    } | {f"samples_{part}": len(samples) for part, samples in data.parts.items()}
    spool.search_started(spec.name, params, {"task": data.task}, [plan.folder / SPEC, plan.folder / ENVIRONMENT])
    for baseline in plan.baselines:
        for part, predicted in baseline.predictions.items():
            row = {"name": baseline.name, "part": part, "settings": json.dumps(baseline.settings)}
            results.baselines([row | judge.metrics(part, predicted)])
            results.predictions(judge.columns(None, baseline.name, part, predicted))
    results.flush()


def _search(plan: Plan, placement: Placement, spool: Spool, results: ResultsWriter, console: Console) -> Outcome:
    """Run all trials."""
    import ray
    from ray import tune

    from xlstm_tune.search.driver import Driver
    from xlstm_tune.search.fused_scheduler import FusedScheduler
    from xlstm_tune.search.schedulers import make_scheduler
    from xlstm_tune.search.searcher import OptunaSearcher
    from xlstm_tune.search.trainable import SearchTrial

    spec = plan.spec
    objective = spec.search.objective
    progress = Progress(plan.trials, objective, best_baseline(plan.folder, objective))
    driver = Driver(spec, plan.folder, results, spool, progress)
    if plan.resume:
        driver.recall()
    fusion = Fusion(placement.width, placement.gpus > 0, placement.concurrent, plan.data.lookback)
    searcher = OptunaSearcher(spec, plan.space, plan.folder, resume=plan.resume, on_end=driver.on_end, fusion=fusion)
    scheduler = make_scheduler(spec.search, spec.max_epochs())
    data = ray.put(plan.data)
    scratch = plan.folder / f"ray-{os.getpid()}"
    trainable = tune.with_resources(
        # A reference inside a list is passed on as it is: the data stay in the object store, once per node.
        tune.with_parameters(SearchTrial, data=[data], spec=spec.model_dump(by_alias=True), folder=str(plan.folder)),
        tune.PlacementGroupFactory([{"CPU": placement.cpus} | ({"GPU": placement.gpus} if placement.gpus else {})]),
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler if fusion.width == 1 else FusedScheduler(scheduler, plan.folder),
            # What fails together is tried again one by one, in Ray trials of its own.
            num_samples=plan.trials * (1 if fusion.width == 1 else 2),
            max_concurrent_trials=placement.concurrent,
            time_budget_s=spec.search.time_budget,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=scratch.name,
            storage_path=str(plan.folder),
            callbacks=[driver],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    with ProgressView(console, progress):
        began, budget = time.monotonic(), spec.search.time_budget
        try:
            tuner.fit()
        finally:
            # Ctrl-C before the budget is used up is an interruption; Ray reports neither.
            spent = isinstance(budget, float) and time.monotonic() - began >= budget
            reason = "time budget" if spent else "interrupted"
            searcher.close(reason)
            driver.close()
            shutil.rmtree(scratch, ignore_errors=True)  # Ray's own notes; the search's record is ours
    rows = list(driver.rows.values())
    left_out = _ended_by_themselves(rows) < plan.trials
    cut = reason if left_out and not searcher.exhausted else None
    exhausted = searcher.exhausted if left_out else None
    return Outcome(rows, data, cut, exhausted, searcher.separated)


def _score_finalists(
    plan: Plan, judge: Judge, placement: Placement, outcome: Outcome, results: ResultsWriter, spool: Spool
) -> None:
    """Test figures for the best of each family: the one look at the test part.

    Of a population every seed of the best setting is scored; the predictions kept are those of its best seed.
    """
    members = read(plan.folder, "members").to_pylist()
    chosen = finalists(outcome.rows, plan.spec, members)
    for one, predicted in score_remotely(chosen, plan.folder, plan.spec, outcome.data, placement):
        for part in predicted[0]:
            figures = [judge.metrics(part, parts[part]) for parts in predicted]
            metrics = mean_scores(figures) if one.members else figures[0]
            results.scores([{"trial": one.number, "model": one.family, "part": part, **metrics}])
            results.predictions(judge.columns(one.number, one.family, part, predicted[0][part]))
            if part == "test":
                known = {f"test_{name}": value for name, value in metrics.items() if value is not None}
                spool.metrics({name: value for name, value in known.items() if name != "test_seeds"}, trial=one.number)
                tested = dict(zip(one.members, figures, strict=False))
                for row in members:
                    if row["trial"] == one.number and row["member"] in tested:
                        mine = {f"test_{name}": value for name, value in tested[row["member"]].items()}
                        results.members([row | mine])


def _record_end(plan: Plan, spool: Spool, board: Leaderboard, outcome: Outcome) -> None:
    """The leaderboard and the summary figures on the parent run."""
    spool.table("leaderboard", board.columns())
    spool.search_ended(
        "interrupted" if outcome.cut == "interrupted" else "completed", board.summary(), [plan.folder / "results"]
    )
