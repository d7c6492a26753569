"""Which rows follow the calendar by months and which by days, and what follows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from table_files import load_text

from xlstm_tune.data.future import later_stamps
from xlstm_tune.data.steps import day_of_month, months_of, usual_step

DAY = 86_400 * 10**9


def by_days(begin: str, days: int, rows: int) -> list[str]:
    return [str(np.datetime64(begin) + days * row) for row in range(rows)]


def by_months(begin: str, months: int, rows: int, day: int) -> list[str]:
    """day: of the month, or the last where it is shorter."""
    made = []
    for row in range(rows):
        month = np.datetime64(begin) + months * row
        last = (month + 1).astype("datetime64[D]") - 1
        made.append(str(min(month.astype("datetime64[D]") + day - 1, last)))
    return made


def stamps_of(days: list[str]) -> np.ndarray:
    stamps: np.ndarray = np.array(days, dtype="datetime64[ns]").astype(np.int64)
    return stamps


def go_on(days: list[str], count: int) -> list[str]:
    time = stamps_of(days)
    offsets = np.array([0, len(time)])
    step = usual_step(time, offsets)
    assert step is not None
    later = later_stamps(
        int(time[-1]), step, "date", count, months=months_of(time, offsets, "date"), day=day_of_month(time)
    )
    return [str(stamp)[:10] for stamp in later.astype("datetime64[ns]")]


@pytest.mark.parametrize("days", [28, 30, 31, 90, 91, 92, 365, 7, 14])
@pytest.mark.parametrize("begin", ["2005-01-01", "2005-01-31", "2004-02-29"])
def test_rows_of_as_many_days_go_on_by_days(days: int, begin: str) -> None:
    rows = by_days(begin, days, 30)
    assert go_on(rows[:24], 6) == rows[24:]


@pytest.mark.parametrize("months", [1, 2, 3, 4, 6, 12, 24, 60, 120])
@pytest.mark.parametrize("day", [1, 15, 28, 29, 30, 31])
@pytest.mark.parametrize("rows", [4, 5, 14])
def test_rows_of_as_many_months_go_on_by_the_calendar(months: int, day: int, rows: int) -> None:
    expected = by_months("1901-01", months, rows + 4, day)
    assert go_on(expected[:-4], 4) == expected[-4:]


@pytest.mark.parametrize(
    ("days", "later"),
    [
        (["2013-01-31", "2013-02-28"], ["2013-03-31", "2013-04-30"]),
        (["2013-06-30", "2013-09-30"], ["2013-12-31", "2014-03-31"]),
        (["2013-01-28", "2013-02-28"], ["2013-03-28", "2013-04-28"]),
        (["2013-02-01", "2013-03-01"], ["2013-04-01", "2013-05-01"]),
        (["2020-02-29", "2021-02-28", "2022-02-28"], ["2023-02-28", "2024-02-29"]),
        (["2013-01-01", "2013-02-01", "2013-04-01", "2013-05-01"], ["2013-06-01", "2013-07-01"]),
        (["2013-01-31", "2013-02-28", "2013-03-28"], ["2013-04-25", "2013-05-23"]),
    ],
)
def test_short_tables_and_tables_with_gaps(days: list[str], later: list[str]) -> None:
    assert go_on(days, 2) == later


@pytest.mark.parametrize(("weekday", "week"), [("Mon", 0), ("Fri", 2)])
def test_first_mondays_are_months(weekday: str, week: int) -> None:
    firsts = np.arange("2015-01", "2019-01", dtype="datetime64[M]").astype("datetime64[D]")
    time = stamps_of(np.busday_offset(firsts, week, roll="forward", weekmask=weekday).astype(str).tolist())
    assert months_of(time, np.array([0, len(time)]), "date") == 1


def test_last_working_days_are_months(tmp_path: Path) -> None:
    firsts = np.arange("2015-01", "2019-01", dtype="datetime64[M]").astype("datetime64[D]")
    days = np.busday_offset(firsts, -1, roll="forward").astype(str).tolist()
    table = load_text(tmp_path, "date,cases\n" + "".join(f"{day},{n}\n" for n, day in enumerate(days)))
    assert table.months == 1 and table.notes == ()


@pytest.mark.parametrize(
    ("months", "day", "missing", "usual", "between"),
    [
        (1, 1, 100, "1 month", "2008-04-01 and 2008-06-01"),
        (1, 31, 100, "1 month", "2008-04-30 and 2008-06-30"),
        (3, 1, 20, "3 months", "2004-10-01 and 2005-04-01"),
        (12, 1, 20, "1 year", "2019-01-01 and 2021-01-01"),
    ],
)
def test_a_row_that_lacks_is_one_gap(
    tmp_path: Path, months: int, day: int, missing: int, usual: str, between: str
) -> None:
    days = by_months("2000-01", months, 120, day)
    del days[missing]
    table = load_text(tmp_path, "date,cases\n" + "".join(f"{one},{n}\n" for n, one in enumerate(days)))
    [note] = table.notes
    assert note.startswith(f"1 step in time differs from the usual {usual}, the first between {between};")


def test_a_sequence_that_lacks_a_month_is_the_one_with_gaps(tmp_path: Path) -> None:
    days = [f"{year}-{month:02d}-01" for year in range(2001, 2007) for month in range(1, 13)]
    rows = [f"{day},{day[:4]},{n},1\n" for n, day in enumerate(days) if day != "2004-06-01"]
    table = load_text(
        tmp_path, "date,year,rain,cases\n" + "".join(rows), task="regression", sequence="year", lookback=None
    )
    assert any(
        note.startswith(
            "1 of 6 sequences have gaps in 'date', where rows are not 1 month apart, the first: year=2004, between "
            "2004-05-01 and 2004-07-01"
        )
        for note in table.notes
    ), table.notes


def test_half_years_are_no_gaps_and_days_follow_no_calendar(tmp_path: Path) -> None:
    text = "date,cases\n" + "".join(f"{day},{n}\n" for n, day in enumerate(by_months("2000-01", 6, 30, 1)))
    table = load_text(tmp_path, text)
    assert table.months == 6 and table.notes == ()
    text = "date,cases\n" + "".join(f"{day},{n}\n" for n, day in enumerate(by_days("2000-01-01", 1, 30)))
    assert load_text(tmp_path, text).months == 0


def test_series_each_keep_a_day_of_their_own(tmp_path: Path) -> None:
    rows = [f"{day},a,{n}\n" for n, day in enumerate(by_months("2000-01", 1, 9, 31))]
    rows += [f"{day},b,{n}\n" for n, day in enumerate(by_months("2000-01", 1, 9, 15))]
    text = "date,id,cases\n" + "".join(rows)
    assert load_text(tmp_path, text, series="id").months == 1
    rows += [f"{day},c,{n}\n" for n, day in enumerate(by_days("2000-01-01", 30, 9))]
    assert load_text(tmp_path, "date,id,cases\n" + "".join(rows), series="id").months == 0


def test_without_months_the_step_tells_as_in_earlier_programs() -> None:
    last = int(stamps_of(["2020-01-31"])[0])
    for step, first in ((30, "2020-02-29"), (90, "2020-04-30"), (365, "2021-01-31"), (184, "2020-08-02")):
        made = later_stamps(last, step * DAY, "date", 1)
        assert str(made.astype("datetime64[ns]")[0])[:10] == first
