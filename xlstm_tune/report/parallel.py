"""Parallel coordinates: one line per trial through the values of all settings, to its score.

Drawn from plain lines. Plotly's own parallel coordinates need WebGL, which remote desktops lack, and have no place for
a setting that a trial does not have, which is every trial of a conditional space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from xlstm_tune.report.blocks import Figure, Sentences, label
from xlstm_tune.report.record import Record
from xlstm_tune.report.study import Rebuilt
from xlstm_tune.report.style import GRID, Trace, family_name, layout, metric_title

BEST = 0.1
"""Share of the trials that stands out."""
FEWEST = 3
"""Trials that stand out at least, where there are twice as many."""
ABSENT = -0.14
"""Where lines of trials without the setting go through."""


def parallel_coordinates(record: Record, rebuilt: Rebuilt) -> Figure | Sentences:
    """All scored trials; the best tenth stands out, in the families' colours."""
    rows = sorted(record.scored, key=lambda row: row[record.objective])
    keys = [key for key in rebuilt.distributions if len({str(row["params"].get(key)) for row in rows}) > 1]
    if len(rows) < 2 or not keys:
        return Sentences(["Parallel coordinates need two scored trials with different settings."])
    scales = {key: _Scale(rebuilt.distributions[key], [row["params"].get(key) for row in rows]) for key in keys}
    top = max(min(FEWEST, len(rows) // 2), math.ceil(BEST * len(rows)))
    scores = [row[record.objective] for row in rows]
    score = _Scale(None, scores, wide=scores[-1] > 30 * scores[0] > 0)
    data: list[Trace] = []
    for stands_out, group in ((False, rows[top:]), (True, rows[:top])):
        for family in record.palette.present(row["family"] for row in group):
            chosen = [row for row in group if family_name(row["family"]) == family]
            data.append(_lines(chosen, keys, scales, score, record, family, stands_out))
    named = {trace["name"] for trace in data if trace["showlegend"]}
    for trace in data:
        if trace["name"] not in named:  # none of this family stands out
            trace["showlegend"] = True
    width = len(keys)
    x: dict[str, Any] = {
        "range": [-0.35, width + 0.55],
        "tickvals": list(range(width + 1)),
        "ticktext": [*(label(_short(key), 24) for key in keys), metric_title(record.metric)],
        "side": "top",
        "gridcolor": GRID,
        "zeroline": False,
        "fixedrange": True,
        "tickfont": {"size": 12},
    }
    y: dict[str, Any] = {"range": [-0.22, 1.06], "visible": False, "fixedrange": True}
    missing = any(key not in row["params"] for row in rows for key in keys)
    caption = (
        f"Each line is a trial, from its settings to its {metric_title(record.metric)} on the right; of {len(rows)} "
        f"the best{f' {top} stand' if top > 1 else ' stands'} out. {_common(rows[:top], keys)}"
        + (" A line that goes through “none” belongs to a trial without that setting." if missing else "")
    )
    shape = layout(
        x,
        y,
        margin={"l": 8, "r": 8, "t": 36, "b": 8},
        legend={"orientation": "h", "x": 0, "y": -0.02},
        annotations=_ticks([*(scales[key] for key in keys), score]),
    )
    return Figure("parallel", "Settings of all trials", caption, data, shape, 480, max(640, 110 * (width + 1)))


class _Scale:
    """Values of one axis as heights between 0 and 1, with a few labelled ticks."""

    def __init__(self, distribution: BaseDistribution | None, values: Sequence[Any], wide: bool = False) -> None:
        self._choices: list[Any] | None = None
        if isinstance(distribution, CategoricalDistribution):
            present = {value for value in values if value is not None}
            self._choices = [one for one in distribution.choices if one in present]
            if all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in self._choices):
                self._choices.sort()
            self.ticks = [(self.height(one), str(one)) for one in self._choices[:12]]
            self.ticks += [(ABSENT, "none")] if None in values else []
            return
        known = [float(value) for value in values if value is not None]
        self._log = (wide or bool(getattr(distribution, "log", False))) and min(known) > 0
        self._low, self._high = self._plain(min(known)), self._plain(max(known))
        heights = (0.0, 1 / 3, 2 / 3, 1.0) if self._high > self._low else (0.5,)
        self.ticks = [(height, self._written(height)) for height in heights]
        self.ticks += [(ABSENT, "none")] if None in values else []

    def height(self, value: Any) -> float:
        if value is None:
            return ABSENT
        if self._choices is not None:
            return (self._choices.index(value) + 0.5) / len(self._choices)
        span = self._high - self._low
        return (self._plain(float(value)) - self._low) / span if span else 0.5

    def _plain(self, value: float) -> float:
        return math.log10(value) if self._log else value

    def _written(self, height: float) -> str:
        value = self._low + height * (self._high - self._low)
        return f"{10**value if self._log else value:.3g}"


def _lines(
    rows: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    scales: Mapping[str, _Scale],
    score: _Scale,
    record: Record,
    family: str,
    stands_out: bool,
) -> Trace:
    """All trials of one family as one trace, with gaps between them: hundreds of traces would be slow."""
    x: list[float | None] = []
    y: list[float | None] = []
    text: list[str | None] = []
    for row in rows:
        x += [*range(len(keys) + 1), None]
        heights = [*(scales[key].height(row["params"].get(key)) for key in keys), score.height(row[record.objective])]
        y += [*(round(height, 4) for height in heights), None]
        text += [label(f"trial {row['trial']}: {row[record.objective]:.4g}")] * (len(keys) + 1) + [None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "text": text,
        "hovertemplate": "%{text}<extra></extra>",
        "name": label(family),
        "legendgroup": label(family),
        "showlegend": stands_out,
        "line": {"color": record.palette.color(family), "width": 2 if stands_out else 1},
        "opacity": 0.95 if stands_out else max(0.15, min(0.5, 12 / max(1, len(rows)))),
    }


def _ticks(scales: Sequence[_Scale]) -> list[dict[str, Any]]:
    """The axes' labels, on the right of each axis, on a ground that lines do not shine through."""
    return [
        {
            "x": place,
            "y": height,
            "text": label(text, 14),
            "showarrow": False,
            "xanchor": "left",
            "xshift": 5,
            "bgcolor": "var(--page)",
            "opacity": 0.85,
            "borderpad": 1,
            "font": {"size": 11},
        }
        for place, scale in enumerate(scales)
        for height, text in scale.ticks
    ]


def _common(best: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
    """What all of the best trials share."""
    shared = []
    for key in keys:
        values = {str(row["params"].get(key)) for row in best}
        if len(best) > 2 and len(values) == 1 and values != {"None"}:
            shared.append(f"{_short(key)} {values.pop()}")
    return f"All of these have {', '.join(shared)}." if shared else ""


def _short(key: str) -> str:
    """Without the section of the search file."""
    return key.partition(".")[2] or key
