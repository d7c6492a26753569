"""Learning curves: the validation objective of every trial by epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from xlstm_tune.report.blocks import Figure, Section, Sentences, label
from xlstm_tune.report.budget import EARLY, NOT_FINISHED, early_end, never_begun
from xlstm_tune.report.leaderboard import number
from xlstm_tune.report.record import Record, finite
from xlstm_tune.report.style import (
    BAD,
    Trace,
    axis,
    counted,
    family_name,
    layout,
    level,
    log_if_wide,
    metric_title,
    whole,
)

Curve = list[tuple[int, float]]
FAILED = "failed"
MANY = 40
"""Trials from which lines are thin."""
NAMED_POINTS = 20_000
"""Of all lines, from which on each is named by its trial's number alone: a name stands at every point."""
MOST_POINTS = 100_000
"""Of more, some epochs of each line are left out: they would only make the page heavy."""


def learning_curves(record: Record) -> Section | None:
    """All trials, in their families' colours; those that ended early dotted, with a mark where they did."""
    curves = {
        trial: [(epoch, float(value)) for epoch, value in curve if value is not None and finite(value)]
        for trial, curve in record.curves.items()
    }
    curves = {trial: curve for trial, curve in curves.items() if curve}
    if not curves:
        return Section("curves", "Learning curves", blocks=[Sentences(["No epoch has ended yet."])])
    rows = {row["trial"]: row for row in record.trials}
    thin = len(curves) > MANY
    shown, names = _thinned(curves), _names(curves, rows)
    data: list[Trace] = []
    for status in ("running", "pruned", "completed"):
        chosen = [trial for trial in curves if _status(rows.get(trial)) == status]
        for family in record.palette.present(_family(rows, trial) for trial in chosen):
            lines = [trial for trial in chosen if family_name(_family(rows, trial)) == family]
            data.append(_lines(record, {trial: shown[trial] for trial in lines}, names, family, status, thin))
    data += _ends(record, curves, rows)
    best = record.board.winner.trial if record.board.winner else None
    if best in curves:
        data.append(_winner(curves[best], record, rows[best]))
    last = max(curve[-1][0] for curve in curves.values())
    if (limit := record.best_possible("validation")) is not None:
        data.append(level(limit, [1, last], "best possible"))
    values = [value for curve in curves.values() for _, value in curve]
    x = axis("Epoch", rangemode="tozero", **whole(last))
    y = axis(f"{metric_title(record.metric)}, validation", **log_if_wide(values))
    caption = _caption(record, curves, rows, last, best)
    return Section(
        "curves", "Learning curves", blocks=[Figure("curves", "Objective by epoch", caption, data, layout(x, y), 460)]
    )


def _thinned(curves: Mapping[int, Curve]) -> Mapping[int, Curve]:
    """The curves with MOST_POINTS points at most, or with their ends alone: every k-th epoch and the last."""
    every = -(-sum(map(len, curves.values())) // MOST_POINTS)
    if every <= 1:
        return curves
    return {trial: [*curve[:-1:every], curve[-1]] for trial, curve in curves.items()}


def _names(curves: Mapping[int, Curve], rows: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    few = sum(map(len, curves.values())) <= NAMED_POINTS
    about = {trial: rows[trial]["name"] if few and trial in rows else "" for trial in curves}
    return {trial: label(f"trial {trial}{': ' + name if name else ''}") for trial, name in about.items()}


def _status(row: Mapping[str, Any] | None) -> str:
    """Failed trials, and those that were not finished, are drawn like stopped ones, with another mark at their end."""
    if row is None:
        return "running"
    return "completed" if row["status"] == "completed" else "pruned"


def _family(rows: Mapping[int, Mapping[str, Any]], trial: int) -> str | None:
    return rows[trial]["family"] if trial in rows else None


def _lines(
    record: Record, curves: Mapping[int, Curve], names: Mapping[int, str], family: str, status: str, thin: bool
) -> Trace:
    """Curves of one family as one trace, with gaps between them."""
    x: list[int | None] = []
    y: list[float | None] = []
    text: list[str | None] = []
    for trial, curve in curves.items():
        x += [*(epoch for epoch, _ in curve), None]
        y += [*(float(f"{value:.6g}") for _, value in curve), None]
        text += [*([names[trial]] * len(curve)), None]
    full = status == "completed"
    unknown = family not in record.palette.families or (status == "running" and family == "unknown")
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "text": text,
        "hovertemplate": "%{text}<br>epoch %{x}: %{y:.4g}<extra></extra>",
        "name": "still running" if unknown else label(family),
        "legendgroup": label(family),
        "showlegend": full or not any(_same(record, family)),
        "line": {
            "color": "var(--muted)" if unknown else record.palette.color(family),
            "width": 1 if thin else 1.8,
            "dash": "solid" if full or status == "running" else "dot",
        },
        "opacity": (0.6 if thin else 0.9) if full else (0.3 if thin else 0.5),
    }


def _same(record: Record, family: str) -> list[bool]:
    """One entry per completed trial of the family that has a curve: it carries the family's legend."""
    return [
        True
        for row in record.trials
        if row["status"] == "completed" and family_name(row["family"]) == family and record.curves.get(row["trial"])
    ]


def _ends(record: Record, curves: Mapping[int, Curve], rows: Mapping[int, Any]) -> list[Trace]:
    """Marks where trials were stopped, cut short or failed."""
    traces: list[Trace] = []
    for name, symbol in ((EARLY, "line-ns-open"), (NOT_FINISHED, "circle-open"), (FAILED, "x")):
        ended = [trial for trial in curves if trial in rows and _early(rows[trial]) == name]
        if not ended:
            continue
        colors = [record.palette.color(rows[trial]["family"]) for trial in ended]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [curves[trial][-1][0] for trial in ended],
                "y": [curves[trial][-1][1] for trial in ended],
                "text": [label(f"trial {trial} {name}: {rows[trial]['reason'] or ''}", 90) for trial in ended],
                "hovertemplate": "%{text}<extra></extra>",
                "name": name,
                "marker": {"symbol": symbol, "size": 9, "color": BAD if name == FAILED else colors},
            }
        )
    return traces


def _early(row: Mapping[str, Any]) -> str:
    """EARLY, NOT_FINISHED or FAILED; empty for a trial that came to its end."""
    return early_end(row) or (FAILED if row["status"] == FAILED else "")


def _winner(curve: Curve, record: Record, row: Mapping[str, Any]) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [epoch for epoch, _ in curve],
        "y": [value for _, value in curve],
        "name": "the winner",
        "hovertemplate": label(f"trial {row['trial']}") + ", epoch %{x}: %{y:.4g}<extra></extra>",
        "line": {"color": record.palette.color(row["family"]), "width": 3.5},
        "marker": {"size": 6, "symbol": record.palette.symbol(row["family"])},
    }


def _caption(record: Record, curves: Mapping[int, Curve], rows: Mapping[int, Any], last: int, best: int | None) -> str:
    shown = {trial: _early(rows[trial]) for trial in curves if trial in rows}
    ends = Counter(shown.values())
    parts = [f"{counted(len(curves), 'trial')}, up to {counted(last, 'epoch')}."]
    if stopped := ends[EARLY]:
        stops = sorted(curves[trial][-1][0] for trial, end in shown.items() if end == EARLY)
        by = f"at least half of them by epoch {stops[(stopped - 1) // 2]}" if stopped > 1 else f"after epoch {stops[0]}"
        parts.append(f"{_were(stopped)} {EARLY} (dotted, ended by a bar), {by}.")
    if cut := ends[NOT_FINISHED]:
        parts.append(f"{_were(cut)} {NOT_FINISHED} (dotted, ended by a ring).")
    if failed := ends[FAILED]:
        parts.append(f"{failed} failed (crosses).")
    ended_by_themselves = [row for row in record.trials if row["status"] == "failed" and not never_begun(row)]
    unseen = sum(row["trial"] not in curves for row in ended_by_themselves)
    if unseen:
        parts.append(f"{counted(unseen, 'failed trial')} ended before the first epoch and cannot be seen here.")
    if best is not None and best in curves:
        value, epoch = min((value, epoch) for epoch, value in curves[best])
        parts.append(f"The winner, trial {best}, reached its best, {number(value)}, in epoch {epoch}.")
    return " ".join(parts)


def _were(count: int) -> str:
    return f"{count} were" if count > 1 else "1 was"
