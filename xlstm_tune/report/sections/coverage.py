"""How often the winner's intervals and quantiles held on the test part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import betaln, gammaln

from xlstm_tune.report.blocks import Block, Cell, Column, Row, Section, Sentences, Table
from xlstm_tune.report.leaderboard import number
from xlstm_tune.report.predictions import key_values
from xlstm_tune.report.record import Record, section
from xlstm_tune.report.style import counted
from xlstm_tune.results import read

TOLD = 0.9
"""The level that the lead speaks of, which is also that of `predict`."""
FAR = 0.02
"""Share by which what held may differ from what was promised without a word, however many samples there are."""
SURE = 0.006
"""Probability, at each end, below which a share is more than chance."""


def coverage(record: Record) -> Section | None:
    """None where nothing was measured: an unfinished search, one of an older version, a validation part too small."""
    best = record.board.winner
    if best is None or best.trial is None:
        return None
    rows = read(record.folder, "coverage")
    found = sorted(rows.filter(pc.equal(rows["trial"], best.trial)).to_pylist(), key=lambda row: row["level"])
    intervals = [row for row in found if row["kind"] == "interval"]
    quantiles = [row for row in found if row["kind"] == "quantile"]
    if not found:
        return None
    kind = "sequence" if record.data.get("task") == "regression" else "window"
    judged = _judged_on(record, best.trial)
    blocks: list[Block] = []
    lead = []
    if intervals:
        told = min(intervals, key=lambda row: abs(row["level"] - TOLD))
        lead.append(
            f"{_percent(told['share'])} of the test part's values, of {counted(told['samples'], kind)}, lie inside the "
            f"{_percent(told['level'])} intervals that predict puts around forecasts of {best.model}, trial "
            f"{best.trial}."
        )
        blocks.append(_intervals(intervals, judged.targets))
    if quantiles:
        blocks.append(_quantiles(quantiles))
        if not lead:
            lead.append(f"Of {best.model}, trial {best.trial}, on {counted(quantiles[0]['samples'], kind)}.")
    blocks.append(Sentences(_cautions(intervals, kind, judged)))
    return Section("coverage", "How often its intervals held", " ".join(lead), blocks)


@dataclass(frozen=True)
class Judged:
    """What tells how much shares may differ by chance."""

    validation: int
    """Moments, as `_moments` has them, that the intervals were made of; 0 where they are not known."""
    test: int
    """Those that they were tried on."""
    alike: bool
    """Whether there are fewer moments than samples."""
    horizon: int
    targets: int


def _judged_on(record: Record, trial: int) -> Judged:
    kept = record.predictions.filter(pc.equal(record.predictions["trial"], trial))
    horizon, targets = pc.max(kept["step"]).as_py() or 1, kept["target"].unique()
    if len(targets):  # a row of each sample
        kept = kept.filter(pc.and_(pc.equal(kept["step"], 1), pc.equal(kept["target"], targets[0])))
    validation, test = (kept.filter(pc.equal(kept["part"], part)) for part in ("validation", "test"))
    known, new = _moments(record, validation), _moments(record, test)
    alike = known < validation.num_rows or new < test.num_rows
    return Judged(known, new, alike, horizon, max(1, len(targets), len(record.data.get("targets") or ())))


def _moments(record: Record, samples: pa.Table) -> int:
    """How many samples there are if those of one time count as one, since a shock may meet all series at once.

    Series without times are taken to go side by side. Sequences of a regression that is cut in time have their periods
    in their keys as well: the years of county × year. Of one cut otherwise the time need not tell when a sequence was.
    """
    data = section(record.spec, "data")
    split = section(data, "split")
    times = [samples["time"]] if data.get("time") else []
    if record.data.get("task") != "regression":
        series = samples["series"].value_counts().field("counts")
        return len(times[0].unique()) if times else int(pc.max(series).as_py() or 0)
    keys, groups = record.data.get("keys") or (), record.data.get("groups") or ()
    counts: list[int] = [samples.num_rows]
    if "time" not in split.get("by", ("time",)):
        return counts[0]
    if split.get("order"):
        times = []
    places = [place for place, name in enumerate(keys) if name not in groups] if groups else []
    found = [key_values(label, keys) for label in samples["series"].to_pylist()]
    periods = {tuple(values[place] for place in places if place < len(values)) for values in found}
    counts += [len(column.unique()) for column in times]
    return min([*counts, len(periods)] if places else counts)


def _intervals(rows: list[dict[str, Any]], targets: int) -> Table:
    """With their mean width, unless targets of different units would have one together."""
    columns = [Column("Promised", True), Column("Held", True)]
    cells = [[Cell(_percent(row[name]), row[name]) for name in ("level", "share")] for row in rows]
    if targets == 1:
        columns.append(Column("Mean width", True))
        for row, found in zip(rows, cells, strict=True):
            found.append(Cell(number(row["width"]), row["width"]))
    return Table("Intervals, made of the errors on validation", columns, [Row(one) for one in cells])


def _quantiles(rows: list[dict[str, Any]]) -> Table:
    cells = [[Cell(f"{row['level']:g}", row["level"]), Cell(_percent(row["share"]), row["share"])] for row in rows]
    columns = [Column("Quantile", True), Column("Values at or below", True)]
    return Table("Quantiles that the model forecasts", columns, [Row(one) for one in cells])


def beyond_chance(
    rows: Sequence[dict[str, Any]], validation: int, test: int, horizon: int
) -> tuple[list[float], list[float]]:
    """The levels that held less and more often than promised, by more than chance and by FAR.

    How many of m test errors lie below the r-th smallest of n validation errors follows a beta-binomial distribution
    with r and n + 1 - r where all are alike and independent (Vovk 2012, "Conditional validity of inductive conformal
    predictors"). Windows closer than half a horizon count as one, since they share most steps: the mean over the steps
    of a random walk's errors varies less than that. Of a level that n errors are too few to promise nothing is said.
    rows: `level` and `share`. validation, test: n and m, 0 where not known.
    """
    less: list[float] = []
    more: list[float] = []
    apart = max(1.0, horizon / 2)
    for row in rows if validation and test else ():
        rank = max(1, math.ceil((validation + 1) * row["level"] - 1e-9))  # as predict does
        if rank > validation or abs(row["share"] - row["level"]) <= FAR:
            continue
        weight = (validation / apart + 1) / (validation + 1)
        below, above = _tails(row["share"], max(1, int(test / apart)), rank * weight, (validation + 1 - rank) * weight)
        if min(below, above) < SURE:
            (less if below < above else more).append(row["level"])
    return less, more


def _tails(share: float, n: int, inside: float, outside: float) -> tuple[float, float]:
    """How probable a share of n as small, and as large, is by the beta-binomial distribution with these parameters."""
    k = np.arange(n + 1)
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    probable = np.exp(ways + betaln(k + inside, n - k + outside) - betaln(inside, outside))
    found = share * n
    return float(probable[: math.ceil(found - 1e-9) + 1].sum()), float(probable[math.floor(found + 1e-9) :].sum())


def _cautions(intervals: list[dict[str, Any]], kind: str, judged: Judged) -> list[str]:
    said = []
    if intervals and judged.targets > 1:
        said.append("Values of all targets count alike; widths are not told, since targets have units of their own.")
    chance = f"by more than chance explains in so many {'independent ' if kind == 'sequence' else ''}{kind}s"
    if judged.alike:
        when = counted(judged.test, "period" if kind == "sequence" else "moment")
        chance = f"by more than chance explains in {kind}s of {when}, even if those of one err alike"
    less, more = beyond_chance(intervals, judged.validation, judged.test, judged.horizon)
    if less:
        said.append(
            f"Intervals of {_listed(less)} held less often than promised, {chance}. Ask predict for a higher level "
            "where that matters."
        )
    if more:
        said.append(f"Intervals of {_listed(more)} held more often than promised, {chance}.")
    why = "Windows overlap" if kind == "window" else "Sequences of one year or place resemble each other"
    if kind == "window" and judged.alike:
        why += " and those of one moment resemble each other"
    said.append(f"{why}, so that these shares scatter more than so many values suggest.")
    return said


def _listed(levels: Sequence[float]) -> str:
    *others, last = map(_percent, levels)
    return f"{', '.join(others)} and {last}" if others else last


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + " %"
