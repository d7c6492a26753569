"""A champion dates its forecasts by the calendar of its search, also from a table too short to tell it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pa_parquet
import pytest
from champions import finish

from xlstm_tune.layout import ABOUT
from xlstm_tune.predict.champion import load_champion, read_about
from xlstm_tune.predict.forecasts import forecasts, source_of
from xlstm_tune.predict.make import champion_of

DATA: dict[str, Any] = {"target": "y", "time": "day", "lookback": 4, "horizon": 2, "split": {"test": 0.2}}


def searched(folder: Path, days: pa.Array) -> tuple[Path, pa.Table]:
    """A champion of one series at these times, and its table."""
    table = pa.table({"day": days, "y": np.random.default_rng(0).normal(size=len(days))})
    pa_parquet.write_table(table, folder / "x.parquet")
    done = finish(folder / "searches", "x", DATA | {"source": str(folder / "x.parquet")})
    return champion_of(done), table


def dates(champion: Path, table: pa.Table) -> list[str]:
    made = forecasts(load_champion(champion), source_of(table)).table
    return [str(day) for day in made.column("day").to_pylist()]


def notes(champion: Path, table: pa.Table) -> tuple[str, ...]:
    return forecasts(load_champion(champion), source_of(table)).notes


def forget(champion: Path, *keys: str) -> None:
    """Make it one of an earlier program."""
    about = read_about(champion)
    for key in keys:
        del about["time"][key]
    (champion / ABOUT).write_text(json.dumps(about))


@pytest.mark.parametrize("days", [30, 365])
def test_days_of_a_search_are_days_in_a_short_table(tmp_path: Path, days: int) -> None:
    stamps = np.datetime64("2001-01-01") + days * np.arange(60)
    champion, table = searched(tmp_path, pa.array(stamps))
    later = [str(stamps[-1] + days), str(stamps[-1] + 2 * days)]
    assert dates(champion, table) == later
    # The first four of 365 days are the first of January.
    assert dates(champion, table.slice(0, 4)) == [str(stamps[3] + days), str(stamps[3] + 2 * days)]
    forget(champion, "months", "week")
    assert dates(champion, table) != later, "an earlier program took them for months or years"


def test_half_years_of_a_search_follow_the_calendar(tmp_path: Path) -> None:
    stamps = (np.datetime64("1980-01") + 6 * np.arange(60)).astype("datetime64[D]")
    champion, table = searched(tmp_path, pa.array(stamps))
    assert dates(champion, table) == ["2010-01-01", "2010-07-01"]
    assert load_champion(champion).months == 6
    forget(champion, "months", "week")
    assert load_champion(champion).months is None
    assert dates(champion, table) == ["2010-01-01", "2010-07-04"], "184 and 184 days"


def test_a_day_of_the_month_that_not_every_month_has_comes_again(tmp_path: Path) -> None:
    months = np.datetime64("2000-01") + np.arange(60)
    ends = (months + 1).astype("datetime64[D]") - 1
    stamps = np.minimum(months.astype("datetime64[D]") + 29, ends)
    champion, table = searched(tmp_path, pa.array(stamps))
    assert dates(champion, table.slice(0, 52)) == ["2004-05-30", "2004-06-30"], "after 30 April, its last day"
    assert dates(champion, table.slice(0, 50)) == ["2004-03-30", "2004-04-30"], "after 29 February"


def test_quarters_of_a_zone_are_dated_by_its_clocks(tmp_path: Path) -> None:
    stamps = (np.datetime64("2000-01") + 3 * np.arange(80)).astype("datetime64[us]")
    champion, table = searched(tmp_path, pc.assume_timezone(pa.array(stamps), "Pacific/Auckland"))
    made = dates(champion, table)
    assert made == ["2020-01-01 00:00:00+13:00", "2020-04-01 00:00:00+13:00"]


def test_working_days_of_a_search_skip_the_weekend_in_a_short_table(tmp_path: Path) -> None:
    days = np.arange("2022-01-03", "2022-06-18", dtype="datetime64[D]")
    champion, table = searched(tmp_path, pa.array(days[np.is_busday(days)]))
    assert str(days[-1]) == "2022-06-17" and dates(champion, table) == ["2022-06-20", "2022-06-21"]
    short = table.slice(table.num_rows - 8)
    assert dates(champion, short) == ["2022-06-20", "2022-06-21"]
    forget(champion, "months", "week")
    assert dates(champion, short) == ["2022-06-18", "2022-06-19"]


def test_a_search_of_all_days_has_weekends_in_a_short_table(tmp_path: Path) -> None:
    champion, table = searched(tmp_path, pa.array(np.arange("2022-01-03", "2022-06-18", dtype="datetime64[D]")))
    assert dates(champion, table.slice(table.num_rows - 5)) == ["2022-06-18", "2022-06-19"]


def some_days(*week: str) -> npt.NDArray[np.datetime64]:
    days = np.arange("2022-01-03", "2022-12-31", dtype="datetime64[D]")
    return days[np.logical_or.reduce([np.is_busday(days, weekmask=day) for day in week])]


@pytest.mark.parametrize("zone", [None, "America/New_York"])
def test_mondays_wednesdays_and_fridays_of_a_search_follow_each_other(tmp_path: Path, zone: str | None) -> None:
    days = some_days("Mon", "Wed", "Fri")
    stamps = pa.array(days.astype("datetime64[us]"))
    champion, table = searched(tmp_path, stamps if zone is None else pc.assume_timezone(stamps, zone))
    short = table.slice(0, len(table) - 2)
    for part in (short, short.slice(len(short) - 8)):
        assert [day[:10] for day in dates(champion, part)] == [str(day) for day in days[-2:]]
    assert not any("calendar of their own" in note for note in notes(champion, short))


def test_rows_that_end_on_none_of_the_days_are_dated_evenly_and_have_a_note(tmp_path: Path) -> None:
    days = some_days("Mon", "Wed", "Fri")
    champion, table = searched(tmp_path, pa.array(days))
    moved = days[:12].copy()
    moved[-1] -= 1
    assert dates(champion, table.slice(0, 12)) == ["2022-01-31", "2022-02-02"]
    moved_table = table.slice(0, 12).set_column(0, "day", pa.array(moved))
    assert dates(champion, moved_table) == ["2022-01-29", "2022-01-31"], "two and four days after Thursday"
    (note,) = (note for note in notes(champion, moved_table) if "calendar of their own" in note)
    assert note.startswith("the times of forecasts behind the last row are so many times 2 d after it, and the rows")


def test_the_note_names_the_series_that_end_on_none_of_the_days(tmp_path: Path) -> None:
    days = some_days("Mon", "Wed", "Fri")
    names = ["a", "b"]
    table = pa.table(
        {
            "day": pa.array(np.tile(days, 2)),
            "id": pa.array(np.repeat(names, len(days))),
            "y": np.random.default_rng(0).normal(size=2 * len(days)),
        }
    )
    pa_parquet.write_table(table, tmp_path / "x.parquet")
    source = {"source": str(tmp_path / "x.parquet"), "series": "id"}
    champion = champion_of(finish(tmp_path / "searches", "x", DATA | source))
    moved = np.tile(days[:12], 2)
    moved[-1] += 1
    short = pa.concat_tables([table.slice(0, 12), table.slice(len(days), 12)])
    assert not any("calendar of their own" in note for note in notes(champion, short))
    (note,) = (
        note for note in notes(champion, short.set_column(0, "day", pa.array(moved))) if "calendar of their own" in note
    )
    assert note.startswith("the times of forecasts behind the last row of id=b are so many times 2 d after it")


def test_an_earlier_champion_counts_steps_of_two_days(tmp_path: Path) -> None:
    champion, table = searched(tmp_path, pa.array(some_days("Mon", "Wed", "Fri")))
    assert dates(champion, table) == ["2023-01-02", "2023-01-04"], "after Friday, 30 December"
    about = read_about(champion)
    about["time"]["week"] = None
    (champion / ABOUT).write_text(json.dumps(about))
    assert dates(champion, table) == ["2023-01-01", "2023-01-03"]
    assert sum("calendar of their own" in note for note in notes(champion, table)) == 1


def test_rows_of_a_calendar_of_their_own_have_a_note(tmp_path: Path) -> None:
    months = np.arange("2018-01", "2021-01", dtype="datetime64[M]").astype("datetime64[D]")
    dekads = np.sort(np.concatenate([months, months + 10, months + 20]))
    champion, table = searched(tmp_path, pa.array(dekads))
    assert dates(champion, table) == ["2020-12-31", "2021-01-10"]
    (note,) = (note for note in notes(champion, table) if "calendar of their own" in note)
    assert note.startswith("the times of forecasts behind the last row are so many times 10 d after it, and the rows")


@pytest.mark.parametrize(
    "days",
    [
        np.arange("2020-01-01", "2020-12-01", dtype="datetime64[D]"),
        np.arange("1980-01", "1990-01", dtype="datetime64[M]").astype("datetime64[D]"),
        some_days("Mon", "Tue", "Wed", "Thu", "Fri"),
    ],
)
def test_even_rows_months_and_working_days_have_no_such_note(tmp_path: Path, days: Any) -> None:
    champion, table = searched(tmp_path, pa.array(days))
    assert not any("calendar of their own" in note for note in notes(champion, table))
