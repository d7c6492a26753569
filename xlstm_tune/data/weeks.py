"""Weeks of a year as consecutive numbers: MMWR weeks, which begin on Sundays, and ISO weeks, which begin on Mondays."""

from __future__ import annotations

import re
from datetime import date
from typing import Literal, NamedTuple

from epiweeks import Week, Year


class Weeks(NamedTuple):
    """One way to count the weeks of a year."""

    system: str
    """As epiweeks calls it."""
    format: str
    """As `data.time.format` calls it."""
    name: str


WEEKS = {"week": Weeks("cdc", "mmwr-week", "MMWR week"), "iso-week": Weeks("iso", "iso-week", "ISO week")}
"""By the kind of time."""
KINDS: dict[str, Literal["week", "iso-week"]] = {"mmwr-week": "week", "iso-week": "iso-week"}
"""By format."""
YEAR_AND_WEEK = re.compile(r"\s*(\d{4})[_-]?[Ww]?(\d{1,2})\s*")


def week_number(text: str, kind: str = "week") -> int:
    """Consecutive number of a week such as 2006_1, 2006-W01 or 200601; ValueError when there is none such.

    kind: one of `WEEKS`.
    """
    mine = WEEKS[kind]
    refusal = f"'{text}' is not an {mine.name}"
    match = YEAR_AND_WEEK.fullmatch(text)
    if match is None:
        raise ValueError(f"{refusal}; write year_week, such as 2006_1")
    year, week = int(match[1]), int(match[2])
    if year < 1:
        raise ValueError(f"{refusal}; there is no year {year}")
    last = Year(year, mine.system).totalweeks()
    if not 1 <= week <= last:
        others = [one for one in WEEKS.values() if one != mine and 1 <= week <= Year(year, one.system).totalweeks()]
        remedy = "".join(f"; set data.time.format: {one.format} where it is an {one.name}" for one in others)
        raise ValueError(f"{refusal}; {year} has the weeks 1 to {last}{remedy}")
    # Ordinals are multiples of 7 on Sundays, and one more on Mondays.
    return int(Week(year, week, mine.system).startdate().toordinal()) // 7


def week_of(number: int, kind: str = "week") -> Week:
    """The week that `week_number` has numbered."""
    return Week.fromdate(date.fromordinal(number * 7 + 1), WEEKS[kind].system)
