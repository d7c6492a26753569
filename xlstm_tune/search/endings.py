"""What a search says when it ends: who won, what lies where, and how it goes on."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from rich.console import Console

from xlstm_tune.errors import StorageError
from xlstm_tune.layout import CHAMPION, PAGE
from xlstm_tune.predict.champion import read_about
from xlstm_tune.report.leaderboard import Leaderboard, print_front, print_leaderboard
from xlstm_tune.results import read
from xlstm_tune.search.finals.refit import asked_for_refit
from xlstm_tune.search.plan import Plan
from xlstm_tune.search.sampling.duplicates import never_begun
from xlstm_tune.search.stopping import CUTS, DISK_FAILED, DISK_FULL
from xlstm_tune.tracking import python_command


def ended_by_themselves(rows: Iterable[Mapping[str, Any]]) -> int:
    """Trained configurations of these rows of the trials table that the search's own end did not cut short."""
    return sum(
        row["status"] != "duplicate" and row["reason"] not in CUTS and not never_begun(row["reason"]) for row in rows
    )


def print_board(plan: Plan, board: Leaderboard, console: Console, reported: bool) -> None:
    """The leaderboard, and the Pareto front where several things are weighed. reported: a page holds all of it."""
    print_leaderboard(board, console, plan.best_possible, reported)
    if plan.spec.search.costs and board.winner:
        print_front(read(plan.folder, "trials").to_pylist(), plan.spec.search.goals, console)


def what_there_is(plan: Plan, board: Leaderboard, reported: bool) -> Iterator[str]:
    """Where the report and the champion are, and whether they are of an earlier part of the search, which was
    interrupted since. reported: the page is of all of it."""
    storage = shlex.quote(str(plan.folder.parent))
    page, champion = plan.folder / PAGE, plan.folder / CHAMPION
    if reported:
        yield f"Report: {page}"
    elif page.exists():
        anew = f"{python_command()} -m xlstm_tune.report {plan.spec.name} --storage {storage}"
        yield f"The report is of before; with the trials since then: {anew}"
    if not champion.is_dir():
        return
    whose = "the winner"
    with suppress(StorageError):  # a damaged one is told where it is used
        trial = read_about(champion).get("trial")
        if board.winner is None or trial != board.winner.trial:
            whose = f"trial {trial}, the winner of before"
    yield f"Forecast with {whose}: {python_command()} -m xlstm_tune.predict {plan.spec.name} TABLE --storage {storage}"


def resume_words(plan: Plan, why: str, detail: str = "") -> str:
    """Why the search stopped, and the command that goes on with it. detail: what was said of a disk that failed."""
    storage = shlex.quote(plan.storage or str(plan.folder.parent))
    command = f"{python_command()} -m xlstm_tune.search --resume {plan.spec.name} --storage {storage}"
    command += f" --address {shlex.quote(plan.address)}" if plan.address else ""
    command += " --refit" if plan.refit and not asked_for_refit(plan.folder) else ""  # else the folder says so
    if why == DISK_FULL:
        return f"Stopped: the disk of {plan.folder} is full. Nothing is lost; make room, then go on with: {command}"
    if why == DISK_FAILED:
        return f"Stopped: a disk failed ({detail}). What was saved is safe; mend it, then go on with: {command}"
    return f"Stopped early ({why}); go on with: {command}"
