"""A checked plan, run: Ray places, Optuna proposes, the folder remembers, MLflow shows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console

from xlstm_tune.data.words import count
from xlstm_tune.errors import last_line
from xlstm_tune.layout import PAGE
from xlstm_tune.report.leaderboard import Leaderboard, build_leaderboard
from xlstm_tune.results import ResultsWriter, read
from xlstm_tune.search.endings import ended_by_themselves, print_board, resume_words, what_there_is
from xlstm_tune.search.finals.champion import keep_champion
from xlstm_tune.search.finals.finalists import Judge
from xlstm_tune.search.finals.refit import asked_for_refit, wish_for_refit
from xlstm_tune.search.finals.whole import winner_is_whole
from xlstm_tune.search.last_words import last_words
from xlstm_tune.search.libraries import quiet
from xlstm_tune.search.local_ray import check_room
from xlstm_tune.search.persistence.folder import create_folder, disk_stop
from xlstm_tune.search.persistence.journal import Journal, read_journal
from xlstm_tune.search.persistence.lock import locked
from xlstm_tune.search.persistence.mirror import mirrored
from xlstm_tune.search.persistence.resume import keep_spec
from xlstm_tune.search.persistence.store import StorageAway
from xlstm_tune.search.placement.resources import Placement
from xlstm_tune.search.plan import Plan
from xlstm_tune.search.record import SearchRecord
from xlstm_tune.search.recording import (
    record_coverage,
    record_end,
    record_importance,
    record_start,
    report_wanted,
    score_finalists,
    write_report,
)
from xlstm_tune.search.sampling.duplicates import never_begun
from xlstm_tune.search.session import ray_session, tracked
from xlstm_tune.search.stopping import INTERRUPTED, KILLED, STOPS, STORAGE_AWAY, Stopping
from xlstm_tune.tracking import Spool, ended_in_order, ui_command, unsent

if TYPE_CHECKING:
    from xlstm_tune.search.tuning import Outcome


def run(plan: Plan, console: Console) -> int:
    """Run a search to its end and print who won.

    Returns the exit code: 0; 1 when no trial could be scored, or the disk or the storage gave way; after a signal 128
    and its number, such as 130 after Ctrl-C.
    """
    if not plan.resume:
        create_folder(plan.folder, plan.spec, plan.data.fingerprint)
    quiet()
    stopping = Stopping(lambda words: console.print(words, highlight=False, markup=False))
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    with locked(plan.folder), last_words(resume_words(plan, KILLED)) as stopping.told, stopping.watching():
        try:
            with unnamed_if_refused(plan), mirrored(plan.kept, stopping, say), unnamed_if_refused(plan):
                return _run_alone(plan, stopping, console)
        except KeyboardInterrupt:
            say(resume_words(plan, INTERRUPTED))
            return stopping.exit_code
        except OSError as error:
            why = STORAGE_AWAY if isinstance(error, StorageAway) else disk_stop(error)
            if why is None:
                raise
            say(resume_words(plan, why, last_line(error)))
            return 1


@contextmanager
def unnamed_if_refused(plan: Plan) -> Iterator[None]:
    """What a cluster or a study refuses is known only inside; a search that never began leaves no name behind, here or,
    where this is inside of `mirrored`, in its copy. Nor does one that fails before any trial has begun."""
    try:
        yield
    except Exception as error:
        if isinstance(error, StorageAway) or disk_stop(error):
            raise
        if not plan.resume and plan.folder.exists() and not read_journal(plan.folder).trials:
            shutil.rmtree(plan.folder, ignore_errors=True)
        raise


def _run_alone(plan: Plan, stopping: Stopping, console: Console) -> int:
    """`run`, while no other process runs this search."""
    wanted = wish_for_refit(plan.folder, plan.refit)
    if plan.resume:
        keep_spec(plan.folder, plan.spec)
    finished = plan.resume and _finished(plan)
    if not plan.refit and (wanted if finished else asked_for_refit(plan.folder)):
        plan = replace(plan, refit=True)
        whoever = "the winner" if wanted else "a winner that is chosen anew"
        console.print(f"note: {whoever} is trained again at the end, as --refit asked for before", highlight=False)
    if finished:
        more = "Its space holds no other configuration." if plan.exhausted else "Give it more with --trials."
        console.print(
            f"Search [bold]{plan.spec.name}[/] is finished: {_all_have_ended(plan)}. {more}",
            highlight=False,
        )
        board = build_leaderboard(plan.folder, plan.spec.search.objective)
        print_board(plan, board, console, (plan.folder / PAGE).exists())
        if plan.refit and board.winner:
            _refit_later(plan, board, stopping, console)
        else:
            _send_the_rest(plan, stopping, console)
        return 0 if board.winner else 1
    _check_room(plan)
    console.print(
        f"{'Resuming' if plan.resume else 'Search'} [bold]{plan.spec.name}[/]: {count(plan.trials, 'trial')} out of "
        f"{plan.size()}. Results: {plan.folder}",
        highlight=False,
    )
    for note in plan.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    board, outcome, reported = _run(plan, stopping, console)
    print_board(plan, board, console, reported)
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
        words = resume_words(plan, outcome.cut, stopping.detail)
        console.print(words, highlight=False, markup=False, soft_wrap=True)
    for words in what_there_is(plan, board, reported):
        console.print(f"\n{words}", highlight=False, soft_wrap=True, markup=False)
    address = ui_command(plan.tracking_uri, plan.folder.parent)
    verb = "Open" if address.startswith("http") else "Open the MLflow pages with:"
    console.print(f"\n{verb} {address}", highlight=False, soft_wrap=True, markup=False)
    if outcome.cut == INTERRUPTED:
        return stopping.exit_code
    return 0 if board.winner and outcome.cut not in STOPS else 1


def _check_room(plan: Plan) -> None:
    """Raise ResourceError where Ray could not start on this machine; a cluster's has been started."""
    if plan.placement:
        check_room(min(plan.placement.concurrent, plan.trials))


def _all_have_ended(plan: Plan) -> str:
    return f"all {plan.trials:,} trials have ended" if plan.trials > 1 else "its trial has ended"


def _refit_later(plan: Plan, board: Leaderboard, stopping: Stopping, console: Console) -> None:
    """Train the winner of a finished search again, unless that has been done."""
    _check_room(plan)
    with Spool(plan.folder, plan.tracking_uri) as spool, tracked(plan, spool, stopping, console, ended=True):
        ray = _ray(plan, stopping, console)
        again = keep_champion(plan, Judge(plan.table, plan.data), ray, spool, console)
        if again and report_wanted() and (plan.folder / PAGE).exists():  # it tells which model predicts
            for page in write_report(plan, board, console):
                spool.artifact(page)


def _send_the_rest(plan: Plan, stopping: Stopping, console: Console) -> None:
    """What the driver that finished the search could not send to MLflow."""
    with suppress(FileNotFoundError):  # MLflow's part of the folder was removed
        if (left := unsent(plan.folder)) and left.events:
            with Spool(plan.folder, plan.tracking_uri) as spool, tracked(plan, spool, stopping, console, ended=True):
                pass


def _ray(plan: Plan, stopping: Stopping, console: Console) -> AbstractContextManager[Placement]:
    """Ray, without which this process ends."""
    return ray_session(plan, stopping, console, partial(_without_ray, plan, stopping, console))


def _without_ray(plan: Plan, stopping: Stopping, console: Console, why: str) -> None:
    """End this process as one that was killed: nothing can go on, and all that has ended is on record."""
    try:
        console.show_cursor()
        console.print(resume_words(plan, why), highlight=False, markup=False, soft_wrap=True)
        console.file.flush()
        stopping.told()
    finally:  # whether or not there is room for the words
        os._exit(1)


def _run(plan: Plan, stopping: Stopping, console: Console) -> tuple[Leaderboard, Outcome, bool]:
    """All trials, the finalists' test scores and the leaderboard, with everything recorded, and whether a report was
    made."""
    with (
        closing(Journal(plan.folder)) as journal,
        Spool(plan.folder, plan.tracking_uri) as spool,
        tracked(plan, spool, stopping, console),
    ):
        with ResultsWriter(plan.folder) as results, _ray(plan, stopping, console) as placement:
            if placement.why:
                console.print(f"note: {placement.why}", highlight=False, markup=False)
            record = SearchRecord(plan, placement, results)
            record.begin()
            try:
                judge = Judge(plan.table, plan.data)
                record_start(plan, judge, spool, results)
                from xlstm_tune.search.tuning import all_trials  # loads Ray, which is up by now

                outcome = all_trials(plan, placement, journal, spool, results, stopping, console)
                if outcome.cut not in STOPS:  # the one look at the test part is for the end
                    with console.status("testing the best of each family and pattern"):
                        best = score_finalists(
                            plan, judge, placement, outcome.rows, outcome.data, results, spool, console
                        )
                    keep_champion(plan, judge, nullcontext(placement), spool, console)
                    if best is not None:
                        record_coverage(plan, placement, best, outcome.data, results, spool, console)
                        record_importance(plan, judge, placement, best, outcome.rows, outcome.data, results, console)
            except KeyboardInterrupt:
                record.end(INTERRUPTED)
                raise
            except StorageAway:
                record.end(STORAGE_AWAY)
                raise
            record.end(outcome.cut, outcome.exhausted)
        board = build_leaderboard(plan.folder, plan.spec.search.objective)
        reported = record_end(plan, spool, board, outcome.cut in STOPS, console)
    return board, outcome, reported


def _finished(plan: Plan) -> bool:
    """Every trial of an earlier part of this search has ended by itself, of its winner there is all that there can be,
    and the search has ended, which it said last."""
    if not (plan.folder / "results").is_dir() or not ended_in_order(plan.folder):
        return False
    rows = read(plan.folder, "trials").to_pylist()
    began = {row["config"] for row in rows if not never_begun(row["reason"])}
    refused = {row["config"] for row in rows} - began if plan.exhausted else set()
    if ended_by_themselves(rows) + len(refused) < plan.trials:
        return False
    return winner_is_whole(plan.folder, plan.spec.search.objective)
