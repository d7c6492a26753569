"""Where errors lie: by target, by step of the horizon, by series, over time, and how they are spread.

Figures are given rows of one target alone, since targets may have different units.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xlstm_tune.report.blocks import Block, Cell, Column, Figure, Figures, Row, Sentences, Table, label, labels
from xlstm_tune.report.forecasts import Forecasts, Model
from xlstm_tune.report.leaderboard import number
from xlstm_tune.report.record import Record, section
from xlstm_tune.report.style import BASELINE, GRID, Trace, axis, counted, layout, thinned, whole

MOMENTS = 600
"""Points of the residuals over time."""
BINS = 40
GROUPS = 30
"""Series drawn, the worst first."""
FEW = 3
"""Rows of a series below which its error says nothing."""
_YEAR_AND_WEEK = re.compile(r"(\d{4})[_-]?[Ww]?(\d{1,2})")
"""Or a year and a month, which sort alike."""
_OFFSET = re.compile(r"[ T]\d\d(?::.*)?(?:Z|[+-]\d\d(?::?\d\d)?)$")
"""How a time ends that says its offset from UTC."""
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def by_target(record: Record, made: Forecasts, mine: Model, part: str) -> list[Block]:
    """What each target's error is, for the winner and the best baseline, and which one the figures are of; [] where
    there is one target. made: the winner's rows of that one."""
    if not made.which:
        return []
    said = Sentences(
        [
            f"The figures of this section are of {made.first_target} alone. RMSE and MAE elsewhere on this page pool "
            "all targets in their own units, so the one with the largest numbers weighs most."
        ]
    )
    evidence = record.evidence
    if evidence is None or evidence.part != part:
        return [said]
    known = [evidence.by_target[one] for one in evidence.by_target if one.trial is not None and one.trial == mine.trial]
    columns = [Column("Target", wide=True), Column("RMSE", True), Column("MAE", True)]
    if known and (best := evidence.best_baseline) is not None:
        known.append(evidence.by_target[best])
        columns += [Column(f"RMSE of {best.name}", True), Column(f"MAE of {best.name}", True)]
    if not known:
        return [said]
    rows = []
    for target in known[0]:
        errors = [one[target][metric] for one in known for metric in ("rmse", "mae")]
        rows.append(Row([Cell(target), *(Cell(number(error), error) for error in errors)]))
    return [Table(f"Errors by target, {part} part, each in its own units", columns, rows), said]


def by_step(record: Record, found: Mapping[Model, Forecasts], part: str) -> Figure | None:
    """RMSE of finalists and baselines by step of the horizon; None with a single step."""
    if max(int(one.step.max()) for one in found.values()) == 1:
        return None
    data: list[Trace] = []
    last: dict[str, float] = {}
    baselines = 0
    for model, made in found.items():
        steps, errors = made.rmse_by_step()
        mine = model.trial is not None
        line = {"color": record.palette.color(model.name), "width": 2.5}
        if not mine:
            line = {"color": BASELINE, "width": 1.5, "dash": _DASHES[baselines % len(_DASHES)]}
            baselines += 1
        last[model.title] = errors[-1]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if mine else "lines",
                "x": steps,
                "y": errors,
                "name": label(model.title),
                "line": line,
                "marker": {"symbol": record.palette.symbol(model.name), "size": 6} if mine else {},
                "hovertemplate": "step %{x}: %{y:.4g}<extra>" + label(model.title) + "</extra>",
            }
        )
    best = min(last, key=lambda name: last[name])
    of = _of(next(iter(found.values())))
    caption = (
        f"RMSE of each step of the horizon on the {part} part{of}; grey lines are baselines. At the last step {best} "
        f"has the lowest, {number(last[best])}."
    )
    return Figure(
        "by-step",
        "Error by step of the horizon",
        caption,
        data,
        layout(axis("Step", **whole(len(steps))), axis("RMSE")),
        420,
    )


def by_series(
    record: Record, found: Mapping[Model, Forecasts], mine: Model, against: Model | None, part: str
) -> Figure | None:
    """RMSE by series for the winner and the best baseline; None where there is one series, or none with enough rows.

    Of a regression, whose series are sequences of one sample, by the groups that the evidence has.
    """
    known: Mapping[str, float] = _errors_by_series(found[mine], FEW)
    what = "series"
    theirs: Mapping[str, float] = _errors_by_series(found[against], FEW) if against is not None else {}
    if len(known) < 2:
        groups = _groups(record, part)
        known, what = groups.get(mine.trial, {}), "groups"
        theirs = groups.get(None, {}) if against is not None else {}
    if len(known) < 2:
        return None
    order = sorted(known, key=lambda name: known[name])[-GROUPS:]
    names = labels(order[::-1], 40)[::-1]  # the first place is the worst's
    whole_names = [label(name, 120) for name in order]
    data: list[Trace] = []
    better = ""
    if against is not None and theirs:
        errors = [theirs.get(name) for name in order]
        data.append(_dots(names, whole_names, errors, label(against.title), BASELINE, "circle-open"))
        wins = sum(known[name] < theirs[name] for name in known if name in theirs)
        better = f" The model is better than {against.name} in {wins} of {len(known)}."
    color, symbol = record.palette.color(mine.name), record.palette.symbol(mine.name)
    data.append(_dots(names, whole_names, [known[name] for name in order], label(mine.title), color, symbol))
    shown = f"The {GROUPS} worst of {len(known)} {what}" if len(known) > GROUPS else f"{len(known)} {what}"
    caption = f"{shown}, {part} part{_of(found[mine])}. The worst, {order[-1]}, has {number(known[order[-1]])}."
    shape = layout(axis("RMSE"), axis(type="category", gridcolor=GRID))
    return Figure("by-series", f"Error by {what}", caption + better, data, shape, 120 + 20 * len(names))


def _errors_by_series(made: Forecasts, few: int) -> dict[str, float]:
    """RMSE of each series with at least so many rows."""
    rows = np.bincount(made.series, minlength=len(made.names))
    keys, errors = made.rmse_by_series()
    return {made.names[key]: error for key, error in zip(keys, errors, strict=True) if rows[key] >= few}


def _groups(record: Record, part: str) -> dict[int | None, Mapping[str, float]]:
    """The evidence's RMSE by group, by trial; under None the best baseline's."""
    evidence = record.evidence
    if evidence is None or evidence.part != part:
        return {}
    return {
        model.trial: errors
        for model, errors in evidence.by_group.items()
        if model.trial is not None or model == evidence.best_baseline
    }


def _dots(
    names: Sequence[str], whole_names: Sequence[str], values: Sequence[float | None], name: str, color: str, symbol: str
) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": values,
        "y": names,
        "text": whole_names,
        "name": name,
        "marker": {"color": color, "size": 9, "symbol": symbol},
        "hovertemplate": "%{text}: %{x:.4g}<extra>" + name + "</extra>",
    }


def residuals(
    record: Record, found: Mapping[Model, Forecasts], mine: Model, against: Model | None, part: str, thinned_out: str
) -> Figures:
    """The winner's errors, in order of time where there is one, and their distribution beside the best baseline's.

    thinned_out: a sentence on predictions that were not kept; empty where all were.
    """
    made = found[mine]
    color, of = record.palette.color(mine.name), _of(made)
    # Of a forecast of several steps the mean over its steps: one point per sample.
    sample = np.cumsum(np.r_[True, (np.diff(made.time) != 0) | (np.diff(made.series) != 0)]) - 1
    means = np.bincount(sample, weights=made.error) / np.bincount(sample)
    first = np.searchsorted(sample, np.arange(len(means)))
    order = _in_time(record, made, first)
    if order is not None:
        means, first = means[order], first[order]
    kept = np.arange(len(means))[thinned(len(means), MOMENTS)]
    first = first[kept]
    text = [label(f"{made.names[made.series[row]]} {made.times[made.time[row]]}") for row in first]
    over_time: list[Trace] = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": kept + 1,
            "y": means[kept],
            "text": text,
            "hovertemplate": "%{text}: %{y:.4g}<extra></extra>",
            "marker": {"color": color, "size": 5, "opacity": 0.7, "symbol": record.palette.symbol(mine.name)},
            "showlegend": False,
        }
    ]
    shown = "" if len(kept) == len(means) else f" ({len(kept):,} of them drawn, evenly)"
    half = len(means) // 2
    in_order = "in order of time" if order is not None else "in the table's order"
    drift = ""
    if half and order is not None:
        drift = f" Mean error of the first half {_signed(means[:half])}, of the second {_signed(means[half:])}."
    several = len(made.error) > len(means)
    averaged = ", averaged over a sample's steps" if several else ""
    caption = f"Predicted minus actual{of}{averaged}, {in_order}: {counted(len(means), 'sample')}{shown}.{drift}"
    caption += f" {thinned_out}".rstrip()
    lines = [
        Figure("residuals", "Errors in order", caption, over_time, _around_zero(axis("Sample"), axis("Error")), 300)
    ]
    every = np.concatenate([made.error, found[against].error]) if against is not None else made.error
    low, high = np.quantile(every, 0.003, method="lower"), np.quantile(every, 0.997, method="higher")
    outside = float(np.mean((every < low) | (every > high)))
    edges = np.linspace(float(low), float(high), BINS + 1)
    bars: list[Trace] = [_histogram(made, edges, label(mine.title), color, 0.75)]
    spread = f"the outermost {100 * outside:.2g} % are not drawn; " if outside else ""
    spread += f"half of the model's errors lie between {_quartiles(made)}"
    if against is not None:
        bars.insert(0, _histogram(found[against], edges, label(against.title), BASELINE, 0.6))
        spread += f", of {against.name}'s between {_quartiles(found[against])}"
    apart = ", steps apart" if several else ""
    shape = layout(axis("Predicted minus actual"), axis("Share", tickformat=".0%"), barmode="overlay", bargap=0.05)
    lines.append(
        Figure("histogram", "Spread of errors", f"Errors on the {part} part{of}{apart}; {spread}.", bars, shape, 300)
    )
    return Figures(lines)


def _in_time(record: Record, made: Forecasts, first: np.ndarray) -> np.ndarray | None:
    """The samples in the order of their time; None where several series or sequences have no time in common.

    first: row of each sample. Windows of one series are in their order as they are.
    """
    labels = [made.times[place] for place in made.time[first]]
    if len(np.unique(made.series)) == 1:
        return np.arange(len(first))
    time = section(record.spec, "data").get("time")
    if not time or len(set(labels)) == 1:
        return None
    moments = _moments(labels, weeks=isinstance(time, Mapping) and time.get("format") in ("mmwr-week", "iso-week"))
    return None if moments is None else np.argsort(moments, kind="stable")


def _moments(labels: Sequence[str], weeks: bool) -> np.ndarray | None:
    """What labels of time, which are text as the user wrote it, are sorted by; None where they are of no known kind.

    weeks: whether digits alone, such as 200601, are a year and a week; else they are numbers.
    """
    if not weeks and all(re.fullmatch(r"-?\d+(\.\d+)?", label) for label in labels):
        return np.array([float(label) for label in labels])
    found = [_YEAR_AND_WEEK.fullmatch(label.strip()) for label in labels]
    if all(found):
        return np.array([100 * int(one[1]) + int(one[2]) for one in found if one])
    texts = pc.replace_substring_regex(pa.array([label.strip() for label in labels]), r"^(\d{4})/(\d\d)/", r"\1-\2-")
    zoned = all(_OFFSET.search(label.strip()) for label in labels)
    try:
        return np.asarray(texts.cast(pa.timestamp("ns", "UTC" if zoned else None)).cast(pa.int64()))
    except pa.ArrowInvalid:
        return None


def _of(made: Forecasts) -> str:
    """Which target's rows these are, to be put into a caption; empty where there is one."""
    return f", {made.which}" if made.which else ""


def _around_zero(x: dict[str, object], y: dict[str, object]) -> dict[str, object]:
    return layout(x, y | {"zeroline": True, "zerolinecolor": BASELINE, "zerolinewidth": 1})


def _histogram(made: Forecasts, edges: np.ndarray, name: str, color: str, opacity: float) -> Trace:
    counts, _ = np.histogram(made.error, edges)
    return {
        "type": "bar",
        "x": (edges[:-1] + edges[1:]) / 2,
        "y": counts / len(made.error),
        "width": float(edges[1] - edges[0]) * 0.95,
        "name": name,
        "opacity": opacity,
        "marker": {"color": color},
        "hovertemplate": "%{x:.4g}: %{y:.1%}<extra>" + name + "</extra>",
    }


def _quartiles(made: Forecasts) -> str:
    low, high = np.quantile(made.error, [0.25, 0.75])
    return f"{low:+.3g} and {high:+.3g}"


def _signed(values: np.ndarray) -> str:
    return f"{values.mean():+.3g}"
