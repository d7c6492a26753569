"""One look for all figures: a colour and a symbol per family, grey baselines, and the page's own colours.

Colours are names of the style sheet (`var(--series-1)`), which the page resolves for light and dark. The palettes are
Okabe and Ito's, darkened or lightened to a contrast of 3:1 with the page; a family has a symbol besides its colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xlstm_tune.report.leaderboard import number
from xlstm_tune.strict import counted as counted

Trace = dict[str, Any]

TEXT, MUTED, GRID, SURFACE = "var(--text)", "var(--muted)", "var(--grid)", "var(--surface)"
BASELINE, LIMIT, BAD, ACCENT, ACTUAL = (
    "var(--baseline)",
    "var(--limit)",
    "var(--bad)",
    "var(--accent)",
    "var(--text)",
)
_KNOWN = ("lstm", "slstm", "mlstm", "xlstm")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "star")
_METRICS = {
    "rmse": "RMSE",
    "mae": "MAE",
    "mse_standardised": "standardised MSE",
    "mae_standardised": "standardised MAE",
}
LOG_FROM = 30.0
"""Largest over smallest value from which an axis is logarithmic."""


def metric_title(metric: str) -> str:
    """`val_rmse` or `rmse` as a heading writes it."""
    plain = metric.removeprefix("val_")
    return _METRICS.get(plain, plain.replace("_", " "))


def family_name(family: str | None) -> str:
    """A trial whose family is not known yet is `unknown`."""
    return family or "unknown"


class Palette:
    """Colour and symbol of each family; the same in every figure of a page."""

    def __init__(self, families: Iterable[str | None]) -> None:
        others = sorted({family_name(one) for one in families} - set(_KNOWN))
        self.families = [*_KNOWN, *others]

    def color(self, family: str | None) -> str:
        """A colour of the style sheet."""
        return f"var(--series-{self._index(family) % len(_SYMBOLS) + 1})"

    def symbol(self, family: str | None) -> str:
        """A marker of plotly."""
        return _SYMBOLS[self._index(family) % len(_SYMBOLS)]

    def present(self, families: Iterable[str | None]) -> list[str]:
        """The families of these, each once, in the page's order."""
        found = {family_name(one) for one in families}
        return [*(one for one in self.families if one in found), *sorted(found - set(self.families))]

    def _index(self, family: str | None) -> int:
        name = family_name(family)
        return self.families.index(name) if name in self.families else len(self.families)


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """An axis of a figure."""
    base: dict[str, Any] = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "automargin": True,
        "tickfont": {"color": MUTED},
    }
    if title:
        base["title"] = {"text": title, "standoff": 10, "font": {"color": MUTED, "size": 13}}
    return base | more


def whole(count: int) -> dict[str, Any]:
    """Axis settings for whole numbers up to `count`: no fractions between few of them."""
    return {"dtick": 1} if count <= 12 else {}


def layout(x: Mapping[str, Any], y: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A figure's layout: transparent, with its legend above."""
    base: dict[str, Any] = {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": TEXT, "size": 13},
        "margin": {"l": 48, "r": 12, "t": 12, "b": 40},
        "xaxis": dict(x),
        "yaxis": dict(y),
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": TEXT}},
        "hoverlabel": {"bgcolor": SURFACE, "bordercolor": GRID, "font": {"color": TEXT}},
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": MUTED, "activecolor": TEXT},
    }
    return base | more


def is_wide(values: Sequence[float | None]) -> bool:
    """Whether values span so much that only a logarithmic axis shows them all; a few outliers do not decide."""
    known = sorted(one for one in values if one is not None and math.isfinite(one))
    if not known or known[0] <= 0:
        return False
    return known[min(len(known) - 1, round(0.98 * len(known)))] / known[0] > LOG_FROM


def log_if_wide(values: Sequence[float | None]) -> dict[str, Any]:
    """Axis settings for these values."""
    return {"type": "log", "dtick": 1} if is_wide(values) else {}


def level(value: float, x: Sequence[Any], name: str, color: str = LIMIT) -> Trace:
    """A horizontal line from the first to the last of x, named in the legend."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x[0], x[-1]],
        "y": [value, value],
        "name": name,
        "line": {"color": color, "width": 1.5, "dash": "dot"},
        "hovertemplate": f"{name}: {number(value)}<extra></extra>",
    }


def intervals(
    points: Iterable[tuple[str, float, float, float]], name: str, *, sure: bool, hover: str, symbol: str = ""
) -> Trace:
    """Values with their intervals, side by side for the eye: each a label, the value, and the ends of its interval.

    sure: what is told from chance, in colour and filled. hover: what the value is, as plotly writes it. symbol: of the
    values, other than a circle.
    """
    labels, values, lows, highs = zip(*points, strict=True)
    color = ACCENT if sure else BASELINE
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "showlegend": True,
        "y": list(labels),
        "x": list(values),
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [high - value for value, high in zip(values, highs, strict=True)],
            "arrayminus": [value - low for value, low in zip(values, lows, strict=True)],
            "color": color,
            "thickness": 2,
            "width": 5,
        },
        "marker": {"color": color, "size": 10, "symbol": symbol or ("circle" if sure else "circle-open")},
        "hovertemplate": f"%{{y}}: {hover}<extra></extra>",
    }


def duration(seconds: float | None) -> str:
    """1 h 5 min, 3 min 20 s, 12.5 s; empty for None."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if seconds < 48 * 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    return f"{int(seconds // 86400)} d {int(seconds % 86400 // 3600)} h"


def thinned(count: int, most: int) -> slice:
    """Every k-th of `count` things, so that at most `most` are left."""
    return slice(None, None, max(1, -(-count // most)))
