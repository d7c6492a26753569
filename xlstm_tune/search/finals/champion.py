"""What a search hands over: its winner as a folder that predicts, and as a version of a registered model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console

from xlstm_tune.data.words import count
from xlstm_tune.errors import UserError
from xlstm_tune.layout import ABOUT, CHAMPION
from xlstm_tune.predict.champion import read_about
from xlstm_tune.predict.make import find_winner, make_champion
from xlstm_tune.report.leaderboard import number
from xlstm_tune.search.finals.finalists import Judge
from xlstm_tune.search.finals.refit import refit_of_before, refit_remotely, refit_tried
from xlstm_tune.search.placement.resources import Placement
from xlstm_tune.search.plan import Plan
from xlstm_tune.search.variables import switch
from xlstm_tune.tracking import Spool

REGISTER = "XLSTM_TUNE_REGISTER"
"""Environment variable: `off` leaves the winner out of MLflow's model registry; its folder is made all the same."""


def wanted() -> bool:
    """Whether the environment leaves the registered model on. Raises SpecError for a wrong value."""
    return switch(REGISTER)


def keep_champion(
    plan: Plan, judge: Judge, ray: AbstractContextManager[Placement], spool: Spool, console: Console
) -> bool:
    """The winner as a folder that predicts, trained again if that is wanted, and as a version of a registered model.

    ray: entered where something is trained. Returns whether something was, or was to be.
    """
    again = False
    try:
        before = refit_of_before(plan) if plan.refit else None
        made = make_champion(plan.folder, plan.spec, plan.table, plan.data, before)
        if made is not None and plan.refit:
            if again := before is None:
                made = _refit(plan, judge, ray, spool, console, made)
            else:
                console.print(
                    "The winner stays as it is, since it has been trained again on training and validation part "
                    f"already, for {count(before.epochs, 'epoch')}: its test rmse is {number(before.test['rmse'])}.",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )
            refit_tried(plan.folder)
    except UserError as error:  # all else of the search stands
        stands = (
            "the champion stays that of before" if (plan.folder / CHAMPION / ABOUT).exists() else "there is no champion"
        )
        console.print(f"note: {stands}: {error}", highlight=False, markup=False, soft_wrap=True)
        return again
    if made is not None and wanted():
        spool.model(made, plan.spec.name)
    return again


def _refit(
    plan: Plan,
    judge: Judge,
    ray: AbstractContextManager[Placement],
    spool: Spool,
    console: Console,
    former: Path,
) -> Path | None:
    """The champion made anew of the winner that has been trained again; as it was, with a note, where that failed.

    former: the folder of the champion as it was searched.
    """
    about = read_about(former)
    before = float(about.get("member_scores", about["scores"])["test"]["rmse"])  # of the one that is trained again
    winner = find_winner(plan.folder, plan.spec.search.objective)
    assert winner is not None
    with ray as placement, console.status("training the winner again on training and validation part"):
        refit = refit_remotely(plan, winner, placement, judge.truth("test"))
    if isinstance(refit, str):
        console.print(
            f"note: the winner stays as it was searched: training it again on both parts failed ({refit})",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return make_champion(plan.folder, plan.spec, plan.table, plan.data, note=refit)
    spool.metrics({f"refit_test_{name}": value for name, value in refit.test.items()})
    console.print(
        f"Trained again on training and validation part for {count(refit.epochs, 'epoch')}, the winner has a test rmse "
        f"of {number(refit.test['rmse'])}. {_against(before, refit.test['rmse'], former)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return make_champion(plan.folder, plan.spec, plan.table, plan.data, refit)


def _against(before: float, after: float, champion: Path) -> str:
    """The winner trained again beside the winner as it was searched, and the way back to that."""
    if after <= before:
        return f"As it was searched it has {number(before)}."
    by = f" by {100 * (after / before - 1):.2g} %" if before else ""
    return (
        f"That is worse{by} than the {number(before)} that it has as it was "
        "searched. It is the champion all the same, because it has learnt from more data; that one training differs "
        "a little from the next is expected, but many percent say that training again does harm here. For the former "
        f"one remove {champion}: the next python -m xlstm_tune.predict makes it anew of its weights, which are kept. "
        "If MLflow has a version of it, give that the alias 'champion'."
    )
