"""The Pareto front: trials that no other one beats in everything that is weighed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xlstm_tune.ranking import SCORED


def pareto_front(rows: Sequence[Mapping[str, Any]], goals: Sequence[str]) -> list[int]:
    """Trials on the front, by the first goal.

    rows: of the trials table. goals: columns that are to be small, such as val_rmse and parameters. Of trials with the
    same figures the first one is on the front; those that were not scored, or lack a figure, are not.
    """
    known = [row for row in rows if row["status"] in SCORED and all(row[goal] is not None for goal in goals)]
    figures = {row["trial"]: tuple(float(row[goal]) for goal in goals) for row in known}
    front: list[int] = []
    # Sorted, whatever beats a trial stands before it, and something on the front beats it too.
    for number in sorted(figures, key=lambda number: (figures[number], number)):
        if not any(_covers(figures[other], figures[number]) for other in front):
            front.append(number)
    return front


def _covers(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """At least as good in everything."""
    return all(mine <= theirs for mine, theirs in zip(one, other, strict=True))
