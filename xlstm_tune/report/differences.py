"""Whether two models are told apart: paired differences of RMSE with intervals.

What is told apart is these trained models on this part of the data. Whether another training run of the same
configuration would do as well is known only where there are several seeds (`seeds`), whose variance then counts too.

n samples, M models, P pairs. A sample is a window of a forecast or a sequence of a regression.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from xlstm_tune.report.dependence import Clusters, clusterings, crossed, moments
from xlstm_tune.report.predictions import Facts, Judged, Model
from xlstm_tune.report.resampling import (
    ALPHA,
    ENOUGH,
    FEW_ALPHA,
    FEWEST,
    MOST_BLOCKS,
    Influence,
    Runs,
    Spread,
    error_apart,
    holm,
    influence,
    interval,
    lengths,
    spread,
)

Array = NDArray[np.float64]
Index = NDArray[np.int64]

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
    """Holm's, over all differences that were asked for together."""
    told_apart: bool
    """p_adjusted is below what so many blocks ask for: 0.05 from ENOUGH on, FEW_ALPHA from FEWEST on, never below."""
    blocks: float
    """Independent blocks, or groups of sequences, that there are for this pair."""
    seeds: int
    """Training runs of each model, of which the fewer; 1 = another seed might turn the difference round. A baseline
    has no seed."""
    beyond: str | None = None
    """Why nothing is said of other data however large the difference is; None where there is no such reason."""


@dataclass(frozen=True)
class Compared:
    """Differences of several pairs, and what they rest on."""

    differences: list[Difference]
    unit: str
    """What was drawn anew: `windows` or `sequences`."""
    block: int
    """Windows of a series in a row that are drawn together, of the pair with most; 1 for sequences."""
    blocks: float
    """Independent blocks, or clusters, that there are, of the pair with fewest."""
    resampled: str
    """In words: what was drawn together, and how that was chosen."""
    notes: list[str]


def compare_pairs(
    judged: Judged,
    pairs: Sequence[tuple[Model, Model]],
    seen: Facts,
    seeds: Mapping[Model, Sequence[float]] | None = None,
) -> Compared:
    """The differences of these pairs (a, b) of models, adjusted for being so many.

    seeds: RMSEs on this part of every seed of a model that was trained with several, that of the predictions first;
    its differences are then those of the mean over seeds.
    """
    windows = seen.task != "regression"
    unit = "windows" if windows else "sequences"
    if not pairs:
        return Compared([], unit, 1, 0.0, "nothing, as nothing was compared", [])
    models, seeds = list(judged.predicted), seeds or {}
    losses = np.stack([np.square(judged.predicted[m] - judged.actual).mean((1, 2)) for m in models], axis=1)
    index = [(models.index(a), models.index(b)) for a, b in pairs]
    what = influence(losses, np.ones(len(losses)), index)
    off = {model: float(np.mean(scores)) - scores[0] for model, scores in seeds.items()}  # the mean from the first
    what = replace(what, gains=what.gains + [off.get(b, 0.0) - off.get(a, 0.0) for a, b in pairs])
    runs = _runs(pairs, seeds)
    found = _windows(judged, what, seen, runs) if windows else _sequences(judged, what, seen, runs)
    rmse = {
        model: float(value) + off.get(model, 0.0) for model, value in zip(models, np.sqrt(losses.mean(0)), strict=True)
    }
    adjusted = holm(found.p.tolist())
    differences = []
    for number, (a, b) in enumerate(pairs):
        gain, low, high = (float(ends[number]) for ends in (what.gains, found.low, found.high))
        percent = 100 / rmse[b] if rmse[b] > 0 else math.nan
        blocks = float(found.blocks[number])
        enough = blocks >= FEWEST and found.beyond is None
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
                told_apart=enough and adjusted[number] < (ALPHA if blocks >= ENOUGH else FEW_ALPHA),
                blocks=blocks,
                seeds=_fewest_seeds((a, b), seeds),
                beyond=found.beyond,
            )
        )
    return Compared(differences, unit, found.block, float(found.blocks.min()), found.resampled, found.notes)


def _fewest_seeds(pair: tuple[Model, Model], seeds: Mapping[Model, Sequence[float]]) -> int:
    return min((len(seeds.get(model, ())) or 1 for model in pair if model.trial is not None), default=1)


def _runs(pairs: Sequence[tuple[Model, Model]], seeds: Mapping[Model, Sequence[float]]) -> Runs | None:
    """What seeds add to the variance of each difference; None where no pair has several."""
    variance, freedom = np.full((2, len(pairs)), np.nan)
    for number, pair in enumerate(pairs):
        if _fewest_seeds(pair, seeds) < 2:
            continue
        own = [(float(np.var(seeds[m], ddof=1)) / len(seeds[m]), len(seeds[m]) - 1) for m in pair if m in seeds]
        variance[number] = sum(value for value, _ in own)
        weight = sum(value**2 / free for value, free in own)
        freedom[number] = variance[number] ** 2 / weight if weight else np.inf
    return Runs(variance, freedom) if np.isfinite(variance).any() else None


@dataclass(frozen=True)
class _Found:
    low: Array
    high: Array
    p: Array
    block: int
    blocks: Array
    """[P]"""
    resampled: str
    notes: list[str]
    beyond: str | None = None


def _windows(judged: Judged, what: Influence, seen: Facts, runs: Runs | None) -> _Found:
    """Blocks of moments in a row, all series of a moment together: forecasts overlap, and series share their time.

    Each pair has blocks of its own length: losses of a model that is far off hang together for longer than others do.
    """
    moment = moments(judged)
    grain = 1 + int(moment.max()) // MOST_POSITIONS  # moments in a row that are never parted
    at_once = _gathered(what, moment // grain)
    kept = len(judged.time)
    every = max(1.0, (seen.samples or {}).get(judged.part, kept) / kept)  # of a part whose windows were thinned out
    horizon = math.ceil(judged.horizon / every / grain)
    if len(at_once.psi) // 2 < horizon:
        return _too_short(judged.part, what, len(at_once.psi) / horizon)
    wanted = lengths(at_once, horizon)
    low, high, p, blocks = np.empty((4, len(wanted)))
    used = np.empty_like(wanted)
    for length in np.unique(wanted):
        pairs = np.flatnonzero(wanted == length)
        found = spread(at_once.only(pairs), int(length))
        low[pairs], high[pairs], p[pairs] = interval(at_once.only(pairs), found, runs=runs and runs.only(pairs))
        blocks[pairs], used[pairs] = found.blocks, found.length
    chosen = "by the windows' overlap" if (wanted == horizon).all() and horizon > 1 else "by Politis and White's rule"
    if (used < wanted).all():
        chosen = "as long as the part allows"
    elif (used > wanted).all():
        chosen = f"as long as leaves {MOST_BLOCKS} blocks"
    shortest, block = int(used.min()) * grain, int(used.max()) * grain
    row = "window by window" if block == 1 else f"blocks of {_between(shortest, block)} windows in a row"
    together = ", all series at a time" if len(set(judged.series)) > 1 else ""
    notes = [_held(judged.part, float(blocks.min()), float(blocks.max()))] if blocks.min() < ENOUGH else []
    how = f"{row}{together}; their length was chosen {chosen}"
    return _Found(low, high, p, block, blocks, how, notes)


def _too_short(part: str, what: Influence, blocks: float) -> _Found:
    """Of a part without two blocks as long as its windows overlap: how much differences vary by chance is not known,
    but that models which err alike on all samples do not differ."""
    alike = (what.gains == 0) & ~what.psi.any(0)
    ends = np.where(alike, 0.0, np.nan)
    how = "nothing, as the part has no two blocks as long as its windows overlap"
    notes = [_held(part, blocks, blocks)]
    return _Found(ends, ends.copy(), np.ones(len(ends)), 1, np.full(len(ends), blocks), how, notes)


def _held(part: str, fewest: float, most: float) -> str:
    """How many independent blocks of windows a part holds, and what that means."""
    few, many = math.floor(fewest), math.floor(most)  # rounded, 9.8 would look like the ENOUGH that it is not
    held = f"about {_between(few, many)} independent block{'s' if many != 1 else ''}"
    return f"The {part} part holds {held if many else 'less than one independent block'} of windows; {_rule()}"


def _between(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def _rule() -> str:
    return (
        f"with fewer than {ENOUGH}, nothing is told apart unless its adjusted p is below {FEW_ALPHA}, and with fewer "
        f"than {FEWEST} nothing at all."
    )


def _sequences(judged: Judged, what: Influence, seen: Facts, runs: Runs | None) -> _Found:
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
    low, high, p = interval(at_once, found, _error(what, list(spreads.values())), runs)
    names = list(spreads)
    notes, beyond = [], None
    if constant:
        beyond = f"all sequences of the {judged.part} part have one value of {' and of '.join(constant)}"
        notes.append(f"{beyond[0].upper()}{beyond[1:]}: whether a difference would hold for others cannot be said.")
    elif found.blocks < ENOUGH:
        what_of = "sequences" if way.name == "sequence" else f"values of {way.name}"
        notes.append(f"The {judged.part} part holds {way.count} {what_of}; {_rule()}")
    how = "each sequence by itself"
    if names != ["sequence"]:
        how = f"all sequences that share {' or '.join(names)} together"
    return _Found(low, high, p, 1, np.full(len(p), found.blocks), how, notes, beyond)


def _error(what: Influence, used: list[tuple[Clusters, Influence, Spread]]) -> Array:
    if len(used) == 1:
        return used[0][2].error
    (one, _, first), (other, _, second) = used
    both = error_apart(_gathered(what, crossed(one, other)))  # in blocks these would be years of one county in a row
    squares = [first.error**2, second.error**2]
    return np.asarray(np.sqrt(np.maximum(squares[0] + squares[1] - both**2, np.maximum(*squares))))


def _gathered(what: Influence, codes: Index) -> Influence:
    """The same with positions [T] instead of samples. codes: [n], the position of each sample."""
    psi = np.stack([np.bincount(codes, column) for column in what.psi.T], axis=1)
    return replace(what, psi=psi.astype(np.float64), counts=np.bincount(codes, what.counts).astype(np.float64))
