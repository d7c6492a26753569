"""Which settings matter, and which values do well: importances, parallel coordinates, slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.distributions import CategoricalDistribution

from xlstm_tune.report.blocks import Block, Figure, Figures, Section, Sentences, label
from xlstm_tune.report.budget import early_end, early_ends
from xlstm_tune.report.leaderboard import number
from xlstm_tune.report.parallel import parallel_coordinates
from xlstm_tune.report.record import Record
from xlstm_tune.report.study import Rebuilt, quiet
from xlstm_tune.report.style import ACCENT, Trace, axis, family_name, layout, log_if_wide, metric_title

REFUSALS = (ValueError, RuntimeError, ArithmeticError, LookupError, TypeError)
"""What Optuna raises when a study does not hold what a figure needs."""
FEWEST = 5
"""Scored trials from which an importance is shown."""
SLICES = 16
"""Settings drawn, the most important first."""
MOST_VALUES = 8
"""Whose best is told one by one."""


def settings(record: Record) -> Section | None:
    """Figures of the searched settings; a sentence for each one that the trials do not allow yet."""
    rebuilt = record.rebuilt
    if not rebuilt.distributions or not record.scored:
        return Section("settings", "Settings", blocks=[Sentences(["No settings can be compared yet."])])
    weights, importance = importances(rebuilt)
    order = sorted(rebuilt.distributions, key=lambda key: -weights.get(key, 0.0))
    blocks: list[Block] = [importance, parallel_coordinates(record, rebuilt)]
    blocks += _slices(record, rebuilt, order[:SLICES])
    lead = "A setting that exists for some models only (a pattern, say) is judged by the trials that have it."
    if early := early_ends(map(early_end, record.scored)):
        lead += f" Trials that were {early} count with their best epoch."
    return Section("settings", "Settings", lead, blocks)


def importances(rebuilt: Rebuilt) -> tuple[dict[str, float], Figure | Sentences]:
    """Optuna's PED-ANOVA, which can deal with settings that depend on others: share by setting, and the figure."""
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import plot_param_importances

    points = [trial.params for trial in rebuilt.study.get_trials(deepcopy=False) if trial.value is not None]
    if len(points) < FEWEST or all(point == points[0] for point in points):
        return {}, Sentences([f"The importance of settings needs {FEWEST} scored trials with different settings."])
    try:
        with quiet():
            figure = plot_param_importances(rebuilt.study, evaluator=PedAnovaImportanceEvaluator())
        bars = figure.data[0]
        weights = {str(key): float(value) for key, value in zip(bars.y, bars.x, strict=True)}
    except REFUSALS as error:
        return {}, Sentences([f"The importance of settings cannot be told yet ({_reason(error)})."])
    if not weights or not sum(weights.values()):
        return {}, Sentences(["The importance of settings cannot be told yet (too few trials, or no variation)."])
    trace: Trace = {
        "type": "bar",
        "orientation": "h",
        "x": list(weights.values()),
        "y": [label(key) for key in weights],
        "text": [f"{100 * value:.0f} %" for value in weights.values()],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": ACCENT},
        "hovertemplate": "%{y}: %{x:.1%}<extra></extra>",
    }
    most = sorted(weights, key=lambda key: -weights[key])
    rest = f", then {most[1]} ({100 * weights[most[1]]:.0f} %)" if len(most) > 1 else ""
    caption = (
        f"Share of each setting in reaching the best tenth of the trials (PED-ANOVA): {most[0]} matters most "
        f"({100 * weights[most[0]]:.0f} %){rest}. With few trials this is a hint, not a finding."
    )
    x = axis("Share", tickformat=".0%", range=[0, 1.18 * max(weights.values())])
    shape = layout(x, axis(), showlegend=False, bargap=0.4)
    return weights, Figure("importances", "Importance of settings", caption, [trace], shape, 90 + 34 * len(weights))


def _slices(record: Record, rebuilt: Rebuilt, keys: list[str]) -> list[Block]:
    from optuna.visualization import plot_slice

    title = f"{metric_title(record.metric)}, validation"
    figures, refused = [], []
    for place, key in enumerate(keys):
        try:
            with quiet():
                points = plot_slice(rebuilt.study, params=[key], target_name=title).data[0]
            figures.append(_slice(record, rebuilt, key, points, place, title))
        except REFUSALS as error:
            refused.append(f"{key} ({_reason(error)})")
    blocks: list[Block] = [Figures(figures)] if figures else []
    if refused:
        blocks.append(Sentences([f"Not drawn: {', '.join(refused)}."]))
    return blocks


def _slice(record: Record, rebuilt: Rebuilt, key: str, points: Any, place: int, title: str) -> Figure:
    """Optuna's slice of one setting, in the families' colours."""
    rows = [rebuilt.rows[number] for number in points.marker.color]
    values, scores = list(points.x), list(points.y)  # once, as plotly takes long to give them
    data: list[Trace] = []
    for family in record.palette.present(row["family"] for row in rows):
        chosen = [index for index, row in enumerate(rows) if family_name(row["family"]) == family]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label(family),
                "x": [
                    label(values[index].strip("'")) if isinstance(values[index], str) else values[index]
                    for index in chosen
                ],
                "y": [scores[index] for index in chosen],
                "text": [f"trial {rows[index]['trial']}" for index in chosen],
                "hovertemplate": "%{text}: %{x}, %{y:.4g}<extra></extra>",
                "marker": {
                    "color": record.palette.color(family),
                    "symbol": record.palette.symbol(family),
                    "size": 7,
                    "opacity": 0.75,
                },
            }
        )
    distribution = rebuilt.distributions[key]
    best = min(range(len(rows)), key=scores.__getitem__)
    shown = values[best].strip("'") if isinstance(values[best], str) else f"{values[best]:.4g}"
    x = axis(label(key))
    if isinstance(distribution, CategoricalDistribution):
        choices = [label(repr(one).strip("'")) for one in distribution.choices]
        x |= {"type": "category", "categoryorder": "array", "categoryarray": choices}
    elif distribution.log:
        x |= {"type": "log", "dtick": "D2"}
    y = axis(title, **log_if_wide([row[record.objective] for row in record.scored]))
    best_one = f"best of {len(rows)} trials" if len(rows) > 1 else "only trial with it"
    caption = f"{key}: the {best_one} had {shown}."
    if isinstance(distribution, CategoricalDistribution):
        caption += _each_best(values, scores)
    return Figure(f"slice-{place}", f"Objective by {key}", caption, data, layout(x, y, showlegend=False), 260)


def _each_best(values: Sequence[Any], scores: Sequence[float]) -> str:
    """A sentence: the best objective of each value, so that a small lead is seen as one; "" for one value or many."""
    best: dict[str, float] = {}
    for value, score in sorted(zip(values, scores, strict=True), key=lambda point: point[1]):
        best.setdefault(str(value).strip("'"), score)
    if not 1 < len(best) <= MOST_VALUES:
        return ""
    return f" The best of each value: {', '.join(f'{label(value)} {number(score)}' for value, score in best.items())}."


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")[:160] or type(error).__name__
