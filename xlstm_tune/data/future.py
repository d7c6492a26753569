"""Time stamps behind the end of a series, written as the user writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from xlstm_tune.data.clock import OFFSET, ZONED, Kind, cell
from xlstm_tune.data.config import TimeConfig
from xlstm_tune.data.weeks import WEEKS, week_of
from xlstm_tune.data.zones import known_zone, local, universal

_DAY = 86_400 * 1_000_000_000
_MONTHS = {1: (29, 30, 31), 3: (89, 90, 92), 12: (365, 366)}
"""Steps of the calendar in months, and the days that earlier programs took for them; 28 and 91 days are whole weeks."""
_UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


def zone_of(column: pa.DataType | None, time: TimeConfig, last: str) -> str | None:
    """The zone that times are written in: the column's, or the offset of its last label; None where there is none.

    `Europe/Berlin`, `+02:00` or `UTC`. column: type of the time column.
    """
    if column is not None and pa.types.is_timestamp(column) and column.tz:
        return known_zone(column)
    found = re.search(ZONED, last.strip()) if time.format in ("auto", "iso") else None
    if found is None:
        return None
    digits = found[1].replace(":", "")
    return "UTC" if digits == "Z" else f"{digits[:3]}:{digits[3:] or '00'}"


def later_stamps(
    last: int,
    step: int,
    kind: Kind,
    horizon: int,
    zone: str | None = None,
    week: np.ndarray | None = None,
    months: int | None = None,
    day: int | None = None,
) -> np.ndarray:
    """int64 [H]: the stamps that follow `last`, on days of the `week` alone where there is one, as `weekdays` has it.

    zone: of `zone_of`. Its days begin at its own midnight and last 23 or 25 hours where its clocks are changed.
    months: of `months_of`, that a step has. None of a champion of an earlier program: steps of about a month, a
    quarter or a year follow the calendar. day: of `day_of_month`; None = that of `last`, which may be a month's end.
    """
    if zone is not None and kind == "date" and step % _DAY == 0:
        shown = int(local(np.array([last]), zone)[0])
        return universal(later_stamps(shown, step, kind, horizon, week=week, months=months, day=day), zone)
    if kind == "date" and step % _DAY == 0:
        if months is None:
            months = next((number for number, days in _MONTHS.items() if step // _DAY in days), 0)
        if months:
            return _later_months(last, months, horizon, day)
    if week is not None and last // _DAY % 7 in week:
        later = last + _DAY * np.arange(1, 7 * horizon + 1, dtype=np.int64)
        kept: np.ndarray = later[np.isin(later // _DAY % 7, week)][:horizon]
        return kept
    return last + step * np.arange(1, horizon + 1, dtype=np.int64)


def _later_months(last: int, months: int, horizon: int, number: int | None) -> np.ndarray:
    """The same day of the month, or its last day where it is shorter. number: as `day` of `later_stamps`."""
    stamp = np.datetime64(last, "ns")
    month, day = stamp.astype("datetime64[M]"), stamp.astype("datetime64[D]")
    if number is None:
        to_end = day + 1 == (month + 1).astype("datetime64[D]")
        number = 31 if to_end else int((day - month.astype("datetime64[D]")).astype(np.int64)) + 1
    later = month + months * np.arange(1, horizon + 1)
    begins, ends = later.astype("datetime64[D]"), (later + 1).astype("datetime64[D]") - 1
    days = np.minimum(begins + (number - 1), ends)
    stamps: np.ndarray = (days.astype("datetime64[ns]") + (stamp - day)).astype(np.int64)
    return stamps


def written(
    stamps: np.ndarray,
    kind: Kind,
    time: TimeConfig,
    examples: Sequence[str],
    column: pa.DataType | None = None,
    zone: str | None = None,
) -> list[str]:
    """Stamps [n] as text in the form of the labels in `examples`, of which there is at least one.

    column: type of the time column. zone: of `zone_of`.
    """
    if kind in WEEKS:
        return [_week(int(stamp), kind, examples) for stamp in stamps]
    if time.format == "epoch":
        unit = _UNITS[time.unit]
        whole = all(re.fullmatch(r"-?\d+", one) for one in examples)
        return [str(int(stamp) // unit) if whole else repr(int(stamp) / unit) for stamp in stamps]
    if zone is not None and column is not None and pa.types.is_timestamp(column):
        cells = pa.chunked_array([pa.array(stamps, pa.int64()).cast(pa.timestamp("ns", zone))]).cast(column, safe=False)
        return [cell(cells, row) for row in range(len(cells))]
    shown = stamps if zone is None else local(stamps, zone)
    return [_date(int(stamp), examples[-1].strip()) for stamp in shown]


def _week(stamp: int, kind: Kind, examples: Sequence[str]) -> str:
    week = week_of(stamp, kind)
    matches = [match for one in examples if (match := re.fullmatch(r"\s*\d{4}([_-]?[Ww]?)(\d{1,2})\s*", one))]
    between = matches[-1][1]
    numbers = [match[2] for match in matches]
    padded = any(number.startswith("0") for number in numbers) or (
        not between and all(len(number) == 2 for number in numbers)
    )
    return f"{week.year}{between}{week.week:02d}" if padded else f"{week.year}{between}{week.week}"


def _date(stamp: int, like: str) -> str:
    """`like` is ISO text: 2020-01, 2020-01-31, 2020-01-31 13:00:00, 2020-01-31T13:00Z, whose zone `stamp` is in."""
    text = str(np.datetime64(stamp, "ns"))  # 2020-01-31T13:00:00.000000000
    if like[4:5] == "/":
        text = text[:10].replace("-", "/") + text[10:]
    if len(like) <= 10 and stamp % _DAY == 0:
        return text[: max(7, len(like))]
    zone = re.search(OFFSET, like[10:])
    clock = like[11 : len(like) - len(zone[0]) if zone else None]
    digits = {5: 16, 8: 19}.get(len(clock), 19 if len(like) <= 10 else min(29, 11 + len(clock)))
    if stamp % 10**9 and digits < 29:
        digits = 29
    elif stamp % (60 * 10**9) and digits < 19:
        digits = 19
    between = like[10:11] or " "
    return f"{text[:10]}{between}{text[11:digits]}{zone[0] if zone else ''}"
