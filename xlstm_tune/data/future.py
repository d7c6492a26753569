"""Time stamps behind the end of a series, written as the user writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from epiweeks import Week

from xlstm_tune.data.clock import Kind
from xlstm_tune.data.config import TimeConfig

_DAY = 86_400 * 1_000_000_000
_MONTHS = {1: (28, 31), 3: (89, 92), 12: (365, 366)}
"""Steps of the calendar in months, and the days that they last."""
_UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


def later_stamps(last: int, step: int, kind: Kind, horizon: int) -> np.ndarray:
    """int64 [H]: the stamps that follow `last`. Steps of about a month, a quarter or a year follow the calendar."""
    if kind == "date" and step % _DAY == 0:
        for months, (low, high) in _MONTHS.items():
            if low <= step // _DAY <= high:
                return _later_months(last, months, horizon)
    return last + step * np.arange(1, horizon + 1, dtype=np.int64)


def _later_months(last: int, months: int, horizon: int) -> np.ndarray:
    """The same day of the month, or its last day where it is shorter or `last` is the last of its own."""
    stamp = np.datetime64(last, "ns")
    month = stamp.astype("datetime64[M]")
    day, within = stamp.astype("datetime64[D]"), stamp - stamp.astype("datetime64[D]")
    to_end = day + 1 == (month + 1).astype("datetime64[D]")
    later = month + months * np.arange(1, horizon + 1)
    begins, lengths = later.astype("datetime64[D]"), (later + 1).astype("datetime64[D]") - later.astype("datetime64[D]")
    offset = day - month.astype("datetime64[D]")
    longest = lengths - np.timedelta64(1, "D")
    days = begins + (longest if to_end else np.minimum(offset, longest))
    stamps: np.ndarray = (days.astype("datetime64[ns]") + within).astype(np.int64)
    return stamps


def written(stamps: np.ndarray, kind: Kind, time: TimeConfig, examples: Sequence[str]) -> list[str]:
    """Stamps [n] as text in the form of the labels in `examples`, of which there is at least one."""
    if kind == "week":
        return [_week(int(stamp), examples) for stamp in stamps]
    if time.format == "epoch":
        unit = _UNITS[time.unit]
        whole = all(re.fullmatch(r"-?\d+", one) for one in examples)
        return [str(int(stamp) // unit) if whole else repr(int(stamp) / unit) for stamp in stamps]
    return [_date(int(stamp), examples[-1].strip()) for stamp in stamps]


def _week(stamp: int, examples: Sequence[str]) -> str:
    import datetime

    week = Week.fromdate(datetime.date.fromordinal(stamp * 7))
    matches = [match for one in examples if (match := re.fullmatch(r"\s*\d{4}([_-]?[Ww]?)(\d{1,2})\s*", one))]
    between = matches[-1][1]
    numbers = [match[2] for match in matches]
    padded = any(number.startswith("0") for number in numbers) or (
        not between and all(len(number) == 2 for number in numbers)
    )
    return f"{week.year}{between}{week.week:02d}" if padded else f"{week.year}{between}{week.week}"


def _date(stamp: int, like: str) -> str:
    """`like` is ISO text: 2020-01, 2020-01-31, 2020-01-31 13:00:00, 2020-01-31T13:00Z."""
    text = str(np.datetime64(stamp, "ns"))  # 2020-01-31T13:00:00.000000000
    if like[4:5] == "/":
        text = text[:10].replace("-", "/") + text[10:]
    if len(like) <= 10 and stamp % _DAY == 0:
        return text[: max(7, len(like))]
    zone = re.search(r"(Z|[+-]\d\d(:?\d\d)?)$", like[10:])
    clock = like[11 : len(like) - len(zone[0]) if zone else None]
    digits = {5: 16, 8: 19}.get(len(clock), 19 if len(like) <= 10 else min(29, 11 + len(clock)))
    if stamp % 10**9 and digits < 29:
        digits = 29
    elif stamp % (60 * 10**9) and digits < 19:
        digits = 19
    between = like[10:11] or " "
    suffix = ("Z" if zone[0] == "Z" else "+00:00") if zone else ""
    return f"{text[:10]}{between}{text[11:digits]}{suffix}"
