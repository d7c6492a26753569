"""Times in every format, and the order of rows within their series."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from epiweeks import Week
from table_files import DAILY, load, load_text, refusal

from xlstm_tune.data.clock import season_of, weekdays
from xlstm_tune.data.future import later_stamps
from xlstm_tune.data.steps import step_of
from xlstm_tune.data.weeks import WEEKS, week_number, week_of


@pytest.mark.parametrize(
    ("stamps", "time", "season"),
    [
        (["2012-01-01 00:00:00", "2012-01-01 01:00:00", "2012-01-01 02:00:00"], {}, 24),
        (["2012-01-01T00:00", "2012-01-01T00:15", "2012-01-01T00:30"], {"format": "iso"}, 96),
        (["2012-01-01T00:00:00Z", "2012-01-01T00:10:00Z", "2012-01-01T00:20:00Z"], {}, 144),
        (["2012-01-01", "2012-01-08", "2012-01-15"], {}, 52),
        (["2012/01/01", "2012/01/02", "2012/01/03"], {}, 7),
        (["2012-01", "2012-02", "2012-03"], {}, 12),
        (["2012-01-31", "2012-02-29", "2012-03-31"], {}, 12),
        (["2012-03-31", "2012-06-30", "2012-09-30"], {}, 4),
        (["2012-01-01", "2013-01-01", "2014-01-01"], {}, 1),
        (["1325376000", "1325379600", "1325383200"], {"format": "epoch"}, 24),
        (["1325376000.0", "1325379600.0", "1325383200.0"], {"format": "epoch"}, 24),
        (["1325376000000", "1325379600000", "1325383200000"], {"format": "epoch", "unit": "ms"}, 24),
        (["2012_1", "2012_2", "2012_3"], {"format": "mmwr-week"}, 52),
        (["2012-W01", "2012-W02", "2012-W03"], {"format": "mmwr-week"}, 52),
        (["201201", "201202", "201203"], {"format": "mmwr-week"}, 52),
        (["2012-W01", "2012-W02", "2012-W03"], {"format": "iso-week"}, 52),
        (["2012-W51", "2012-W52", "2013-W01"], {"format": "iso-week"}, 52),
    ],
)  # fmt: skip
def test_load_time_in_every_format_sorts_and_gives_the_season(
    tmp_path: Path, stamps: list[str], time: dict[str, str], season: int
) -> None:
    text = "date,cases\n" + "".join(f"{stamp},{row}\n" for row, stamp in enumerate(stamps))
    table = load_text(tmp_path, text, time={"column": "date", **time})
    assert (np.diff(table.time) > 0).all() and table.values[:, 0].tolist() == [0, 1, 2]
    assert season_of(table.step, table.time_kind) == season
    assert table.notes == ()
    if table.time_kind == "date":
        assert str(table.time[0].astype("datetime64[ns]"))[:4] == "2012"


@pytest.mark.parametrize("kind", list(WEEKS))
def test_week_of_is_the_week_that_was_numbered(kind: str) -> None:
    for text in ("2014_53", "2015_53", "2016_1", "2020_53", "2025_52", "2025_53", "2026_1"):
        year, week = map(int, text.split("_"))
        try:
            made = week_of(week_number(text, kind), kind)
        except ValueError:
            assert week == 53
        else:
            assert (made.year, made.week) == (year, week)


def test_iso_weeks_lie_where_the_calendar_has_them() -> None:
    monday = dt.date(2022, 2, 28)
    for week in range(400):
        day = monday + dt.timedelta(7 * week)
        year, number, _ = day.isocalendar()
        assert week_number(f"{year}-W{number:02d}", "iso-week") == day.toordinal() // 7


def test_load_row_order_counts_rows_and_has_no_step(tmp_path: Path) -> None:
    table = load_text(tmp_path, DAILY, time=None, exclude="date")
    assert table.time.tolist() == [0, 1, 2, 3] and table.step is None and table.time_label(2) == "3"


def test_load_parquet_timestamps_of_any_unit_agree(tmp_path: Path) -> None:
    days = [dt.datetime(2012, 1, day) for day in (1, 2, 3)]
    stamps = set()
    for kind in (pa.date32(), pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us", "UTC"), pa.timestamp("ns")):
        table = pa.table({"date": pa.array(days, pa.timestamp("s")).cast(kind), "cases": [1, 2, 3]})
        pa_parquet.write_table(table, tmp_path / "x.parquet")
        stamps.add(tuple(load(tmp_path / "x.parquet").time.tolist()))
    assert len(stamps) == 1


def test_week_number_counts_53_week_years() -> None:
    assert week_number("2009_1") - week_number("2008_53") == 1
    assert week_number("2008_53") - week_number("2008_52") == 1
    assert week_number("2007_1") - week_number("2006_52") == 1
    assert (
        week_number("2025_20") - week_number("2006_1")
        == (Week(2025, 20).startdate() - Week(2006, 1).startdate()).days // 7
    )


@pytest.mark.parametrize(
    ("stamps", "time", "expected"),
    [
        (["2006_52", "2006_53"], {"format": "mmwr-week"}, "row 2: '2006_53' is not an MMWR week; 2006 has the"),
        (["2015-W52", "2015-W53"], {"format": "mmwr-week"}, "; 2015 has the weeks 1 to 52; set data.time.format: iso-"),
        (["2014_52", "2014_53"], {"format": "iso-week"}, "'2014_53' is not an ISO week; 2014 has the weeks 1 to 52; s"),
        (["2006_1", "2006_0"], {"format": "mmwr-week"}, "'2006_0' is not an MMWR week"),
        (["2006_1", "week 2"], {"format": "mmwr-week"}, "write year_week, such as 2006_1"),
        (["2006_1", "2006_2"], {}, "'2006_1' in row 1 of column 'date' is not an ISO date; set data.time.format: mmwr"),
        (["2012-01-01", "31/01/2012"], {}, "'31/01/2012' in row 2 of column 'date' is not an ISO date; write it as "),
        (["2012-01-01", "2012-13-01"], {}, "'2012-13-01' in row 2"),
        (["2012-01-01", "2012-02-30"], {}, "'2012-02-30' in row 2"),
        (["2012-01-01", "9999-01-01"], {}, "'9999-01-01' in row 2 of column 'date' is not a date of the years 1678"),
        (["2012-01-01", "n/a"], {}, "the time column 'date' is blank in row 2; every row needs its time"),
        (["2012-01-01", ""], {}, "the time column 'date' is blank in row 2"),
        (["2012_01", "2012_02"], {}, "an ISO week, which begins on a Monday; write it as 2012-01 where it is a month"),
        (["2022-W09", "2022-W10"], {}, "or iso-week where it is an ISO week, which begins on a Monday"),
        (["43831", "43832"], {}, "(43831 in row 1); numbers like these are days (of Excel since 1899-12-30, of R sin"),
        (["18262.5", "18263.5"], {}, "so write them as dates such as 2012-01-31"),
        (["2012-01-01 0:00", "2012-01-01 1:00"], {}, "'2012-01-01 0:00' in row 1 of column 'date' is not an ISO date"),
        (["20120131", "20120201"], {}, "(20120131 in row 1); these are days without dashes, so write them as 2012"),
        (["201201", "201202"], {}, "write them as 2012-01 where they are months, set data.time.format: mmwr-week"),
        (["20120131", "20120201"], {"format": "epoch"}, "are days without dashes rather than seconds since 1970"),
        (["17000", "1"], {}, "the time column 'date' holds numbers (17000 in row 1); set data.time.format: epoch"),
        (["1", "366"], {}, "holds numbers (1 in row 1); numbers as small as these are days of a year, steps or years"),
        (["17", "late"], {"format": "epoch"}, "column 'date' holds text ('late' in row 2), but data.time.format"),
        (["1325376000000", "1325376060000"], {"format": "epoch"}, "which is no time in s since 1970"),
        (["18446744073709551615", "1"], {"format": "epoch", "unit": "ns"}, "is no time in ns since 1970"),
        (["1.5", "nan"], {"format": "epoch"}, "the time column 'date' is blank in row 2"),
    ],
)  # fmt: skip
def test_load_bad_time_is_one_sentence(tmp_path: Path, stamps: list[str], time: dict[str, str], expected: str) -> None:
    text = "date,cases\n" + "".join(f"{stamp},{row}\n" for row, stamp in enumerate(stamps))
    assert expected in refusal(tmp_path, text, time={"column": "date", **time})


NAIVE, ZONED = ("2012-01-{day:02d} 13:00:00", "2012-01-{day:02d} 13:00:00+02:00")


@pytest.mark.parametrize(
    ("spelling", "other"),
    [(NAIVE, ZONED), (ZONED, NAIVE), ("2012-{day:02d}", "2012-{day:02d}-01"), ("2012-{day:02d}-01", "2012-{day:02d}")],
)
@pytest.mark.parametrize("others", [[3], [5, 6, 7, 8], [4, 5, 6, 7, 8], [2, 5], [8]])
def test_load_times_written_in_two_ways_name_the_first_that_differs(
    tmp_path: Path, spelling: str, other: str, others: list[int]
) -> None:
    stamps = [(other if day in others else spelling).format(day=day) for day in range(1, 9)]
    message = refusal(tmp_path, "date,cases\n" + "".join(f"{stamp},1\n" for stamp in stamps))
    assert message == (
        f"'{stamps[others[0] - 1]}' in row {others[0]} of column 'date' is not written as '{stamps[0]}' in row 1 is; "
        "write all times alike, with an offset such as +02:00 in all rows or in none"
    )


def test_load_a_bad_time_among_times_with_offsets_is_named(tmp_path: Path) -> None:
    stamps = [ZONED.format(day=day) for day in (1, 2, 3, 32, 5, 6)]
    message = refusal(tmp_path, "date,cases\n" + "".join(f"{stamp},1\n" for stamp in stamps))
    assert message.startswith("'2012-01-32 13:00:00+02:00' in row 4 of column 'date' is not an ISO date and time")


def monthly(between: str) -> list[str]:
    return [f"{year}{between}{month:02d}" for year in (2018, 2019, 2020) for month in range(1, 13)]


@pytest.mark.parametrize("between", ["", "_", "-"])
def test_load_months_as_weeks_are_refused(tmp_path: Path, between: str) -> None:
    text = "date,cases\n" + "".join(f"{stamp},{row}\n" for row, stamp in enumerate(monthly(between)))
    assert refusal(tmp_path, text, time={"column": "date", "format": "mmwr-week"}) == (
        f"column 'date' goes from '2018{between}12' on to '2019{between}01' and has no number above 12, so these are "
        "months rather than the weeks that data.time.format: mmwr-week asks for; write them as 2018-12 and leave "
        "data.time.format out, or as 2018-W12 if they are weeks"
    )


def test_load_the_first_weeks_of_years_are_weeks(tmp_path: Path) -> None:
    time = {"column": "date", "format": "mmwr-week"}
    rows = "".join(f"{stamp[:4]},{stamp},{stamp},1\n" for stamp in monthly(""))
    by_year = load_text(tmp_path, "year,date,temp,cases\n" + rows, time=time, task="regression", sequence="year")
    assert by_year.step == 1 and len(by_year.keys) == 3, "no sequence goes on from week 12 to week 1"
    marked = "".join(f"{stamp},{row}\n" for row, stamp in enumerate(monthly("-W")))
    assert load_text(tmp_path, "date,cases\n" + marked, time=time).time_kind == "week"
    first = monthly("")[:11] + monthly("")[12:]
    assert "from '201912' on to '202001'" in refusal(
        tmp_path, "date,cases\n" + "".join(f"{stamp},1\n" for stamp in first), time=time
    ), "also where the first December is missing"
    late = "".join(f"{stamp},1\n" for stamp in ("201811", "201812", "201901", "201913"))
    assert load_text(tmp_path, "date,cases\n" + late, time=time).step == 1


def spaced(days: int, rows: int) -> list[np.datetime64]:
    return [np.datetime64("2019-01-05") + days * row for row in range(rows)]


FIRST_MONDAYS = ["2021-02-01", "2021-03-01", "2021-04-05", "2021-05-03", "2021-06-07", "2021-07-05", "2021-08-02"]


@pytest.mark.parametrize(
    ("stamps", "days", "season"),
    [
        (spaced(28, 40), 28, 13),
        ([*spaced(28, 20), np.datetime64("2020-08-15")], 28, 13),  # the longer one of a year of 53 weeks
        (spaced(91, 9), 91, 4),
        (["2020-01-01", "2020-04-01", "2020-07-01"], 92, 4),
        (FIRST_MONDAYS, 31, 12),
        (["2013-02-01", "2013-03-01"], 31, 12),
        (["2013-01-31", "2013-02-28"], 31, 12),
        (["2013-01-31", "2013-02-28", "2013-03-31"], 31, 12),
        (["2013-01-31", "2013-02-28", "2013-03-28"], 28, 13),
        (["2012-01-01", "2012-01-02", "2012-01-04"], 1, 7),
    ],
)
def test_load_whole_weeks_are_told_from_months_and_quarters(
    tmp_path: Path, stamps: list[object], days: int, season: int
) -> None:
    table = load_text(tmp_path, "date,cases\n" + "".join(f"{stamp},{row}\n" for row, stamp in enumerate(stamps)))
    assert table.step == days * 86_400 * 10**9 and season_of(table.step, table.time_kind) == season


def test_load_rows_out_of_order_are_sorted_inside_their_series_and_said(tmp_path: Path) -> None:
    text = "unique_id,ds,y\nB,2012-01-02,4\nA,2012-01-01,1\nB,2012-01-01,3\nA,2012-01-02,2\n"
    table = load_text(tmp_path, text, series="unique_id", time={"column": "ds"}, target="y")
    assert table.keys == (("B",), ("A",)) and table.key_names == ("unique_id",)
    assert table.values[:, 0].tolist() == [3, 4, 1, 2] and table.offsets.tolist() == [0, 2, 4]
    assert table.notes == ("the rows were not in the order of 'ds' in 1 of 2 series and were sorted by it",)
    assert table.series_name(1) == "unique_id=A" and table.file_rows.tolist() == [2, 0, 1, 3]


def test_load_two_rows_of_one_moment_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, DAILY + "2012-01-02,9,9,9\n")
    assert message == (
        "two rows stand for '2012-01-02' in column 'date' (row 2 and row 5); "
        "remove one, or name the columns that tell series apart in data.series"
    )
    text = "county,date,cases\nPima,2012-01-01,1\nYuma,2012-01-01,2\nYuma,2012-01-01,3\n"
    assert refusal(tmp_path, text, series="county") == (
        "the series county=Yuma has two rows for '2012-01-01' in column 'date' (row 2 and row 3); remove one of them"
    )
    assert load_text(tmp_path, text, series="county", time=None, exclude="date").offsets.tolist() == [0, 1, 3]


def test_load_an_hour_that_a_clock_change_repeats_is_named_as_such(tmp_path: Path) -> None:
    hours = [f"2023-10-29 {hour:02d}:00:00" for hour in (1, 2, 2, 3)]
    text = "date,cases\n" + "".join(f"{hour},{row}\n" for row, hour in enumerate(hours))
    assert refusal(tmp_path, text) == (
        "two rows stand for '2023-10-29 02:00:00' in column 'date' (row 2 and row 3); if a clock change repeats this "
        "hour, give times their offset (2023-10-29 02:00:00+02:00), else remove one, or name the columns that tell "
        "series apart in data.series"
    )
    offsets = ["+02:00", "+02:00", "+01:00", "+01:00"]
    told = "date,cases\n" + "".join(f"{hour}{zone},1\n" for hour, zone in zip(hours, offsets, strict=True))
    assert load_text(tmp_path, told).offsets.tolist() == [0, 4]
    for other in ("2023-10-30 02:00:00", "2023-10-29 12:00:00", "2023-10-29"):  # a Monday, noon, a day
        assert "clock" not in refusal(tmp_path, f"date,cases\n{other},1\n{other},2\n")


def test_load_gaps_in_time_are_noted(tmp_path: Path) -> None:
    table = load_text(tmp_path, DAILY + "2012-01-07,1,1,1\n2012-01-08,1,1,1\n")
    (note,) = table.notes
    assert note.startswith("1 step in time differs from the usual 1 d, the first between 2012-01-04 and 2012-01-07")


def test_load_time_without_a_usual_step_is_said(tmp_path: Path) -> None:
    seconds = (0, 5, 12, 17, 40, 49, 101)
    text = "date,cases\n" + "".join(f"2012-01-01 00:{s // 60:02d}:{s % 60:02d},{s}\n" for s in seconds)
    (note,) = load_text(tmp_path, text).notes
    assert note == "the time has no regular step: rows are 5 s to 52 s apart; every row counts as one step all the same"


def test_load_blank_series_key_is_refused(tmp_path: Path) -> None:
    for blank in ("Pima,2012-01-01,1\n,2012-01-02,2\n", "1.5,2012-01-01,1\nnan,2012-01-02,2\n"):
        message = refusal(tmp_path, "county,date,cases\n" + blank, series="county")
        assert "column 'county' of data.series is blank in row 2" in message


def test_load_text_key_called_na_is_a_name(tmp_path: Path) -> None:
    text = "country,date,cases\nNA,2012-01-01,1\nDE,2012-01-02,2\n"
    assert load_text(tmp_path, text, series="country").keys == (("NA",), ("DE",))


def test_a_week_of_five_days_is_a_season_of_five_and_has_no_weekend(tmp_path: Path) -> None:
    days = [day for day in range(19_000, 19_060) if day % 7 not in (2, 3)]  # 0 = Thursday
    stamps = np.array(days, dtype="datetime64[D]")
    (tmp_path / "x.csv").write_text("date,cases\n" + "".join(f"{day},{n}\n" for n, day in enumerate(stamps)))
    table = load(tmp_path / "x.csv")
    week = weekdays(table.time, table.offsets, table.step, table.time_kind)
    assert week is not None and season_of(table.step, table.time_kind, week) == 5
    friday = np.datetime64("2022-03-04", "ns").astype(np.int64)
    later = later_stamps(int(friday), table.step or 0, table.time_kind, 6, week=week)
    written = later.astype("datetime64[ns]").astype("datetime64[D]").astype(str).tolist()
    assert written == ["2022-03-07", "2022-03-08", "2022-03-09", "2022-03-10", "2022-03-11", "2022-03-14"]
    every = np.arange(19_000, 19_060, dtype=np.int64) * 86_400 * 10**9
    assert weekdays(every, np.array([0, len(every)]), table.step, "date") is None
    assert weekdays(table.time[:10], np.array([0, 10]), table.step, "date") is None


@pytest.mark.parametrize(
    ("recorded", "found", "step"),
    [(28, 31, 31), (91, 92, 92), (28, 28, 28), (28, 7, 28), (31, 28, 31), (None, 28, 28), (28, None, 28)],
)
def test_step_of_an_earlier_champion(recorded: int | None, found: int | None, step: int) -> None:
    """It may have recorded 28 days for months and 91 for quarters."""
    day = 86_400 * 10**9
    given = (None if days is None else days * day for days in (recorded, found))
    assert step_of(*given) == step * day


@pytest.mark.parametrize(
    ("stamps", "unit", "between"),
    [
        (["18262", "18263"], "s", "1970-01-01T05:04:22 and 1970-01-01T05:04:23"),
        (["1577836800", "1577840400"], "ms", "1970-01-19T06:17:16 and 1970-01-19T06:17:20"),
    ],
)
def test_load_epoch_numbers_that_all_lie_in_1970_are_noted(
    tmp_path: Path, stamps: list[str], unit: str, between: str
) -> None:
    text = "date,cases\n" + "".join(f"{stamp},{row}\n" for row, stamp in enumerate(stamps))
    (note,) = load_text(tmp_path, text, time={"column": "date", "format": "epoch", "unit": unit}).notes
    assert note.startswith(f"as {unit} since 1970 the times in 'date' lie between {between}; if they do not count ")
    assert note.endswith("where they are days of Excel or R, write them as dates such as 2012-01-31")


def test_load_epoch_numbers_that_begin_near_0_are_a_clock_of_their_own(tmp_path: Path) -> None:
    text = "date,cases\n" + "".join(f"{600 * row},{row}\n" for row in range(100))
    table = load_text(tmp_path, text, time={"column": "date", "format": "epoch"})
    assert table.notes == () and table.step == 600 * 10**9
