"""What was left out, and why: failed trials, refused configurations, duplicates, notes of the data and the space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xlstm_tune.report.blocks import Block, Cell, Column, Row, Section, Sentences, Table
from xlstm_tune.report.budget import cut_short, never_begun
from xlstm_tune.report.record import Record
from xlstm_tune.report.style import counted

NAMED = 8
"""Trials listed by number for one reason."""


def excluded(record: Record) -> Section | None:
    """Failed and refused trials by reason, those that were cut short, how many points were tried twice, and what the
    search noted beforehand."""
    failed = [row for row in record.trials if row["status"] == "failed"]
    cut = [row for row in record.trials if cut_short(row)]
    double = [row for row in record.trials if row["status"] == "duplicate"]
    split = [row for row in record.trials if row["micro_batch"] or row["members_at_once"]]
    texts = []
    if all(map(never_begun, failed)):
        texts.append("No trial failed.")
    if cut:
        numbers = ", ".join(str(row["trial"]) for row in cut[:NAMED]) + (", …" if len(cut) > NAMED else "")
        reasons = " or ".join(dict.fromkeys(row["reason"] for row in cut))
        scored = " Scores of such trials are of their best epoch so far." if any(map(cut_short, record.scored)) else ""
        texts.append(
            f"{counted(len(cut), 'trial')} had not ended when the search did ({numbers}: {reasons}); "
            f"--resume goes on with what {'they' if len(cut) > 1 else 'it'} saved.{scored}"
        )
    if double:
        originals = len({row["duplicate_of"] for row in double})
        texts.append(
            f"{counted(len(double), 'proposal')} repeated {counted(originals, 'configuration')} that had been tried; "
            "the known score was used, and the tables and figures here leave them out."
        )
    if split:
        texts.append(
            f"{counted(len(split), 'trial')} ran out of memory and went on in smaller pieces, to the same effect."
        )
    notes = record.data.get("notes")
    texts += [str(note) for note in notes] if isinstance(notes, list) else []
    blocks: list[Block] = [Sentences(texts)] if texts else []
    if failed:
        blocks.append(_reasons(failed))
    return Section("excluded", "What was left out, and why", blocks=blocks)


def _reasons(failed: list[dict[str, Any]]) -> Table:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in failed:
        groups.setdefault(row["reason"] or "no reason was noted", []).append(row)
    rows = []
    for reason, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        numbers = ", ".join(str(row["trial"]) for row in members[:NAMED])
        more = f" and {len(members) - NAMED} more" if len(members) > NAMED else ""
        families = ", ".join(sorted({row["family"] or "unknown" for row in members}))
        cells = [Cell(str(len(members)), len(members)), Cell(reason), Cell(families), Cell(numbers + more)]
        rows.append(Row(cells))
    columns = [Column("Trials", True), Column("Reason", wide=True), Column("Families"), Column("Numbers", wide=True)]
    refused = sum(map(never_begun, failed))
    parts = [(len(failed) - refused, "failed trial"), (refused, "refused configuration")]
    what = " and ".join(counted(count, noun) for count, noun in parts if count)
    return Table(f"{what} by reason", columns, rows, sortable=len(rows) > 1)
