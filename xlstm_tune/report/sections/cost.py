"""Cost against error: what more seconds, parameters or memory bought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xlstm_tune.report.blocks import Block, Cell, Column, Figure, Figures, Row, Section, Table, label
from xlstm_tune.report.budget import early_end, early_ends
from xlstm_tune.report.leaderboard import number
from xlstm_tune.report.pareto import pareto_front
from xlstm_tune.report.record import Record, finite, section
from xlstm_tune.report.style import (
    ACCENT,
    Trace,
    axis,
    counted,
    family_name,
    layout,
    level,
    log_if_wide,
    metric_title,
)

MEMORY = "peak_memory_mib"
COSTS = (
    ("seconds", "Training seconds", "seconds"),
    ("parameters", "Parameters", "parameters"),
    (MEMORY, "Peak memory, MiB", "MiB"),
    ("latency_ms", "One forecast, ms", "ms"),
)
WIDE = 8.0
"""Largest over smallest cost from which that axis is logarithmic."""


def cost(record: Record) -> Section | None:
    """One figure for each cost that is known, with the trials that nothing cheaper beats joined by a line."""
    figures = []
    for column, title, unit in COSTS:
        if column == MEMORY and record.gpus_per_trial == 0:
            continue  # a worker keeps what earlier trials took: its peak is not the trial's
        rows = [row for row in record.scored if finite(row[column])]
        if len(rows) > 1:
            figures.append(_figure(record, rows, column, title, unit))
    if not figures:
        return None
    lead = "The line joins the trials that no cheaper one beats."
    if early := early_ends(map(early_end, record.scored)):
        lead += f" Trials {early} (hollow) cost less for that reason."
    blocks: list[Block] = [Figures(figures)]
    if costs := section(record.spec, "search").get("costs"):
        blocks.insert(0, _weighed(record, costs))
    return Section("cost", "Cost against error", lead, blocks)


def _weighed(record: Record, costs: Sequence[str]) -> Table:
    """What a search for several objectives found: the trials that no other beats in all of them."""
    goals = [record.objective, *costs]
    by_number = {row["trial"]: row for row in record.scored}
    kept = [by_number[trial] for trial in pareto_front(record.scored, goals)]
    rows = [Row([Cell(str(row["name"]), note=f"trial {row['trial']}"), *_figures(row, goals)]) for row in kept]
    titles = {column: title for column, title, _ in COSTS}
    columns = [Column("Model", wide=True), Column(f"{metric_title(record.metric)}, validation", True)]
    columns += [Column(titles[name], True) for name in costs]
    return Table(f"Pareto front: {counted(len(kept), 'trial')} that no other beats in all of these", columns, rows)


def _figures(row: Mapping[str, Any], goals: Sequence[str]) -> list[Cell]:
    return [Cell(number(row[goal]), row[goal]) for goal in goals]


def _figure(record: Record, rows: Sequence[Mapping[str, Any]], column: str, title: str, unit: str) -> Figure:
    data: list[Trace] = []
    for family in record.palette.present(row["family"] for row in rows):
        chosen = [row for row in rows if family_name(row["family"]) == family]
        chosen.sort(key=lambda row: row["status"] == "pruned")  # the legend has the first one's symbol
        symbol = record.palette.symbol(family)
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [row[column] for row in chosen],
                "y": [row[record.objective] for row in chosen],
                "text": [label(f"trial {row['trial']}: {row['name']}") for row in chosen],
                "hovertemplate": "%{text}<br>%{x:,.4g}: %{y:.4g}<extra></extra>",
                "name": label(family),
                "marker": {
                    "color": record.palette.color(family),
                    "symbol": [symbol + ("-open" if row["status"] == "pruned" else "") for row in chosen],
                    "size": 7,
                    "opacity": 0.8,
                },
            }
        )
    by_number = {row["trial"]: row for row in rows}
    kept = [by_number[trial] for trial in pareto_front(rows, [column, record.objective])]
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "x": [row[column] for row in kept],
            "y": [row[record.objective] for row in kept],
            "name": "front",
            "line": {"color": ACCENT, "width": 2, "shape": "hv"},
            "hoverinfo": "skip",
        }
    )
    costs = [row[column] for row in rows]
    if (limit := record.best_possible("validation")) is not None:
        data.append(level(limit, [min(costs), max(costs)], "best possible"))
    cheapest, best = kept[0], kept[-1]
    name = title.partition(",")[0].lower()
    caption = f"{title}: {counted(len(kept), 'trial')} of {len(rows)} on the front. "
    caption += (
        f"The best, trial {best['trial']}, has {number(best[record.objective])} for {number(best[column])} {unit}"
    )
    if cheapest is not best:
        caption += (
            f"; the cheapest, trial {cheapest['trial']}, {number(cheapest[record.objective])} for "
            f"{number(cheapest[column])}"
        )
    x = axis(title, **({"type": "log", "dtick": "D2"} if max(costs) > WIDE * min(costs) > 0 else {}))
    y = axis(f"{metric_title(record.metric)}, validation", **log_if_wide([row[record.objective] for row in rows]))
    return Figure(f"cost-{column}", f"Error by {name}", f"{caption}.", data, layout(x, y), 340)
