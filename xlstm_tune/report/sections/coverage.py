"""How often the winner's intervals and quantiles held on the test part."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc

from xlstm_tune.report.blocks import Block, Cell, Column, Row, Section, Sentences, Table
from xlstm_tune.report.leaderboard import number
from xlstm_tune.report.record import Record
from xlstm_tune.report.style import counted
from xlstm_tune.results import read

TOLD = 0.9
"""The level that the lead speaks of, which is also that of `predict`."""
FAR = 0.05
"""Share by which what held may differ from what was promised before a sentence says so."""


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
    blocks: list[Block] = []
    lead = []
    if intervals:
        told = min(intervals, key=lambda row: abs(row["level"] - TOLD))
        lead.append(
            f"{_percent(told['share'])} of the test part's values, of {counted(told['samples'], kind)}, lie inside the "
            f"{_percent(told['level'])} intervals that predict puts around forecasts of {best.model}, trial "
            f"{best.trial}."
        )
        blocks.append(_intervals(intervals))
    if quantiles:
        blocks.append(_quantiles(quantiles))
        if not lead:
            lead.append(f"Of {best.model}, trial {best.trial}, on {counted(quantiles[0]['samples'], kind)}.")
    blocks.append(Sentences(_cautions(intervals, kind)))
    return Section("coverage", "How often its intervals held", " ".join(lead), blocks)


def _intervals(rows: list[dict[str, Any]]) -> Table:
    cells = [
        [Cell(_percent(row["level"]), row["level"]), Cell(_percent(row["share"]), row["share"]), _width(row["width"])]
        for row in rows
    ]
    columns = [Column("Promised", True), Column("Held", True), Column("Mean width", True)]
    return Table("Intervals, made of the errors on validation", columns, [Row(one) for one in cells])


def _width(width: float) -> Cell:
    return Cell(number(width), width)


def _quantiles(rows: list[dict[str, Any]]) -> Table:
    cells = [[Cell(f"{row['level']:g}", row["level"]), Cell(_percent(row["share"]), row["share"])] for row in rows]
    columns = [Column("Quantile", True), Column("Values at or below", True)]
    return Table("Quantiles that the model forecasts", columns, [Row(one) for one in cells])


def _cautions(intervals: list[dict[str, Any]], kind: str) -> list[str]:
    said = []
    off = [row["share"] - row["level"] for row in intervals]
    if off and min(off) < -FAR:
        said.append(
            "They hold less often than promised: errors on the test part are larger than on validation, of which the "
            "intervals are made. Expect the same of new data, and ask predict for a higher level."
        )
    elif off and max(off) > FAR:
        said.append("They hold more often than promised: errors on the test part are smaller than on validation.")
    why = "Windows overlap" if kind == "window" else "Sequences of one year or place resemble each other"
    said.append(f"{why}, so that these shares scatter more than so many values suggest.")
    return said


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + " %"
