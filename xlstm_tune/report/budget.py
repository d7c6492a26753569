"""The best of each family at an equal budget: families that had more trials had more chances."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_tune.ranking import has_score

Array = NDArray[np.float64]

RESAMPLES = 1000
CUT_SHORT = ("time budget", "interrupted", "disk full", "disk failed", "storage away", "taken over by another driver")
"""Reasons of trials that the end of the search cut short (search/stopping.py): a resume goes on with them, and those
without a figure say nothing of their family."""
NEVER_BEGUN = ("invalid: ", "too large: ")
"""How the reasons of configurations begin that were refused before they were trained (search/sampling/duplicates.py):
these are no trials."""
UNFINISHED = "unfinished"
REFUSED = "refused"
EARLY = "stopped early"
NOT_FINISHED = "not finished"


def cut_short(row: Mapping[str, Any]) -> bool:
    """Whether the end of the search came before a trial's own; it may have a figure, that of its best epoch so far."""
    return row["reason"] in CUT_SHORT and row["status"] in ("failed", "pruned", UNFINISHED)


def never_begun(row: Mapping[str, Any]) -> bool:
    """Whether a row of the trials table is of a configuration that was refused before it was trained."""
    return str(row["reason"] or "").startswith(NEVER_BEGUN)


def how_ended(row: Mapping[str, Any]) -> str:
    """The status of a row of the trials table, for people: UNFINISHED instead of failed where it was cut short."""
    return UNFINISHED if row["status"] == "failed" and cut_short(row) else str(row["status"])


def counted_as(row: Mapping[str, Any]) -> str:
    """How a trial counts among those of a search: all that were cut short as UNFINISHED, with or without a figure, and
    what was never begun as REFUSED."""
    if row["status"] == "failed" and never_begun(row):
        return REFUSED
    return UNFINISHED if cut_short(row) else str(row["status"])


def early_end(row: Mapping[str, Any]) -> str:
    """EARLY of a trial that the scheduler stopped, NOT_FINISHED of one that was cut short; empty for others."""
    if cut_short(row):
        return NOT_FINISHED
    return EARLY if row["status"] == "pruned" else ""


def early_ends(ends: Iterable[str]) -> str:
    """What there is of EARLY and NOT_FINISHED among these, joined by `or`; empty where there is neither."""
    found = set(ends)
    return " or ".join(one for one in (EARLY, NOT_FINISHED) if one in found)


@dataclass(frozen=True)
class FamilyBudget:
    """One family, as if each family had had `k` trials. Figures are those of the objective on validation."""

    family: str
    trials: int
    """That count: scored, or failed by themselves; duplicates, and what was refused untrained, are no trials."""
    k: int
    """The smallest `trials` of any family."""
    best: float | None
    """Of all its trials; None where none was scored."""
    expected_best: float | None
    """Mean of the best of k of its trials, over every choice of k."""
    std_error: float | None
    """Of `expected_best`, by drawing the trials anew with replacement; None with fewer than two trials."""
    curve: list[float]
    """The expected best of 1, 2, … `trials` trials; [] where none was scored."""


def equal_budget(rows: Iterable[Mapping[str, Any]], objective: str) -> list[FamilyBudget]:
    """rows: of the trials table. objective: with its `val_`. Best first by `expected_best`.

    The best of k trials grows with k by luck alone, so families are compared by its expectation at the same k, as if
    the trials were drawn at random; a search that learns draws better and better ones, and then this describes the
    trials that were run. A failed trial counts as the worst that any trial of the search scored. Source: Dodge et al.
    2019, "Show Your Work: Improved Reporting of Experimental Results", here without replacement, which has no bias
    (Tang et al. 2020, "Showing Your Work Doesn't Always Work").
    """
    values: dict[str, list[float]] = {}
    for row in rows:
        value = row[objective]
        if has_score(row, objective):
            values.setdefault(row["family"], []).append(float(value))
        elif how_ended(row) == "failed" and not never_begun(row):
            values.setdefault(row["family"], []).append(math.inf)
    if not values:
        return []
    k = min(map(len, values.values()))
    worst = max((one for own in values.values() for one in own if math.isfinite(one)), default=math.inf)
    found = [_budget(family, np.array(own), k, worst) for family, own in values.items()]
    return sorted(found, key=lambda one: (one.expected_best is None, one.expected_best or 0.0, one.family))


def _budget(family: str, values: Array, k: int, worst: float) -> FamilyBudget:
    """values: of all trials of a family; infinite for failed ones. worst: what these count as."""
    n = len(values)
    if not np.isfinite(values).any():
        return FamilyBudget(family, n, k, None, None, None, [])
    values = np.minimum(np.sort(values), worst)
    curve = expected_best(values)
    return FamilyBudget(family, n, k, float(values[0]), curve[k - 1], _std_error(values, k), curve)


def expected_best(values: Array) -> list[float]:
    """The mean of the smallest of k values, over every choice of k from the n given, for k = 1 … n.

    values: [n], ascending. The i-th smallest (from 0) is the smallest of k in C(n − i − 1, k − 1) of C(n, k) choices.
    """
    weights = np.full(len(values), 1 / len(values))
    curve = []
    for k in range(1, len(values) + 1):
        curve.append(float(weights @ values))
        weights = _next(weights, k)
    return curve


def _next(weights: Array, k: int) -> Array:
    """The weights of the sorted values for k + 1, from those for k."""
    n = len(weights)
    if k == n:
        return weights
    return weights * np.maximum(n - np.arange(n) - k, 0) * ((k + 1) / (k * (n - k)))


def _std_error(values: Array, k: int) -> float | None:
    n = len(values)
    if n < 2:
        return None
    weights = np.full(n, 1 / n)
    for done in range(1, k):
        weights = _next(weights, done)
    generator = np.random.default_rng(0)
    found = [float(weights @ values[np.sort(generator.integers(0, n, n))]) for _ in range(RESAMPLES)]
    return float(np.std(found, ddof=1))
