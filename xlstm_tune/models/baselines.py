"""What every search must beat: predictions without a network, on the same samples and in the target's own units.

Shapes: N samples, L lookback, H horizon, K targets, R rows, F features, n samples of one part.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xlstm_tune.models.drawn import drawn

if TYPE_CHECKING:
    from xlstm_tune.data.windows import Prepared

Array = NDArray[np.float64]
Index = NDArray[np.int64]

JUDGED = ("validation", "test")
RIDGE = tuple(float(f"{digit}e{power}") for power in range(-7, 9) for digit in (1, 3))
"""Strengths that may be tried, as shares of the mean eigenvalue of the inputs' covariance."""
NOTHING_LEFT = 100.0
"""Times the number of inputs: the strength from which even a direction that holds all variance keeps at most 1 %."""
ROUNDING = 1e-13
"""Variance, in standardised units, that float32 values have from rounding alone: nothing is learnt from less."""
SEGMENTS = 12
TREND = 25
"""Steps of DLinear's moving average, as published."""
FIT_ROWS = 200_000
"""At most so many (window, target) pairs are fitted on …"""
FIT_WORK = 3e10
"""… and fewer where L² of each would come to more than this, but never fewer than 10 L."""
LONG = 1_000
"""Steps of a lookback from which the linear forecasts take long: seconds here, minutes at 5,000."""
BLOCK = 4_000_000
"""Numbers gathered at a time: 32 MB."""


@dataclass(frozen=True)
class Baseline:
    """One baseline's predictions of the parts on which models are judged."""

    name: str
    predictions: dict[str, Array]
    """"validation" and "test" → [n, H, K] in the target's own units."""
    settings: dict[str, float] = field(default_factory=dict)
    """What was chosen on validation, such as the ridge strength."""


def baselines(data: Prepared, groups: Index | None = None, targets: Array | None = None) -> list[Baseline]:
    """Every baseline that fits the task.

    targets: of the table [R, K], which some repeat. Not given, they are taken back from what is standardised, with its
    rounding: 0 is 9e-8 then, as wrong as can be where the table has 0 and errors are weighed by the size of both.

    Forecast: `mean` of the training part, of several series each series' own where training saw it; `last_value`;
    `seasonal_naive`, the value a season before (where a season is known); `nlinear` and `dlinear` (Zeng et al. 2023),
    linear maps from lookback to horizon shared by all targets.
    Regression: `mean` of the training part; `group_mean`, of the training samples with the same number in `groups` [N]
    (left out without groups, or when a judged sample's group is not in the training part); `linear`, on each feature's
    means over twelve segments of the sequence and its static inputs. Linear maps are fitted by ridge regression in
    closed form, the strength chosen on validation.
    """
    if data.task == "forecast":
        own = _own_units(data, data.targets) if targets is None else targets
        found = [_mean(data), _last_value(data, own)]
        if data.season > 1:
            found.append(_seasonal_naive(data, own))
        return [*found, *_linear_forecasts(data)]
    found = [_mean(data)]
    by_group = _group_mean(data, groups)
    if by_group:
        found.append(by_group)
    return [*found, _linear_regression(data)]


def best_possible(data: Prepared) -> dict[str, float] | None:
    """RMSE of the known conditional mean on each part, in the target's units; None where it is not known."""
    if data.oracle is None:
        return None
    error = data.oracle - _own_units(data, data.targets)  # [N, K]
    return {part: float(np.sqrt(np.mean(error[index] ** 2))) for part, index in data.parts.items() if len(index)}


def mase_scale(data: Prepared, offsets: Index) -> list[float | None] | None:
    """What MASE divides the mean absolute error by: mean |y_t − y_{t−m}| per target, in its own units.

    m is the season (1 where none is known), t every row that a training sample forecasts, each once, and both rows of
    one series; all series are pooled, so those with more rows weigh more. Source: Hyndman & Koehler 2006, "Another look
    at measures of forecast accuracy". offsets: int64 [S + 1], the first row of each series, and R.
    None for a regression, whose sequences do not follow each other; of a target, where no such pair of rows exists or
    none of them differ.
    """
    if data.task != "forecast":
        return None
    rows = _aimed_at(data)
    first = offsets[np.searchsorted(offsets, rows, side="right") - 1]
    rows = rows[rows - data.season >= first]
    if not len(rows):
        return [None] * len(data.target_names)
    changes = np.abs(data.targets[rows].astype(np.float64) - data.targets[rows - data.season]).mean(0) * data.target_std
    return [float(change) if change > 0 else None for change in changes]


def _own_units(data: Prepared, standardised: NDArray[np.floating]) -> Array:
    """[…, K] from units of the training part's deviation to the target's own."""
    return data.in_units(standardised)


def _aimed_at(data: Prepared) -> Index:
    """Rows that training windows forecast, each once, in their order."""
    ends = data.ends[data.parts["train"]]  # all different
    windows = np.zeros(len(data.targets) + 1, dtype=np.int32)
    windows[ends] = 1
    windows[ends + data.horizon] -= 1
    return np.flatnonzero(np.cumsum(windows, out=windows)[:-1])


def _mean(data: Prepared) -> Baseline:
    """Of a forecast's several series each its own mean where training saw it; else that of the training part."""
    known, means = np.empty(0, dtype=np.int64), np.empty((0, len(data.target_names)))
    if data.task == "forecast" and np.any(data.starts != data.starts[0]):
        known, means = _series_means(data)
    choices = np.concatenate([means, data.target_mean[None]])

    def predict(part: str) -> Array:
        starts = data.starts[data.parts[part]]
        place = np.searchsorted(known, starts)
        seen = np.append(known, -1)[place] == starts
        return np.repeat(choices[np.where(seen, place, len(known))][:, None], data.horizon, axis=1)

    return Baseline("mean", {part: predict(part) for part in JUDGED})


def _series_means(data: Prepared) -> tuple[Index, Array]:
    """First rows of the S series that training saw, ascending, and the means [S, K] of what it forecasts of each."""
    rows = _aimed_at(data)
    known = np.unique(data.starts[data.parts["train"]])
    borders = np.searchsorted(rows, known)
    total = np.add.reduceat(data.targets[rows], borders, axis=0, dtype=np.float64)
    return known, _own_units(data, total / np.diff(borders, append=len(rows))[:, None])


def _last_value(data: Prepared, own: Array) -> Baseline:
    """own: targets [R, K]."""

    def predict(part: str) -> Array:
        last = own[data.ends[data.parts[part]] - 1]  # [n, K]
        return np.repeat(last[:, None], data.horizon, axis=1)

    return Baseline("last_value", {part: predict(part) for part in JUDGED})


def _seasonal_naive(data: Prepared, own: Array) -> Baseline:
    """Step h repeats the same step of the last whole season; the last value where the history is too short for that.

    own: targets [R, K].
    """
    back = np.arange(data.horizon) % data.season - data.season  # from the end of the input

    def predict(part: str) -> Array:
        index = data.parts[part]
        rows = data.ends[index][:, None] + back
        rows = np.where(rows < data.starts[index][:, None], data.ends[index][:, None] - 1, rows)
        repeated: Array = own[rows]
        return repeated

    return Baseline("seasonal_naive", {part: predict(part) for part in JUDGED}, {"season": float(data.season)})


def _linear_forecasts(data: Prepared) -> list[Baseline]:
    """NLinear and DLinear from one pass over the training windows.

    Both are linear in the window x [L], so the moments of (x, y) are all that either needs. NLinear maps x − x_L to
    y − x_L. DLinear maps (trend, remainder) = (M x, x − M x), M a moving average, to y: the window's weights are then
    w = Mᵀu + (1 − M)ᵀv, and the smallest |u|² + |v|² with a given w is wᵀ G⁻¹ w with G = MᵀM + (1 − M)ᵀ(1 − M), so the
    ridge is one on G^−½ w, for inputs G^½ x.
    """
    length = data.lookback
    train, judged = _moments(data, "train"), _moments(data, "validation")
    average = _moving_average(length)
    remainder = np.eye(length) - average
    spread = average.T @ average + remainder.T @ remainder
    return [
        _fit_forecast(data, "nlinear", train.less(length - 1), judged.less(length - 1), None),
        _fit_forecast(data, "dlinear", train, judged, spread),
    ]


@dataclass(frozen=True)
class _Moments:
    """Of pairs (x, y) of a window and what follows it: all that a linear map is fitted and judged by."""

    mean: Array
    """[L + H]"""
    covariance: Array
    """[L + H, L + H]"""

    def less(self, step: int) -> _Moments:
        """Of the pairs less their value at one step: (x, y) → (x − x_L, y − x_L)."""
        covariance = self.covariance - self.covariance[step]
        covariance -= covariance[:, step : step + 1].copy()
        return _Moments(self.mean - self.mean[step], covariance)


def _moments(data: Prepared, part: str) -> _Moments:
    length = data.lookback
    size = length + data.horizon
    total, second, count = np.zeros(size), np.zeros((size, size)), 0
    for rows in _pairs(data, part, limit=int(max(10 * length, min(FIT_ROWS, FIT_WORK / length**2)))):
        total += rows.sum(0)
        second += rows.T @ rows
        count += len(rows)
    mean = total / count
    return _Moments(mean, second / count - np.outer(mean, mean))


def _fit_forecast(data: Prepared, name: str, train: _Moments, judged: _Moments, metric: Array | None) -> Baseline:
    """A linear map from the window to the horizon, in NLinear's case from and to what is less the last value.

    train, judged: of the training and validation part; metric: G [L, L] of the ridge; None = 1.
    """
    minus_last = name == "nlinear"
    length = data.lookback
    root = None
    if metric is not None:
        values, vectors = np.linalg.eigh(metric)
        root = vectors * np.sqrt(values) @ vectors.T

    def halves(second: Array) -> tuple[Array, Array]:
        """Of the inputs [L, L], and of these with the outputs [L, H]."""
        inputs, cross = second[:length, :length], second[:length, length:]
        return (inputs, cross) if root is None else (root @ inputs @ root, root @ cross)

    fits = _ridge(*halves(train.covariance))
    # The sum of squares of x W − y needs no more of the validation part than the second moments of (x, y).
    off = judged.mean - train.mean
    inputs, cross = halves(judged.covariance + np.outer(off, off))
    strength, fit = min(fits, key=lambda one: float((one[1] * (inputs @ one[1] - 2 * cross)).sum()))
    weight = fit if root is None else root @ fit

    def predict(part: str) -> Array:
        out = np.empty((len(data.parts[part]) * len(data.target_names), data.horizon))
        done = 0
        for windows in _pairs(data, part, horizon=False):
            base = windows[:, -1:] if minus_last else 0.0
            forecast = (windows - base - train.mean[:length]) @ weight + train.mean[length:] + base
            out[done : done + len(windows)] = forecast
            done += len(windows)
        by_sample = out.reshape(len(data.parts[part]), len(data.target_names), data.horizon).transpose(0, 2, 1)
        return _own_units(data, by_sample)

    return Baseline(name, {part: predict(part) for part in JUDGED}, {"ridge": strength})


def _pairs(data: Prepared, part: str, limit: int | None = None, horizon: bool = True) -> Iterator[Array]:
    """Blocks [rows, L + H] (or [rows, L]): one target's window and what follows it, sample by sample, target by target.

    limit: of how many pairs at most (`drawn`); None = of all.
    """
    ends, targets = data.ends[data.parts[part]], len(data.target_names)
    total = len(ends) * targets
    picked = drawn(total, total if limit is None else limit)
    steps = np.arange(-data.lookback, data.horizon if horizon else 0)
    size = max(1, BLOCK // len(steps))
    for first in range(0, len(picked), size):
        sample, target = np.divmod(picked[first : first + size], targets)
        yield data.targets[ends[sample][:, None] + steps, target[:, None]].astype(np.float64)


def _moving_average(length: int) -> Array:
    """The matrix [L, L] of a centred moving average over TREND steps, the ends repeated beyond the edges."""
    matrix = np.zeros((length, length))
    step = np.arange(length)
    for shift in range(-(TREND // 2), TREND // 2 + 1):
        matrix[step, np.clip(step + shift, 0, length - 1)] += 1 / TREND
    return matrix


def _ridge(covariance: Array, cross: Array) -> list[tuple[float, Array]]:
    """Strengths of RIDGE, up to NOTHING_LEFT, and the solution [P, Q] of each, from one decomposition.

    covariance, cross: of the inputs [P, P] and with the outputs [P, Q]. The intercept is the caller's: what is mapped
    is deviations from the means.
    """
    return _solutions(*np.linalg.eigh(covariance), cross)


def _solutions(values: Array, vectors: Array, cross: Array) -> list[tuple[float, Array]]:
    """What `_ridge` returns. values, vectors: eigenvalues and eigenvectors [P, ·] of the inputs' covariance; those left
    out are directions that the inputs do not vary in."""
    values = np.maximum(values, 0)
    projected = vectors.T @ cross
    mean = float(values.sum() / len(cross))
    return [
        (strength, vectors @ (projected / (values + max(strength * mean, ROUNDING))[:, None]))
        for strength in RIDGE[: 1 + bisect_left(RIDGE, NOTHING_LEFT * len(cross))]
    ]


def _few_rows(x: Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors [P, ·] of xᵀ x / n for x [n, P] of fewer rows than columns, by way of x xᵀ."""
    values, vectors = np.linalg.eigh(x @ x.T / len(x))
    kept = values > values[-1] * len(x) * np.finfo(np.float64).eps
    values = values[kept]
    return values, x.T @ (vectors[:, kept] / np.sqrt(len(x) * values))


def _group_mean(data: Prepared, groups: Index | None) -> Baseline | None:
    if groups is None:
        return None
    train = data.parts["train"]
    known, number = np.unique(groups[train], return_inverse=True)
    judged = np.concatenate([groups[data.parts[part]] for part in JUDGED])
    if not np.isin(judged, known).all():
        return None
    total = np.zeros((len(known), len(data.target_names)))
    np.add.at(total, number, data.targets[train])
    means = _own_units(data, total / np.bincount(number)[:, None])
    return Baseline(
        "group_mean",
        {part: means[np.searchsorted(known, groups[data.parts[part]])][:, None] for part in JUDGED},
    )


def _linear_regression(data: Prepared) -> Baseline:
    train = _summary(data, data.parts["train"])
    centre, spread = train.mean(0), train.std(0)
    spread[spread == 0] = 1.0
    x = (train - centre) / spread
    y = data.targets[data.parts["train"]].astype(np.float64)
    cross = x.T @ (y - y.mean(0)) / len(x)
    fits = _solutions(*_few_rows(x), cross) if len(x) < x.shape[1] else _ridge(x.T @ x / len(x), cross)
    inputs = {part: (_summary(data, data.parts[part]) - centre) / spread for part in JUDGED}
    actual = data.targets[data.parts["validation"]]

    def error(fit: Array) -> float:
        return float(((inputs["validation"] @ fit + y.mean(0) - actual) ** 2).sum())

    strength, fit = min(fits, key=lambda one: error(one[1]))
    predictions = {part: _own_units(data, inputs[part] @ fit + y.mean(0))[:, None] for part in JUDGED}
    return Baseline("linear", predictions, {"ridge": strength})


def _summary(data: Prepared, index: Index) -> Array:
    """[n, SEGMENTS · (F + C)]: segment means, then the static inputs, once for each segment: the ridge then weighs them
    as it would weigh the same columns given at every step."""
    means = _segment_means(data, index)
    if data.static is None or data.series is None:
        return means
    return np.concatenate([means, np.tile(data.static[data.series[index]], (1, SEGMENTS))], axis=1)


def _segment_means(data: Prepared, index: Index | Sequence[int]) -> Array:
    """[n, SEGMENTS · F]: the mean of each feature over equal segments of the steps that a model may see.

    A sequence with fewer steps than segments repeats steps.
    """
    out = np.empty((len(index), SEGMENTS, data.features.shape[1]))
    for place, sample in enumerate(index):
        end = int(data.ends[sample])
        start = max(int(data.starts[sample]), end - data.lookback)
        cuts = np.arange(SEGMENTS + 1) * (end - start) // SEGMENTS
        # reduceat gives the row at a cut where two cuts coincide, which is the repeated step.
        sums = np.add.reduceat(data.features[start:end], cuts[:-1], axis=0, dtype=np.float64)
        out[place] = sums / np.maximum(np.diff(cuts), 1)[:, None]
    return out.reshape(len(index), -1)
