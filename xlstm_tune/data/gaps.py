"""What there is to say about rows that are not evenly spaced in time, and sequences of unlike lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from xlstm_tune.data.clock import Kind, describe_step, later_rows
from xlstm_tune.data.steps import modal_step, month_steps, months_of
from xlstm_tune.data.words import count

_DAY = 86_400 * 1_000_000_000
_REGULAR = 0.5
"""Share of the steps that the commonest one has where it is the usual one."""
_SHORT = 0.9
"""Of the longest sequence; years of 365 and 366 days are no unlike lengths."""


class Steps(NamedTuple):
    """From row to row within the series."""

    usual: int
    later: np.ndarray
    """Rows that follow another of their series."""
    sizes: np.ndarray
    """Of the step to each, int64 as `later`."""
    words: Callable[[int], str]
    """Of a size."""


def gaps_note(time: np.ndarray, offsets: np.ndarray, kind: Kind, label: Callable[[int], str]) -> str | None:
    """One sentence on steps that are not the usual one; None where there are none. Calendar steps are usual."""
    found = _steps(time, offsets, kind)
    if found is None:
        return None
    odd = found.later[found.sizes != found.usual]
    if not len(odd):
        return None
    if len(odd) > (1 - _REGULAR) * len(found.sizes):
        low, high = (found.words(int(step)) for step in (found.sizes.min(), found.sizes.max()))
        return (
            f"the time has no regular step: rows are {low} to {high} apart; every row counts as one step all the same"
        )
    gaps = "1 step in time differs" if len(odd) == 1 else f"{len(odd)} steps in time differ"
    return (
        f"{gaps} from the usual {found.words(found.usual)}, the first between {label(int(odd[0]) - 1)} and "
        f"{label(int(odd[0]))}; every row counts as one step all the same"
    )


def lengths_note(offsets: np.ndarray, name: Callable[[int], str]) -> str | None:
    """One sentence on sequences that are much shorter than others; None where there are none. name: of a sequence."""
    lengths = np.diff(offsets)
    if lengths.min() >= _SHORT * lengths.max():
        return None
    return f"sequences have {lengths.min()} to {lengths.max()} rows, the shortest: {name(int(np.argmin(lengths)))}"


def sequence_gaps_note(
    time: np.ndarray,
    offsets: np.ndarray,
    kind: Kind,
    column: str | None,
    name: Callable[[int], str],
    label: Callable[[int], str],
) -> str | None:
    """One sentence on gaps within sequences; None where there are none.

    column: the time column. name: of a sequence. label: the time of a row.
    """
    found = _steps(time, offsets, kind)
    if found is None:
        return None
    odd = found.sizes != found.usual
    if odd.sum() > (1 - _REGULAR) * len(odd):
        return None
    if kind == "date" and found.usual == _DAY:
        odd &= ~_leap_day(time[found.later], found.sizes)
    if not odd.any():
        return None
    row = int(found.later[odd][0])
    gappy = np.unique(np.searchsorted(offsets, found.later[odd], side="right") - 1)
    return (
        f"{len(gappy)} of {len(offsets) - 1} sequences have gaps in '{column}', where rows are not "
        f"{found.words(found.usual)} apart, the first: {name(int(gappy[0]))}, between {label(row - 1)} and "
        f"{label(row)}; every row counts as one step all the same"
    )


def _steps(time: np.ndarray, offsets: np.ndarray, kind: Kind) -> Steps | None:
    """In months where rows follow the calendar; None where steps say nothing."""
    usual = modal_step(time, offsets)
    if usual is None or kind == "order":
        return None
    later = later_rows(time, offsets)
    steps = time[later] - time[later - 1]
    if kind == "date" and _calendar(steps):
        return None
    if months := months_of(time, offsets, kind):
        return Steps(months, later, month_steps(time, offsets), _months_in_words)
    return Steps(usual, later, steps, lambda step: describe_step(step, kind))


def _months_in_words(months: int) -> str:
    years, rest = divmod(months, 12)
    return count(months, "month") if rest else count(years, "year")


def _leap_day(stamps: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Where nothing but 29 February lies before a stamp, as in years that are all made 365 days long."""
    days = (stamps // _DAY).astype("datetime64[D]")
    march = days - days.astype("datetime64[M]") == np.timedelta64(0, "D")
    march &= days.astype("datetime64[M]").astype(np.int64) % 12 == 2
    leap: np.ndarray = march & (steps == 2 * _DAY)
    return leap


def _calendar(steps: np.ndarray) -> bool:
    """Whether every step is one month, one quarter or one year of the calendar."""
    days, rest = np.divmod(steps, _DAY)
    low, high = int(days.min()), int(days.max())
    spans = ((28, 31), (89, 92), (365, 366))
    return not rest.any() and any(first <= low and high <= last for first, last in spans)
