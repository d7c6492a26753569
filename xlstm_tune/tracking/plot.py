"""The picture of a trial's run: what its best epoch predicted for the end of the validation part, as SVG.

Written out by hand, since it is drawn for every trial: a millisecond each, where a plotting library takes a fifth of a
second. The MLflow pages show it as they show any picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

Array = npt.NDArray[np.float64]
WIDTH, HEIGHT = 760, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 44, 40
ACTUAL, PREDICTED, INK = "#57606a", "#d1495b", "#24292f"


def forecast_picture(path: Path) -> str:
    """The SVG of a file with `predicted` and `actual` [m, H], samples one after another.

    A forecast of H steps is drawn from every H-th sample, counted from the last, over what happened; values of single
    sequences as points, predicted against actual. Raises OSError or ValueError when the file is damaged.
    """
    try:
        with safe_open(path, framework="np") as file:
            predicted, actual = (file.get_tensor(name).astype(np.float64) for name in ("predicted", "actual"))
            about = dict(file.metadata() or {})
    except Exception as error:  # safetensors raises an error of its own, which it does not export in all versions
        raise ValueError(f"{path} cannot be read: {error}") from error
    if predicted.ndim != 2 or predicted.shape != actual.shape or not predicted.size:
        raise ValueError(f"{path} must hold predicted and actual of one shape [m, H], got {predicted.shape}")
    target = about.get("target", "")
    if about.get("task") == "regression":
        return _against(predicted[:, 0], actual[:, 0], target)
    return _over_time(predicted, actual, target)


def _over_time(predicted: Array, actual: Array, target: str) -> str:
    samples, horizon = predicted.shape
    truth = np.concatenate([actual[:, 0], actual[-1, 1:]])  # [m + H - 1], step by step
    starts = range((samples - 1) % horizon, samples, horizon)
    x = _Scale(0, len(truth) - 1, LEFT, WIDTH - RIGHT)
    y, ticks = _vertical(np.concatenate([truth, *(predicted[start] for start in starts)]))
    lines = [_line(x(np.arange(len(truth))), y(truth), ACTUAL)]
    if horizon == 1:
        lines.append(_line(x(np.arange(samples)), y(predicted[:, 0]), PREDICTED))
    else:
        for start in starts:
            steps = np.arange(start, start + horizon)
            lines += [_line(x(steps), y(predicted[start]), PREDICTED), _dot(x(steps)[0], y(predicted[start])[0])]
    words = f"the last {len(truth)} steps of the validation part"
    return _page(f"{target}: forecast and what happened", words, ticks, lines)


def _against(predicted: Array, actual: Array, target: str) -> str:
    both = np.concatenate([predicted, actual])
    y, ticks = _vertical(both)
    low, high = _room(both)
    x = _Scale(low, high, LEFT, WIDTH - RIGHT)
    edge = np.array([low, high])
    lines = [_line(x(edge), y(edge), ACTUAL)]
    lines += [_dot(across, up) for across, up in zip(x(actual), y(predicted), strict=True)]
    words = f"actual value of the last {len(actual)} sequences of the validation part; on the line = predicted exactly"
    return _page(f"{target}: predicted against actual", words, ticks, lines)


class _Scale:
    """From values to pixels, linearly."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._start = low, start
        self._slope = (end - start) / (high - low or 1.0)

    def __call__(self, values: npt.ArrayLike) -> Array:
        return self._start + (np.asarray(values, dtype=np.float64) - self._low) * self._slope


def _room(values: Array) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    space = 0.05 * (high - low) or abs(high) or 1.0
    return low - space, high + space


def _vertical(values: Array) -> tuple[_Scale, list[str]]:
    """The upright scale and its labelled grid lines."""
    low, high = _room(values)
    y = _Scale(low, high, HEIGHT - BOTTOM, TOP)
    ticks = []
    for value in np.linspace(low, high, 5):
        up = float(y(value))
        ticks.append(f'<line x1="{LEFT}" y1="{up:.1f}" x2="{WIDTH - RIGHT}" y2="{up:.1f}" stroke="#eaeef2"/>')
        ticks.append(f'<text x="{LEFT - 8}" y="{up + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    return y, ticks


def _line(across: Array, up: Array, colour: str) -> str:
    points = " ".join(f"{one:.1f},{other:.1f}" for one, other in zip(across, up, strict=True))
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>'


def _dot(across: float, up: float) -> str:
    return f'<circle cx="{across:.1f}" cy="{up:.1f}" r="3" fill="{PREDICTED}" fill-opacity="0.75"/>'


def _page(title: str, words: str, ticks: Sequence[str], lines: Sequence[str]) -> str:
    legend = (
        f'<text x="{WIDTH - RIGHT}" y="22" text-anchor="end"><tspan fill="{ACTUAL}">actual</tspan>  '
        f'<tspan fill="{PREDICTED}">predicted</tspan></text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}" role="img">'
        f"<title>{escape(title)}</title>"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
        f'<text x="{LEFT}" y="22" font-size="14" font-weight="600">{escape(title[:70])}</text>{legend}'
        f"{''.join(ticks)}{''.join(lines)}"
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 12}" text-anchor="middle">{escape(words)}</text>'
        "</svg>"
    )
