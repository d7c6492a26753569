"""Time as the user writes it, as one int64 per row that sorts and subtracts.

Stamps are nanoseconds since 1970 for dates and epoch numbers, consecutive week numbers for MMWR and ISO weeks (53-week
years included), and row numbers where the rows are their own clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xlstm_tune.data.config import TimeConfig
from xlstm_tune.data.csv_files import BLANKS
from xlstm_tune.data.read import Source
from xlstm_tune.data.weeks import KINDS, WEEKS, YEAR_AND_WEEK, week_number, week_of
from xlstm_tune.errors import DataError

Kind = Literal["order", "date", "week", "iso-week"]
_SECOND = 1_000_000_000
_DAY = 86_400 * _SECOND
_YEAR = 366 * _DAY
_UNITS = {"s": _SECOND, "ms": 1_000_000, "us": 1_000, "ns": 1}
_SMALL = 9999
"""Largest number that is rather a day of the year, a step or a year than a time since 1970."""
_DAY_NUMBERS = (10_000, 99_999)
"""Days of our time, as Excel counts them since 1899-12-30 or R since 1970-01-01, lie between these."""
_FIRST_YEAR, _LAST_YEAR = 1677, 2262
"""Whole years between these fit into stamps."""
OFFSET = r"(Z|[+-]\d\d(?::?\d\d)?)$"
"""How a time in ISO text ends that says its offset from UTC."""
ZONED = r"[ T]\d\d(?::.*)?" + OFFSET
"""Such a time, from its hour on."""
_DECEMBER_TO_JANUARY = (41, 42)
"""Weeks from the twelfth of a year to the first of the next, in years of 52 and of 53."""
_WEEKS_TO_TELL = 3
"""As many rows as so many weeks have days tell which days a week has, where one series reaches into so many weeks."""
_WITHIN_A_WEEK = tuple(days * _DAY for days in range(1, 7))
_NEARLY_ALL = 0.9
"""Share of the rows."""


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with dictionary encoding undone and every kind of text as `string`."""
    if pa.types.is_dictionary(column.type):
        chunks = [chunk.dictionary.take(chunk.indices) for chunk in column.chunks]  # a cast knows no lists
        column = pa.chunked_array(chunks, column.type.value_type)
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    return column


def cell(column: pa.ChunkedArray, row: int) -> str:
    """A cell as text; its bare number where Python has no such value: a day after 9999, a zone that nobody knows."""
    try:
        return str(column[row])
    except (pa.ArrowException, ArithmeticError, ValueError, LookupError):
        return str(column[row].value)


def first_bad(column: pa.ChunkedArray, convert: Callable[[pa.ChunkedArray], object]) -> int:
    """Row of the first cell that `convert` refuses; `convert` must refuse the whole column.

    Arrow says that a cell is bad but not which: halving finds it in as much work as two conversions.
    """
    good, bad = 0, len(column)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            convert(column.slice(good, middle - good))
            good = middle
        except pa.ArrowException:
            bad = middle
    return good


def parse_time(source: Source, time: TimeConfig) -> tuple[np.ndarray, Kind]:
    """Stamps int64 [R] of the time column in file order, and their kind. Raises DataError for the first bad cell."""
    column = plain(source.table.column(time.column))
    if pa.types.is_string(column.type):
        column = pc.if_else(pc.is_in(pc.utf8_trim_whitespace(column), pa.array(BLANKS)), None, column)
    blank = pc.is_null(column, nan_is_null=True).to_numpy()
    if blank.any():
        row = int(np.flatnonzero(blank)[0])
        raise DataError(f"the time column '{time.column}' is blank in {source.where(row)}; every row needs its time")
    if time.format in KINDS:
        return _weeks(column, time, KINDS[time.format], source), KINDS[time.format]
    if time.format == "epoch":
        return _epoch(column, time, source), "date"
    return _dates(column, time, source), "date"


def _weeks(column: pa.ChunkedArray, time: TimeConfig, kind: Kind, source: Source) -> np.ndarray:
    if not (pa.types.is_string(column.type) or pa.types.is_integer(column.type)):
        raise DataError(
            f"the time column '{time.column}' holds {column.type}, not {WEEKS[kind].name}s; write them as text such as "
            "2006_1"
        )
    codes = column.cast(pa.string()).combine_chunks().dictionary_encode()
    numbers = []
    for position, text in enumerate(codes.dictionary.to_pylist()):
        try:
            numbers.append(week_number(text, kind))
        except ValueError as error:
            row = int(np.flatnonzero(codes.indices.to_numpy() == position)[0])
            raise DataError(f"column '{time.column}', {source.where(row)}: {error}") from None
    stamps: np.ndarray = np.array(numbers, dtype=np.int64)[codes.indices.to_numpy()]
    return stamps


def _epoch(column: pa.ChunkedArray, time: TimeConfig, source: Source) -> np.ndarray:
    factor = _UNITS[time.unit]
    if pa.types.is_string(column.type):
        row = first_bad(column, to_float) if _refuses(column, to_float) else 0
        raise DataError(
            f"column '{time.column}' holds text ('{cell(column, row)}' in {source.where(row)}), "
            f"but data.time.format: epoch asks for numbers"
        )
    if time.unit == "s" and _without_dashes(column) == "day":  # as seconds they would all lie in 1970
        raise DataError(
            f"column '{time.column}' holds {cell(column, 0)} in {source.where(0)} and its like, which are days without "
            "dashes rather than seconds since 1970; write them as 2012-01-31 and leave data.time.format out"
        )
    if pa.types.is_integer(column.type):
        numbers = column.to_numpy()
        limit = np.iinfo(np.int64).max // factor
        fits = (numbers <= limit) & (numbers >= -limit)
        stamps = np.where(fits, numbers, 0).astype(np.int64) * factor
    elif pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        numbers = column.cast(pa.float64()).to_numpy() * factor
        fits = np.abs(numbers) < 2.0**63
        stamps = np.rint(np.where(fits, numbers, 0)).astype(np.int64)
    else:
        raise DataError(f"column '{time.column}' holds {column.type}, but data.time.format: epoch asks for numbers")
    if not fits.all():
        row = int(np.flatnonzero(~fits)[0])
        raise DataError(
            f"column '{time.column}' holds {cell(column, row)} in {source.where(row)}, which is no time in {time.unit} "
            f"since 1970 (years 1678 to 2262 fit); set data.time.unit"
        )
    return stamps


def early_note(stamps: np.ndarray, time: TimeConfig) -> str | None:
    """A sentence on epoch numbers that all lie within a year of 1970, as those of another unit and days do.

    Not on those that begin near 0, as steps and a clock of a simulation do.
    """
    if time.format != "epoch":
        return None
    away = np.abs(stamps)
    if away.max() >= _YEAR or away.min() <= _SMALL * _UNITS[time.unit]:
        return None
    first, last = (str(np.datetime64(int(stamp), "s")) for stamp in (stamps.min() // _SECOND, stamps.max() // _SECOND))
    return (
        f"as {time.unit} since 1970 the times in '{time.column}' lie between {first} and {last}; if they do not count "
        "from a beginning of their own, set data.time.unit, or, where they are days of Excel or R, write them as dates "
        "such as 2012-01-31"
    )


def to_float(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers as float64; ArrowInvalid for text that is none."""
    return column.cast(pa.float64(), safe=False)


def _refuses(column: pa.ChunkedArray, convert: Callable[[pa.ChunkedArray], object]) -> bool:
    try:
        convert(column)
    except pa.ArrowException:
        return True
    return False


def _dates(column: pa.ChunkedArray, time: TimeConfig, source: Source) -> np.ndarray:
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        remedy = "set data.time.format: epoch (with its unit), mmwr-week or iso-week"
        low, high = pc.min(column).as_py(), pc.max(column).as_py()
        # Read as seconds they would all lie in the first hours of 1970.
        if low >= 0 and high <= _SMALL:
            remedy = (
                "numbers as small as these are days of a year, steps or years rather than dates, so name a column of "
                "dates, or leave data.time out where the rows are in order"
            )
        elif low >= _DAY_NUMBERS[0] and high <= _DAY_NUMBERS[1]:
            remedy = (
                "numbers like these are days (of Excel since 1899-12-30, of R since 1970-01-01), so write them as "
                "dates such as 2012-01-31"
            )
        elif (shape := _without_dashes(column)) == "day":
            remedy = "these are days without dashes, so write them as 2012-01-31"
        elif shape == "month":
            remedy = (
                "write them as 2012-01 where they are months, set data.time.format: mmwr-week where they are MMWR "
                "weeks, iso-week where they are ISO weeks"
            )
        raise DataError(
            f"the time column '{time.column}' holds numbers ({cell(column, 0)} in {source.where(0)}); {remedy}"
        )
    if not (pa.types.is_string(kind) or pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
        raise DataError(
            f"the time column '{time.column}' holds {kind}, not dates; write them as dates or as text "
            "such as 2012-01-31, or name another column in data.time"
        )
    if _refuses(column, to_nanoseconds):

        def like_first(part: pa.ChunkedArray) -> np.ndarray:
            return to_nanoseconds(part, like=column[:1])

        row = first_bad(column, like_first)
        text = cell(column, row)
        if not _refuses(column[row : row + 1], to_nanoseconds):
            raise DataError(
                f"'{text}' in {source.where(row)} of column '{time.column}' is not written as '{cell(column, 0)}' in "
                f"{source.where(0)} is; write all times alike, with an offset such as +02:00 in all rows or in none"
            )
        if pa.types.is_string(kind) and not re.match(r"\s*\d{4}-\d\d-\d\d", text):
            remedy = "write it as 2012-01-31 or 2012-01-31 13:00:00"
            if YEAR_AND_WEEK.fullmatch(text) is not None:
                remedy = (
                    "set data.time.format: mmwr-week where it is an MMWR week, which begins on a Sunday, or iso-week "
                    "where it is an ISO week, which begins on a Monday"
                )
                remedy += "" if "W" in text.upper() else "; write it as 2012-01 where it is a month"
            raise DataError(f"'{text}' in {source.where(row)} of column '{time.column}' is not an ISO date; {remedy}")
        place = f"'{text}' in {source.where(row)} of column '{time.column}'"
        if pa.types.is_string(kind) and _FIRST_YEAR < int(text.strip()[:4]) < _LAST_YEAR:
            raise DataError(
                f"{place} is not an ISO date and time; write 2012-01-31 or 2012-01-31 13:00:00, with an offset such as "
                "+02:00 in all rows or in none"
            )
        raise DataError(f"{place} is not a date of the years 1678 to 2262; mend it")
    return to_nanoseconds(column)


def _without_dashes(column: pa.ChunkedArray) -> str | None:
    """What numbers all look like: `day` (20120131), `month` (201201); None for anything else."""
    if not pa.types.is_integer(column.type):
        return None
    numbers = column.to_numpy()
    for shape, months, day in (("day", numbers // 100, numbers % 100), ("month", numbers, 1)):
        year, month = months // 100, months % 100
        fits = (year > _FIRST_YEAR) & (year < _LAST_YEAR) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
        if fits.all():
            return shape
    return None


def to_nanoseconds(column: pa.ChunkedArray, like: pa.ChunkedArray | None = None) -> np.ndarray:
    """Dates, timestamps or ISO text as int64 nanoseconds since 1970 (UTC where a zone is given); ArrowInvalid.

    like: cells that say whether text is months and whether it has offsets; None = those of the column.
    """
    if pa.types.is_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        like = column if like is None else pc.utf8_trim_whitespace(like)
        zoned = pc.all(pc.match_substring_regex(like, ZONED)).as_py()
        # 2012/01/31 has the order of an ISO date, so it cannot be misread.
        column = pc.replace_substring_regex(column, r"^(\d{4})/(\d\d)/(\d\d)", r"\1-\2-\3")
        if pc.all(pc.match_substring_regex(like, r"^\d{4}-\d\d$")).as_py():
            column = pc.binary_join_element_wise(column, "01", "-")
        column = column.cast(pa.timestamp("ns", "UTC" if zoned else None))
    stamps: np.ndarray = column.cast(pa.timestamp("ns", getattr(column.type, "tz", None))).cast(pa.int64()).to_numpy()
    return stamps


def parse_moment(text: str, kind: Kind) -> int:
    """A stamp from text in the search file, such as where a part of the split begins; ValueError."""
    if kind in WEEKS:
        return week_number(text, kind)
    if kind == "order":
        raise ValueError(f"'{text}' is a time, but data.time is not set, so the rows have none")
    try:
        return int(to_nanoseconds(pa.chunked_array([[text]]))[0])
    except pa.ArrowException:
        raise ValueError(f"'{text}' is not an ISO date; write it as 2012-01-31 or 2012-01-31 13:00:00") from None


def check_weeks(time: np.ndarray, offsets: np.ndarray, kind: Kind, name: str, labels: Callable[[int], str]) -> None:
    """Raise DataError for months such as 201812 that are read as weeks; written 2018-W12 they are weeks.

    name: of the time column. labels: what is written in it, by row.
    """
    later = later_rows(time, offsets)
    over = later[np.isin(time[later] - time[later - 1], _DECEMBER_TO_JANUARY)]
    if not len(over):
        return
    stamps, place = np.unique(time, return_inverse=True)
    weeks = np.array([week_of(stamp, kind).week for stamp in stamps.tolist()])
    over = over[weeks[place[over - 1]] == 12]
    if not len(over) or weeks.max() > 12 or "W" in labels(int(over[0])).upper():
        return
    row = int(over[0])
    raise DataError(
        f"column '{name}' goes from '{labels(row - 1)}' on to '{labels(row)}' and has no number above 12, so these "
        f"are months rather than the weeks that data.time.format: {WEEKS[kind].format} asks for; write them as 2018-12 "
        f"and leave data.time.format out, or as 2018-W12 if they are weeks"
    )


def later_rows(time: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Rows that have an earlier row of their series right before them."""
    inside = np.ones(len(time), dtype=bool)
    inside[offsets[:-1]] = False
    return np.flatnonzero(inside)


def describe_step(step: int, kind: Kind) -> str:
    """A step in words, such as `1 h` or `7 d`."""
    if kind in WEEKS:
        return f"{step} week" if step == 1 else f"{step} weeks"
    for name, size in (("d", _DAY), ("h", 3600 * _SECOND), ("min", 60 * _SECOND), ("s", _SECOND)):
        if step % size == 0:
            return f"{step // size} {name}"
    return f"{step / _SECOND:g} s"


def tells_week(time: np.ndarray, offsets: np.ndarray) -> bool:
    """Whether there are rows enough to tell which days of a week there are.

    Many series of one week alone do not: that some days are missing may be where they begin and end. time: int64 [R],
    stamps of dates.
    """
    longest = (time[offsets[1:] - 1] - time[offsets[:-1]]).max()
    return len(time) >= _WEEKS_TO_TELL * 7 and bool(longest > (_WEEKS_TO_TELL - 1) * 7 * _DAY)


def weekdays(time: np.ndarray, offsets: np.ndarray, step: int | None, kind: Kind) -> np.ndarray | None:
    """Which days of the week rows have, 0 = Thursday, as int64 [fewer than 7]; None where they have all, or there are
    too few rows to tell.

    Rows of steps of 2 to 6 days have some only if nearly each is on the next of these days after the row before it, as
    Mondays, Wednesdays and Fridays are. time: int64 [R], stamps of `on_clocks`. step: of `usual_step`.
    """
    if kind != "date" or step not in _WITHIN_A_WEEK or not tells_week(time, offsets):
        return None
    day = time // _DAY
    found: np.ndarray = np.unique(day % 7)
    if len(found) == 7:
        return None
    later = later_rows(time, offsets)
    before = np.searchsorted(found, day[later - 1] % 7)
    following = (found[(before + 1) % len(found)] - found[before] - 1) % 7 + 1
    follows = day[later] - day[later - 1] == following
    return found if step == _DAY or follows.mean() >= _NEARLY_ALL else None


def season_of(step: int | None, kind: Kind, week: np.ndarray | None = None) -> int:
    """Steps in the natural period of a series: a day of hours, a week of days, a year of weeks or months; 1 = none.

    step: of `usual_step`. week: of `weekdays`; one of five days has five steps.
    """
    if step is None or kind == "order":
        return 1
    if week is not None:
        return len(week)
    if kind in WEEKS:
        return {1: 52, 4: 13}.get(step, 1)
    days, rest = divmod(step, _DAY)
    if rest == 0:
        if days == 28:
            return 13
        if 29 <= days <= 31:
            return 12
        if 89 <= days <= 92:
            return 4
        return {1: 7, 7: 52}.get(days, 1)
    # Below five minutes a day is too many steps for a lookback to reach.
    return _DAY // step if 300 * _SECOND <= step < _DAY and _DAY % step == 0 else 1
