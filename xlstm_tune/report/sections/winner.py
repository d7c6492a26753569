"""The winner: what it predicts beside what happened, and where its errors lie."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np

from xlstm_tune.layout import ABOUT, CHAMPION
from xlstm_tune.report.blocks import Block, Figure, Figures, Section, Sentences, label
from xlstm_tune.report.forecasts import Forecasts, Model, forecasts_of, models_of, samples_of
from xlstm_tune.report.leaderboard import number
from xlstm_tune.report.record import MADE_ANEW, Record
from xlstm_tune.report.sections.errors import by_series, by_step, by_target, residuals
from xlstm_tune.report.style import ACTUAL, BASELINE, GRID, Trace, axis, counted, layout, metric_title, thinned

POINTS = 300
"""Of a curve of forecasts: what a screen shows."""
DOTS = 2000
"""Of a scatter."""
PANELS = 4
"""Pairs of series and step that are drawn."""


def winner(record: Record) -> Section | None:
    """Figures of the winner on the test part; of the validation part while there are no test predictions."""
    best = record.board.winner
    if best is None or best.family is None:
        return None
    for part in ("test", "validation"):
        models = models_of(record.predictions, part)
        mine = next((one for one in models if one.trial == best.trial), None)
        if mine is not None:
            break
    else:
        text = "Its predictions are not known yet: no trial's predictions are kept before the search has ended."
        if record.status == "completed":
            text = f"Its predictions are not in results/predictions; where its weights are there, {MADE_ANEW}."
        return Section("winner", "The winner", blocks=[Sentences([text])])
    found = {model: made for model in models if (made := forecasts_of(record.predictions, part, model)) is not None}
    if mine not in found:
        return Section("winner", "The winner", blocks=[Sentences(["None of its predictions is a number."])])
    # Targets may have different units: of several, the figures are those of one.
    target = found[mine].first_target
    found = {model: one for model, made in found.items() if (one := made.of_target(target)) is not None}
    against = _best_baseline(record, found)
    thinned_out = _thinned_out(record, part, mine)
    blocks: list[Block] = []
    if thinned_out:
        blocks.append(Sentences([f"{thinned_out} The figures of this section are made of these."]))
    blocks += by_target(record, found[mine], mine, part)
    if found[mine].step.max() == 1 and _is_regression(record, found[mine]):
        blocks.append(_scatter(record, found[mine], part, thinned_out))
    else:
        blocks.append(Figures(_panels(record, found, mine, against, part, bool(thinned_out))))
    blocks += [
        block for block in (by_step(record, found, part), by_series(record, found, mine, against, part)) if block
    ]
    blocks.append(residuals(record, found, mine, against, part, thinned_out))
    lead = f"{best.model}, trial {best.trial}, on the {part} part" + (
        ", which no choice was made on." if part == "test" else "; its test predictions are not known."
    )
    again = _trained_again(record, best.trial)
    return Section("winner", "The winner", f"{lead} {again}".rstrip(), blocks)


def _trained_again(record: Record, trial: int | None) -> str:
    """That the model which predicts is not the one of this page, in a sentence; empty where it is, or nobody knows."""
    try:
        about = json.loads((record.folder / CHAMPION / ABOUT).read_bytes())
        if not about["refit"] or about["trial"] != trial:
            return ""
        epochs, score = int(about["refit_epochs"]), float(about["refit_scores"]["test"][record.metric])
    except (OSError, ValueError, LookupError, TypeError):  # there is none, or it is damaged, which predict tells
        return ""
    return (
        "The model that predict uses was trained again on training and validation part, for "
        f"{counted(epochs, 'epoch')}, and has a test {metric_title(record.metric)} of {number(score)}; all else here "
        "is of the one before."
    )


def _thinned_out(record: Record, part: str, mine: Model) -> str:
    """That not all of the part's predictions are in the table, in a sentence; empty where they are."""
    kept, total = samples_of(record.predictions, part, mine), (record.data.get("samples") or {}).get(part)
    if total is None or kept >= total:
        return ""
    are = "is" if kept == 1 else "are"
    return f"Predictions of {kept:,} of the {total:,} {part} samples {are} kept, drawn evenly."


def _best_baseline(record: Record, found: dict[Model, Forecasts]) -> Model | None:
    """The one that is best on the validation part."""
    for entry in record.board.baselines:
        for model in found:
            if model.trial is None and model.name == entry.model:
                return model
    return None


def _is_regression(record: Record, mine: Forecasts) -> bool:
    """As the data say; else where no series has a curve."""
    task = record.data.get("task") or (record.spec.get("data") or {}).get("task")
    return task == "regression" if task else bool(np.bincount(mine.series).max() <= 2)


def _panels(
    record: Record, found: dict[Model, Forecasts], mine: Model, against: Model | None, part: str, thinned_out: bool
) -> list[Figure]:
    """Forecast and actual over the end of the part, for a few series and steps.

    thinned_out: whether there are more samples than there are predictions of.
    """
    kept_one, kept_ones = (" that is kept", " that are kept") if thinned_out else ("", "")
    all_mine = found[mine]
    last = int(all_mine.step.max())
    pairs = [(series, step) for series in _chosen_series(all_mine) for step in _chosen_steps(last)]
    if len(pairs) > PANELS:  # of several series the first and last step
        pairs = [(series, step) for series, step in pairs if step in (1, last)]
    figures = []
    for place, (series, step) in enumerate(pairs[:PANELS]):
        name, target = all_mine.names[series], all_mine.first_target
        data: list[Trace] = []
        kept = _curve(all_mine, name, target, step)
        times = [kept.times[one] for one in kept.time]
        data.append(_line(times, kept.actual, "actual", ACTUAL, 1.5))
        errors = [("the model", kept.rmse())]
        if against is not None:
            theirs = _curve(found[against], name, target, step)
            x = [theirs.times[one] for one in theirs.time]
            data.append(_line(x, theirs.predicted, label(against.name), BASELINE, 1.5, "dot"))
            errors.append((f"the baseline {against.name}", theirs.rmse()))
        data.append(_line(times, kept.predicted, label(mine.title), record.palette.color(mine.name), 2))
        of = f"{name}, " if len(all_mine.names) > 1 else ""
        if all_mine.which:
            of += f"{all_mine.which}, "
        ahead = f"{counted(step, 'step')} ahead" if last > 1 else "next value"
        total = int(np.sum(_mask(all_mine, name, target, step)))
        every = (
            f"{'the' if thinned_out else 'all'} {total} {part} samples{kept_ones}"
            if total > 1
            else f"the only {part} sample{kept_one}"
        )
        shown = f"the last {len(times)} of {total:,} {part} samples{kept_ones}" if total > len(times) else every
        caption = f"{of}{ahead}: {shown}. RMSE over {'these' if total > 1 else 'it'}: " + ", ".join(
            f"{number(value)} for {who}" for who, value in errors
        )
        dates = all(re.match(r"\d{4}-\d{2}-\d{2}", one) for one in times)
        x_axis = axis("Start of the forecast" if last > 1 else "", type="date" if dates else "category", nticks=6)
        x_axis["tickangle"] = 0 if dates else "auto"
        title = f"Forecast and actual, {of}{ahead}"
        figures.append(
            Figure(f"forecast-{place}", title, f"{caption}.", data, layout(x_axis, axis(label(target, 40))), 320)
        )
    return figures


def _chosen_series(mine: Forecasts) -> list[int]:
    """The only one, or the one of middling error and the worst."""
    keys, errors = mine.rmse_by_series()
    order = [keys[index] for index in np.argsort(errors)]
    return order if len(order) == 1 else [order[(len(order) - 1) // 2], order[-1]]


def _chosen_steps(last: int) -> list[int]:
    return sorted({1, (last + 1) // 2, last})


def _mask(found: Forecasts, name: str, target: str, step: int) -> np.ndarray:
    if name not in found.names or target not in found.targets:
        return np.zeros(len(found.step), dtype=bool)
    same = (found.series == found.names.index(name)) & (found.target == found.targets.index(target))
    return np.asarray(same & (found.step == step))


def _curve(found: Forecasts, name: str, target: str, step: int) -> Forecasts:
    """The last rows of one series, target and step."""
    return found.select(np.flatnonzero(_mask(found, name, target, step))[-POINTS:])


def _line(x: Sequence[str], y: np.ndarray, name: str, color: str, width: float, dash: str = "solid") -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [label(one) for one in x],
        "y": y,
        "name": name,
        "line": {"color": color, "width": width, "dash": dash},
        "hovertemplate": "%{x}: %{y:.4g}<extra>" + name + "</extra>",
    }


def _scatter(record: Record, mine: Forecasts, part: str, thinned_out: str) -> Figure:
    """Predicted against actual, of one target; on the diagonal they are the same. thinned_out: of `_thinned_out`."""
    kept = mine.select(np.arange(len(mine.step))[thinned(len(mine.step), DOTS)])
    low, high = float(min(kept.actual.min(), kept.predicted.min())), float(max(kept.actual.max(), kept.predicted.max()))
    assert record.board.winner is not None
    family = record.board.winner.family
    labels = [
        label(f"{kept.names[series]} {kept.times[time]}") for series, time in zip(kept.series, kept.time, strict=True)
    ]
    data: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [low, high],
            "y": [low, high],
            "name": "predicted = actual",
            "line": {"color": GRID, "width": 1.5},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "x": kept.actual,
            "y": kept.predicted,
            "text": labels,
            "hovertemplate": "%{text}<br>actual %{x:.4g}, predicted %{y:.4g}<extra></extra>",
            "name": "samples",
            "marker": {
                "color": record.palette.color(family),
                "symbol": record.palette.symbol(family),
                "size": 7,
                "opacity": 0.6,
            },
        },
    ]
    shown = "" if len(kept.step) == len(mine.step) else f" ({len(kept.step):,} of them drawn, evenly)"
    of = f"{mine.which}: " if mine.which else ""
    caption = (
        f"{of}{counted(len(mine.step), f'{part} sample')}{shown}; on the line a prediction is right. The model "
        f"{_explains(mine)}forecasts {_off(float(np.mean(mine.error)))}."
    ) + f" {thinned_out}".rstrip()
    target = label(mine.first_target, 40)
    shape = layout(axis(f"Actual {target}"), axis(f"Predicted {target}"))
    return Figure("scatter", "Predicted against actual", caption, data, shape, 440)


def _off(bias: float) -> str:
    """In which direction the errors go, all in all."""
    if not bias:
        return "neither too high nor too low on average"
    return f"{number(abs(bias))} too {'high' if bias > 0 else 'low'} on average"


def _explains(mine: Forecasts) -> str:
    """How much of the variance the model explains, up to `and`; empty where there is no variance."""
    if mine.actual.min() == mine.actual.max():
        return ""
    explained = 1 - float(np.mean(mine.error**2) / np.var(mine.actual))
    if explained < 0:
        return f"errs more than the part's own mean would (R² {number(explained)}), and "
    return f"explains {100 * explained:.0f} % of the variance, and "
