"""Whether one model really is better than another: paired differences of RMSE with intervals.

n samples, M models, P pairs. A sample is a window of a forecast or a sequence of a regression.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from xlstm_tune.report.dependence import Clusters, clusterings, crossed, moments
from xlstm_tune.report.predictions import Facts, Judged, Model
from xlstm_tune.report.resampling import (
    ENOUGH,
    MOST_BLOCKS,
    Influence,
    Spread,
    common_length,
    holm,
    influence,
    interval,
    spread,
)

Array = NDArray[np.float64]
Index = NDArray[np.int64]

ALPHA = 0.05
MOST_POSITIONS = 20 * MOST_BLOCKS
"""Of a longer line of time neighbours are taken together first: blocks have twenty positions or more all the same."""


@dataclass(frozen=True)
class Difference:
    """How much better model a is than model b on one part."""

    a: Model
    b: Model
    gain: float
    """RMSE_b − RMSE_a, in the target's own units: above zero, a is better."""
    low: float
    """Lower end of the 95 % interval of `gain`; NaN where the part holds nothing to tell it by."""
    high: float
    gain_percent: float
    """`gain` as a share of RMSE_b; NaN where that is zero."""
    low_percent: float
    high_percent: float
    p: float
    """Two-sided, of no difference."""
    p_adjusted: float
    """Holm's, over all differences shown together."""
    real: bool
    """p_adjusted is below 0.05, and there are enough independent samples to say so."""


@dataclass(frozen=True)
class Compared:
    """Differences of several pairs, and what they rest on."""

    differences: list[Difference]
    unit: str
    """What was drawn anew: `windows` or `sequences`."""
    block: int
    """Windows of a series in a row that are drawn together; 1 for sequences."""
    blocks: float
    """Independent blocks, or clusters, that there are."""
    resampled: str
    """In words: what was drawn together, and how that was chosen."""
    notes: list[str]


def compare_pairs(judged: Judged, pairs: Sequence[tuple[Model, Model]], seen: Facts) -> Compared:
    """The differences of these pairs (a, b) of models, adjusted for being so many."""
    windows = seen.task != "regression"
    unit = "windows" if windows else "sequences"
    if not pairs:
        return Compared([], unit, 1, 0.0, "nothing, as nothing was compared", [])
    models = list(judged.predicted)
    losses = np.stack([np.square(judged.predicted[m] - judged.actual).mean((1, 2)) for m in models], axis=1)
    index = [(models.index(a), models.index(b)) for a, b in pairs]
    what = influence(losses, np.ones(len(losses)), index)
    found = _windows(judged, what, seen) if windows else _sequences(judged, what, seen)
    rmse = np.sqrt(losses.mean(0))
    adjusted = holm(found.p.tolist())
    differences = []
    for number, (a, b) in enumerate(pairs):
        gain, low, high = (float(ends[number]) for ends in (what.gains, found.low, found.high))
        percent = 100 / float(rmse[index[number][1]]) if rmse[index[number][1]] > 0 else math.nan
        differences.append(
            Difference(
                a,
                b,
                gain,
                low,
                high,
                gain_percent=gain * percent,
                low_percent=low * percent,
                high_percent=high * percent,
                p=float(found.p[number]),
                p_adjusted=adjusted[number],
                real=found.enough and adjusted[number] < ALPHA,
            )
        )
    return Compared(differences, unit, found.block, found.blocks, found.resampled, found.notes)


@dataclass(frozen=True)
class _Found:
    low: Array
    high: Array
    p: Array
    block: int
    blocks: float
    enough: bool
    resampled: str
    notes: list[str]


def _windows(judged: Judged, what: Influence, seen: Facts) -> _Found:
    """Blocks of moments in a row, all series of a moment together: forecasts overlap, and series share their time."""
    moment = moments(judged)
    grain = 1 + int(moment.max()) // MOST_POSITIONS  # moments in a row that are never parted
    at_once = _gathered(what, moment // grain)
    kept = len(judged.time)
    every = max(1.0, (seen.samples or {}).get(judged.part, kept) / kept)  # of a part whose windows were thinned out
    horizon = math.ceil(judged.actual.shape[1] / every / grain)
    length = common_length(at_once, horizon)
    found = spread(at_once, length)
    low, high, p = interval(at_once, found)
    block = found.length * grain
    chosen = "by the windows' overlap" if length == horizon > 1 else "by Politis and White's rule"
    if found.length < length:
        chosen = "as long as the part allows"
    elif found.length > length:
        chosen = f"as long as leaves {MOST_BLOCKS} blocks"
    row = "window by window" if block == 1 else f"blocks of {block} windows in a row"
    together = ", all series at a time" if len(set(judged.series)) > 1 else ""
    enough = found.blocks >= ENOUGH
    notes = []
    if not enough:
        notes.append(
            f"The {judged.part} part holds about {found.blocks:.0f} independent blocks of windows, which are too few "
            f"to say whether a difference is real ({ENOUGH} are needed)."
        )
    how = f"{row}{together}; their length was chosen {chosen}"
    return _Found(low, high, p, block, found.blocks, enough, how, notes)


def _sequences(judged: Judged, what: Influence, seen: Facts) -> _Found:
    """Whole groups of sequences. Where they hang together in two ways, as by county and by year, the variance is that
    of both: V₁ + V₂ − V₁₂, and never less than either (Cameron, Gelbach & Miller 2011, "Robust inference with multiway
    clustering"); the quantile is that of the way with fewer groups."""
    ways, constant = clusterings(judged, seen)
    drawn = [(way, _gathered(what, way.codes)) for way in ways]
    spreads = {way.name: (way, one, spread(one, 1)) for way, one in drawn}
    if len(ways) > 2:
        pair = max(combinations(spreads, 2), key=lambda pair: sum(float(spreads[n][2].error.sum()) for n in pair))
        spreads = {name: spreads[name] for name in pair}
    way, at_once, found = min(spreads.values(), key=lambda each: each[0].count)
    low, high, p = interval(at_once, found, _error(what, list(spreads.values())))
    enough = found.blocks >= ENOUGH and not constant
    names = list(spreads)
    notes = []
    if constant:
        notes.append(
            f"All sequences of the {judged.part} part have one value of {' and of '.join(constant)}: whether a "
            f"difference would hold for others cannot be said."
        )
    elif not enough:
        what_of = "sequences" if way.name == "sequence" else f"values of {way.name}"
        notes.append(
            f"The {judged.part} part holds {way.count} {what_of}, which are too few to say whether a difference is "
            f"real ({ENOUGH} are needed)."
        )
    how = "each sequence by itself"
    if names != ["sequence"]:
        how = f"all sequences that share {' or '.join(names)} together"
    return _Found(low, high, p, 1, found.blocks, enough, how, notes)


def _error(what: Influence, used: list[tuple[Clusters, Influence, Spread]]) -> Array:
    if len(used) == 1:
        return used[0][2].error
    (one, _, first), (other, _, second) = used
    both = spread(_gathered(what, crossed(one, other)), 1, resamples=0).error
    squares = [first.error**2, second.error**2]
    return np.asarray(np.sqrt(np.maximum(squares[0] + squares[1] - both**2, np.maximum(*squares))))


def _gathered(what: Influence, codes: Index) -> Influence:
    """The same with positions [T] instead of samples. codes: [n], the position of each sample."""
    psi = np.stack([np.bincount(codes, column) for column in what.psi.T], axis=1)
    return replace(what, psi=psi.astype(np.float64), counts=np.bincount(codes, what.counts).astype(np.float64))
