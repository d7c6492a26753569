"""Stamps behind the end of a series, in the user's own spelling."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from xlstm_tune.data.clock import Kind, to_nanoseconds
from xlstm_tune.data.config import TimeConfig
from xlstm_tune.data.future import later_stamps, written, zone_of
from xlstm_tune.data.weeks import week_number

DAY = 86_400 * 10**9


def date(text: str) -> int:
    return int(np.datetime64(text, "ns").astype(np.int64))


def follow(
    labels: list[str],
    step: int,
    last: int,
    kind: Kind = "date",
    horizon: int = 3,
    column: pa.DataType | None = None,
    **time: str,
) -> list[str]:
    config = TimeConfig.parse({"column": "t"} | time)
    zone = zone_of(column, config, labels[-1])
    return written(later_stamps(last, step, kind, horizon, zone), kind, config, labels, column, zone)


@pytest.mark.parametrize(
    ("labels", "step", "expected"),
    [
        (["2021-12-30", "2021-12-31"], DAY, ["2022-01-01", "2022-01-02", "2022-01-03"]),
        (["2021/12/30", "2021/12/31"], DAY, ["2022/01/01", "2022/01/02", "2022/01/03"]),
        (["2021-12-31"], 3600 * 10**9, ["2021-12-31 01:00:00", "2021-12-31 02:00:00", "2021-12-31 03:00:00"]),
        (["2021-12-31T00:00"], 3600 * 10**9, ["2021-12-31T01:00", "2021-12-31T02:00", "2021-12-31T03:00"]),
        (["2021-12-31 00:00:00"], DAY, ["2022-01-01 00:00:00", "2022-01-02 00:00:00", "2022-01-03 00:00:00"]),
        (["2021-12-31T00:00:00Z"], DAY, ["2022-01-01T00:00:00Z", "2022-01-02T00:00:00Z", "2022-01-03T00:00:00Z"]),
        (["2021-12-31T00:00"], 10**9, ["2021-12-31T00:00:01", "2021-12-31T00:00:02", "2021-12-31T00:00:03"]),
        (["2021-12-31"], 31 * DAY, ["2022-01-31", "2022-02-28", "2022-03-31"]),
        (["2021-12-31"], 28 * DAY, ["2022-01-28", "2022-02-25", "2022-03-25"]),
        (["2021-12-31"], 92 * DAY, ["2022-03-31", "2022-06-30", "2022-09-30"]),
        (["2021-12-31"], 91 * DAY, ["2022-04-01", "2022-07-01", "2022-09-30"]),
        (["2021-12-31"], 365 * DAY, ["2022-12-31", "2023-12-31", "2024-12-31"]),
        (["2021-12-31"], 7 * DAY, ["2022-01-07", "2022-01-14", "2022-01-21"]),
    ],
)
def test_dates_go_on_as_they_are_written(labels: list[str], step: int, expected: list[str]) -> None:
    assert follow(labels, step, date("2021-12-31")) == expected


HOUR = 3600 * 10**9


@pytest.mark.parametrize(
    ("last", "step", "expected"),
    [
        ("2024-04-18 04:00:00+02:00", HOUR, ["2024-04-18 05:00:00+02:00", "2024-04-18 06:00:00+02:00"]),
        ("2024-04-18T04:00-0330", HOUR, ["2024-04-18T05:00-0330", "2024-04-18T06:00-0330"]),
        ("2024-04-18T04+02", HOUR, ["2024-04-18T05+02", "2024-04-18T06+02"]),
        ("2024-05-01 00:00:00+02:00", 30 * DAY, ["2024-06-01 00:00:00+02:00", "2024-07-01 00:00:00+02:00"]),
        ("2024-04-18 23:30:00-05:00", DAY, ["2024-04-19 23:30:00-05:00", "2024-04-20 23:30:00-05:00"]),
    ],
)
def test_times_with_an_offset_go_on_with_that_of_the_last_row(last: str, step: int, expected: list[str]) -> None:
    stamp = int(to_nanoseconds(pa.chunked_array([[last]]))[0])
    assert follow([last], step, stamp, horizon=2) == expected


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_times_of_a_column_with_a_zone_go_on_by_its_clocks(unit: str) -> None:
    kind = pa.timestamp(unit, "Europe/Berlin")
    midnight = date("2024-03-30T23:00")  # the day of 23 hours begins
    hours = follow(["2024-03-31 00:00:00+01:00"], HOUR, midnight, column=kind)
    assert hours == ["2024-03-31 01:00:00+01:00", "2024-03-31 03:00:00+02:00", "2024-03-31 04:00:00+02:00"]
    days = follow(["2024-03-31 00:00:00+01:00"], DAY, midnight, column=kind)
    assert days == ["2024-04-01 00:00:00+02:00", "2024-04-02 00:00:00+02:00", "2024-04-03 00:00:00+02:00"]
    months = follow(["2024-01-31 00:00:00+01:00"], 31 * DAY, date("2024-01-30T23:00"), column=kind)
    assert months == ["2024-02-29 00:00:00+01:00", "2024-03-31 00:00:00+01:00", "2024-04-30 00:00:00+02:00"]


def test_times_in_a_zone_that_nobody_knows_go_on_as_numbers() -> None:
    kind = pa.timestamp("s", "Mars/Olympus")
    assert follow(["86400"], DAY, date("1970-01-02"), column=kind, horizon=1)


def test_months_go_on_from_their_first_day() -> None:
    assert follow(["2021-10", "2021-11"], 30 * DAY, date("2021-11-01")) == ["2021-12", "2022-01", "2022-02"]
    assert follow(["2020-01-30"], 31 * DAY, date("2020-01-30"), horizon=2) == ["2020-02-29", "2020-03-30"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["2014_8", "2014_52"], ["2014_53", "2015_1", "2015_2"]),
        (["2014-W08", "2014-W52"], ["2014-W53", "2015-W01", "2015-W02"]),
        (["201451", "201452"], ["201453", "201501", "201502"]),
    ],
)
def test_weeks_go_on_over_a_year_of_53(labels: list[str], expected: list[str]) -> None:
    assert follow(labels, 1, week_number("2014_52"), "week", format="mmwr-week") == expected


def test_iso_weeks_go_on_over_a_year_of_53() -> None:
    last = week_number("2015-W52", "iso-week")
    assert follow(["2015-W09", "2015-W52"], 1, last, "iso-week", format="iso-week") == [
        "2015-W53", "2016-W01", "2016-W02",
    ]  # fmt: skip


def test_epoch_numbers_go_on_in_their_unit() -> None:
    assert follow(["100", "160"], 60 * 10**9, 160 * 10**9, format="epoch", unit="s") == ["220", "280", "340"]
    assert follow(["0.5", "1.0"], 10**9 // 2, 10**9, horizon=1, format="epoch", unit="s") == ["1.5"]
