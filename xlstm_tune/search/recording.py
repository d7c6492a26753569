"""What is written of a search as a whole: when it begins, its finalists, and how it ended."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from rich.console import Console

from xlstm_tune.data.read import without_credentials
from xlstm_tune.errors import CheckpointError
from xlstm_tune.report.leaderboard import Leaderboard
from xlstm_tune.report.pareto import pareto_front
from xlstm_tune.results import ResultsWriter, read
from xlstm_tune.search.finals.coverage import INTERVAL, interval_rows, quantile_rows, quantile_rows_remotely
from xlstm_tune.search.finals.finalists import (
    TEST,
    Finalist,
    Judge,
    finalists,
    mean_scores,
    predict_here,
    predict_remotely,
)
from xlstm_tune.search.finals.importance import PART, importance_columns, measure, measure_remotely, wanted
from xlstm_tune.search.persistence.folder import ENVIRONMENT, SPEC
from xlstm_tune.search.placement.resources import Placement
from xlstm_tune.search.plan import Plan
from xlstm_tune.search.sampling.population import population_params
from xlstm_tune.search.variables import switch
from xlstm_tune.tracking import Spool, python_command

REPORT = "XLSTM_TUNE_REPORT"
"""Environment variable: `off` leaves the report page to be made later, by `python -m xlstm_tune.report`."""


def report_wanted() -> bool:
    """Whether the environment leaves the report page on. Raises SpecError for a wrong value."""
    return switch(REPORT)


def record_start(plan: Plan, judge: Judge, spool: Spool, results: ResultsWriter) -> None:
    """The parent run, the baselines' scores, and what was known before the first trial."""
    spec, data = plan.spec, plan.data
    params: dict[str, Any] = {
        "task": data.task,
        "targets": ", ".join(data.target_names),
        "lookback": data.lookback,
        "horizon": data.horizon,
        "objective": ", ".join(spec.search.goals),
        "algorithm": spec.search.algorithm,
        "scheduler": spec.search.scheduler,
        "trials": plan.trials,
        "seed": spec.search.seed,
        "data_fingerprint": data.fingerprint,
        "source": ", ".join(map(without_credentials, spec.data.source)),
        **population_params(spec.population),
    } | {f"samples_{part}": len(samples) for part, samples in data.parts.items()}
    spool.search_started(spec.name, params, {"task": data.task}, [plan.folder / SPEC, plan.folder / ENVIRONMENT])
    for baseline in plan.baselines:
        for part, predicted in baseline.predictions.items():
            row = {"name": baseline.name, "part": part, "settings": json.dumps(baseline.settings)}
            results.baselines([row | judge.metrics(part, predicted)])
            _record_predictions(judge, results, None, baseline.name, part, predicted)
    results.flush()


def score_finalists(
    plan: Plan,
    judge: Judge,
    placement: Placement,
    rows: list[dict[str, Any]],
    data: Any,
    results: ResultsWriter,
    spool: Spool,
    console: Console,
) -> Finalist | None:
    """Test figures for the best of each family and block pattern: the one look at the test part.

    rows: of the trials table; `params` as a dict. data: Ray's reference to the data.

    Of a population every seed of the best setting is scored; the predictions kept are those of its best seed. One whose
    weights are gone or damaged is left out with a note. Returns the winner; None where it was not scored.
    """
    members = read(plan.folder, "members").to_pylist()
    chosen = finalists(rows, plan.spec, members)
    if plan.address or placement.gpus:
        scored = predict_remotely(chosen, plan.store, plan.spec, data, placement)
    else:
        scored = predict_here(chosen, plan.folder, plan.spec, plan.data)
    missing, judged = set(), read(plan.folder, "scores")["trial"].to_pylist()
    for one, predicted in scored:
        if isinstance(predicted, CheckpointError):
            missing.add(one.number)
            stands = "keeps the test figures that it had" if one.number in judged else "has no test figures"
            said = f"note: trial {one.number} {stands}: {predicted}; bring it back and resume"
            console.print(said, highlight=False, markup=False, soft_wrap=True)
            continue
        for part in predicted[0]:
            figures = [judge.metrics(part, parts[part]) for parts in predicted]
            metrics = mean_scores(figures) if one.members else figures[0]
            results.scores([{"trial": one.number, "model": one.family, "part": part, **metrics}])
            intervals = one is chosen[0] and part == "validation"
            _record_predictions(judge, results, one.number, one.family, part, predicted[0][part], intervals)
            if part == TEST:
                known = {f"test_{name}": value for name, value in metrics.items() if value is not None}
                spool.metrics({name: value for name, value in known.items() if name != "test_seeds"}, trial=one.number)
                tested = dict(zip(one.members, figures, strict=False))
                for row in members:
                    if row["trial"] == one.number and row["member"] in tested:
                        mine = {f"test_{name}": value for name, value in tested[row["member"]].items()}
                        results.members([row | mine])
    return None if not chosen or chosen[0].number in missing else chosen[0]


def _record_predictions(
    judge: Judge,
    results: ResultsWriter,
    trial: int | None,
    model: str,
    part: str,
    predicted: npt.NDArray[Any],
    intervals: bool = False,
) -> None:
    """What a model predicted of a part, and what it was off by on test where that is not all of it: as for
    `Judge.columns`."""
    results.predictions(judge.columns(trial, model, part, predicted, intervals))
    if part == TEST and (squares := judge.squares(trial, model, predicted)) is not None:
        results.squares(squares)


def record_coverage(
    plan: Plan, placement: Placement, one: Finalist, data: Any, results: ResultsWriter, spool: Spool, console: Console
) -> None:
    """How often the winner's intervals and quantiles held; whatever is wrong with that, the search stands.

    one: the winner. data: as for `score_finalists`.
    """
    try:
        rows = interval_rows(plan.folder, one, plan.table, plan.data)
        if plan.address or placement.gpus:
            rows += quantile_rows_remotely(plan.store, one, plan.spec, data, placement)
        else:
            rows += quantile_rows(plan.folder, one, plan.spec, plan.data, torch.device("cpu"))
    except Exception as error:
        said = f"note: how often intervals held was not told ({type(error).__name__}: {error})"
        console.print(said, highlight=False, markup=False, soft_wrap=True)
        return
    results.coverage(rows)
    spool.metrics({f"test_coverage_{row['level']:g}": row["share"] for row in rows if row["kind"] == INTERVAL})


def record_importance(
    plan: Plan,
    judge: Judge,
    placement: Placement,
    one: Finalist,
    rows: list[dict[str, Any]],
    data: Any,
    results: ResultsWriter,
    console: Console,
) -> None:
    """What each input is worth to the winner; whatever is wrong with that, the search stands.

    one: the winner. rows, data: as for `score_finalists`.
    """
    if not wanted():
        return
    (trained,) = (row["seconds"] or 0.0 for row in rows if row["trial"] == one.number)
    try:
        with console.status("shuffling each input of the winner"):
            if plan.address or placement.gpus:
                found = measure_remotely(plan.store, one, plan.spec, data, placement, trained)
            else:
                found = measure(plan.folder, one, plan.spec, plan.data, trained, torch.device("cpu"))
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    if isinstance(found, str):
        said = f"note: what each input is worth was not told ({found})"
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    else:
        results.importance(importance_columns(one.number, found, judge.labels(PART)))


def record_end(plan: Plan, spool: Spool, board: Leaderboard, interrupted: bool, console: Console) -> bool:
    """The leaderboard, the report and the summary figures on the parent run.

    interrupted: there is no time, or no room, for a report. Returns whether there is one of all that there is.
    """
    spool.table("leaderboard", board.columns())
    if plan.spec.search.costs:
        _record_front(plan, spool)
    pages = write_report(plan, board, console) if not interrupted and report_wanted() else []
    files = [plan.folder / "results", *pages]
    spool.search_ended("interrupted" if interrupted else "completed", board.summary(), files)
    return bool(pages)


def write_report(plan: Plan, board: Leaderboard, console: Console) -> list[Path]:
    """The report page, if it can be made: whatever is wrong with it, the search stands."""
    from xlstm_tune.report.page import write_page

    try:
        with console.status("writing the report"):
            return [write_page(plan.folder, board=board)]
    except Exception as error:
        console.print(
            f"note: the report could not be made ({type(error).__name__}: {error}); the tables are whole, try "
            f"{python_command()} -m xlstm_tune.report {shlex.quote(str(plan.folder))}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return []


def _record_front(plan: Plan, spool: Spool) -> None:
    """The Pareto front, as a table of the parent run and as the tag `pareto_front` of its trials' runs."""
    goals, rows = plan.spec.search.goals, {row["trial"]: row for row in read(plan.folder, "trials").to_pylist()}
    front = pareto_front(list(rows.values()), goals)
    columns = ("trial", "name", *goals)
    spool.table("pareto_front", {name: [rows[number][name] for number in front] for name in columns})
    for number in rows if plan.resume else front:  # one that was on it may have been beaten since
        spool.metrics({}, trial=number, tags={"pareto_front": str(number in front).lower()})
