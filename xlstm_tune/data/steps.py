"""How far rows are apart: in time, and in months where they follow the calendar."""

from __future__ import annotations

import numpy as np

from xlstm_tune.data.clock import Kind, later_rows

_DAY = 86_400 * 1_000_000_000
_FOUR_WEEKS, _QUARTER_WEEKS = 28 * _DAY, 91 * _DAY
_MONTH, _QUARTER = 31 * _DAY, 92 * _DAY
_MONTH_DAYS = 365.2425 / 12
_ABOUT = 7
"""Days that a step of months may be longer or shorter than so many months last on average."""


def modal_step(time: np.ndarray, offsets: np.ndarray) -> int | None:
    """The commonest difference between neighbours inside a series; None when every series has one row."""
    later = later_rows(time, offsets)
    if not len(later):
        return None
    values, counts = np.unique(time[later] - time[later - 1], return_counts=True)
    return int(values[np.argmax(counts)])


def usual_step(time: np.ndarray, offsets: np.ndarray) -> int | None:
    """`modal_step`, but 31 and 92 days where 28 and 91 days are months and quarters rather than whole weeks.

    They are where the rows of each series keep the day of the month or are all at its end, as from February to March,
    and 28 days also where steps of up to 35 are longer on average, as from the first Monday of each month to the next.
    """
    step = modal_step(time, offsets)
    if step not in (_FOUR_WEEKS, _QUARTER_WEEKS):
        return step
    later = later_rows(time, offsets)
    steps = time[later] - time[later - 1]
    longer = step == _FOUR_WEEKS and steps[steps <= 35 * _DAY].mean() > 29 * _DAY
    if not longer and not _keep_their_day(time, offsets):
        return step
    return _MONTH if step == _FOUR_WEEKS else _QUARTER


def step_of(recorded: int | None, found: int | None) -> int | None:
    """The step that a champion recorded, else the table's; also where an earlier program recorded months as 28 days.

    found: of `usual_step`.
    """
    if recorded is None or (recorded, found) in ((_FOUR_WEEKS, _MONTH), (_QUARTER_WEEKS, _QUARTER)):
        return found
    return recorded


def stepping(time: np.ndarray, shown: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The stamps that steps are taken between: `shown` for whole days, which the clocks of a zone count.

    shown: of `on_clocks`. Hours pass through a change of the clocks, so shorter steps are those of `time`.
    """
    step = modal_step(shown, offsets)
    return shown if step is not None and step > 0 and step % _DAY == 0 else time


def months_of(time: np.ndarray, offsets: np.ndarray, kind: Kind) -> int:
    """The commonest difference in whole months where rows follow the calendar; 0 where they follow days.

    They follow it where the rows of each series keep the day of the month or are all at its end. Where they do not,
    they do so all the same if each step is about so many months long and no steady number of days or of weeks, as from
    a month's last working day to the next, or where `usual_step` finds months.
    """
    step = usual_step(time, offsets)
    if kind != "date" or step is None or step % _DAY:
        return 0
    later = later_rows(time, offsets)
    months, days = month_steps(time, offsets), time[later] // _DAY - time[later - 1] // _DAY
    values, counts = np.unique(months, return_counts=True)
    usual = int(values[np.argmax(counts)])
    if months.min() > 0 and _keep_their_day(time, offsets):
        return usual
    if step != modal_step(time, offsets):
        return 1 if step == _MONTH else 3
    if months.min() < 1 or (months % usual).any() or (np.abs(days - months * _MONTH_DAYS) > _ABOUT).any():
        return 0
    return usual if step % (7 * _DAY) and (days % (step // _DAY)).any() else 0


def month_steps(time: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """How many months each row is after the one before it in its series, int64, whatever their days."""
    month = (time // _DAY).astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    later = later_rows(time, offsets)
    steps: np.ndarray = month[later] - month[later - 1]
    return steps


def day_of_month(time: np.ndarray) -> int:
    """The day of the month, from 1, that the rows of one series have where it is long enough; 31 of months' ends.

    time: int64 [R]. Where rows keep no day of the month it is that of the last row.
    """
    number, length = _days_of_month(time)
    if (number == length).all():
        return 31
    if _keep_their_day(time, np.array([0, len(time)])):
        return int(number.max())
    return 31 if number[-1] == length[-1] else int(number[-1])


def _keep_their_day(time: np.ndarray, offsets: np.ndarray) -> bool:
    """Whether each series has one day of the month, or the last of it in months that are shorter."""
    number, length = _days_of_month(time)
    kept = np.repeat(np.maximum.reduceat(number, offsets[:-1]), np.diff(offsets))
    return bool((number == np.minimum(kept, length)).all())


def _days_of_month(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Day of the month of each stamp, from 1, and how many days its month has."""
    day = (time // _DAY).astype("datetime64[D]")
    month = day.astype("datetime64[M]")
    first, following = month.astype("datetime64[D]"), (month + 1).astype("datetime64[D]")
    return (day - first).astype(np.int64) + 1, (following - first).astype(np.int64)
