"""Cost against error: what more seconds, parameters or memory bought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xlstm_tune.report.blocks import Figure, Figures, Section, label
from xlstm_tune.report.leaderboard import number
from xlstm_tune.report.record import Record, finite
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

COSTS = (
    ("seconds", "Training seconds", "seconds"),
    ("parameters", "Parameters", "parameters"),
    ("peak_memory_mib", "Peak memory, MiB", "MiB"),
)
WIDE = 8.0
"""Largest over smallest cost from which that axis is logarithmic."""


def cost(record: Record) -> Section | None:
    """One figure for each cost that is known, with the trials that nothing cheaper beats joined by a line."""
    figures = []
    for column, title, unit in COSTS:
        rows = [row for row in record.scored if finite(row[column])]
        if len(rows) > 1:
            figures.append(_figure(record, rows, column, title, unit))
    if not figures:
        return None
    lead = (
        "The line joins the trials that no cheaper one beats. Trials stopped early (hollow) cost less for that reason."
    )
    return Section("cost", "Cost against error", lead, [Figures(figures)])


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, error) pairs that no other pair beats in one without losing in the other, by cost."""
    chosen: list[int] = []
    for index in sorted(range(len(points)), key=lambda one: points[one]):
        if not chosen or points[index][1] < points[chosen[-1]][1]:
            chosen.append(index)
    return chosen


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
    kept = [rows[index] for index in front([(row[column], row[record.objective]) for row in rows])]
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
