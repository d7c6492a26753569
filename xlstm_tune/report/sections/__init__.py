"""The sections of a search's page, in their order. Each is a function: what is known in, a section or None out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xlstm_tune.report.blocks import Section
from xlstm_tune.report.record import Record
from xlstm_tune.report.sections.cost import cost
from xlstm_tune.report.sections.coverage import coverage
from xlstm_tune.report.sections.curves import learning_curves
from xlstm_tune.report.sections.differences import differences, equal_budget, metrics
from xlstm_tune.report.sections.excluded import excluded
from xlstm_tune.report.sections.inputs import inputs
from xlstm_tune.report.sections.progress import progress
from xlstm_tune.report.sections.repeat import repeat
from xlstm_tune.report.sections.settings import settings
from xlstm_tune.report.sections.standing import leaderboard, summary
from xlstm_tune.report.sections.winner import winner

SECTIONS: Sequence[Callable[[Record], Section | None]] = (
    summary,
    leaderboard,
    differences,
    metrics,
    winner,
    coverage,
    inputs,
    progress,
    learning_curves,
    settings,
    equal_budget,
    cost,
    excluded,
    repeat,
)
