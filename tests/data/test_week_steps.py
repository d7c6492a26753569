"""Rows on some days of the week go on by these days, where they really keep to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from table_files import load_text

from xlstm_tune.data.clock import weekdays
from xlstm_tune.data.future import later_stamps
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import Table

DAYS = np.arange("2015-01-01", "2016-03-01", dtype="datetime64[D]")
THURSDAY, FRIDAY, SATURDAY, SUNDAY, MONDAY, TUESDAY, WEDNESDAY = range(7)


def of_week(*days: int) -> np.ndarray:
    """Dates on these days of the week; day 0 since 1970 was a Thursday."""
    return DAYS[np.isin(DAYS.astype(np.int64) % 7, days)]


def daily(folder: Path, days: np.ndarray, names: list[str] | None = None) -> Table:
    names = names or ["a"] * len(days)
    rows = [f"{day},{name},{number % 17}\n" for number, (day, name) in enumerate(zip(days, names, strict=True))]
    return load_text(folder, "date,id,cases\n" + "".join(rows), series="id")


def found(table: Table) -> list[int] | None:
    week = weekdays(table.shown, table.offsets, table.step, table.time_kind)
    return None if week is None else week.tolist()


@pytest.mark.parametrize(
    "week",
    [(MONDAY, WEDNESDAY, FRIDAY), (MONDAY, THURSDAY), (TUESDAY, THURSDAY), (SATURDAY, WEDNESDAY), (SUNDAY, MONDAY)],
)
def test_some_days_of_the_week_go_on_by_them(tmp_path: Path, week: tuple[int, ...]) -> None:
    days = of_week(*week)
    table = daily(tmp_path, days[:-9])
    made = found(table)
    assert made == sorted(week) and table.step is not None
    later = later_stamps(int(table.time[-1]), table.step, "date", 9, week=np.array(made), months=table.months)
    assert later.astype("datetime64[ns]").astype("datetime64[D]").tolist() == days[-9:].tolist()


def test_their_season_is_a_week(tmp_path: Path) -> None:
    from xlstm_tune.data.config import DataConfig

    table = daily(tmp_path, of_week(MONDAY, WEDNESDAY, FRIDAY))
    config = DataConfig.parse(
        {"source": "x.csv", "target": "cases", "time": "date", "series": "id", "lookback": 4, "horizon": 2}, "data"
    )
    assert prepare(table, config).season == 3


def test_holidays_do_not_hide_the_days(tmp_path: Path) -> None:
    days = of_week(MONDAY, WEDNESDAY, FRIDAY)
    kept = np.ones(len(days), dtype=bool)
    kept[20::40] = False
    assert found(daily(tmp_path, days[kept])) == sorted((MONDAY, WEDNESDAY, FRIDAY))


def test_rows_that_do_not_follow_each_other_by_these_days_have_none(tmp_path: Path) -> None:
    whole = of_week(MONDAY, WEDNESDAY, FRIDAY)
    days = whole[np.random.default_rng(0).random(len(whole)) < 0.7]
    table = daily(tmp_path, days)
    assert table.step == 2 * 86_400 * 10**9 and found(table) is None


def test_every_second_day_has_all_days_of_the_week(tmp_path: Path) -> None:
    assert found(daily(tmp_path, DAYS[::2])) is None and found(daily(tmp_path, of_week(MONDAY))) is None


def test_series_on_days_of_their_own_have_none_in_common(tmp_path: Path) -> None:
    one, two = of_week(MONDAY, THURSDAY), of_week(TUESDAY, FRIDAY)
    both = np.concatenate([one, two])
    assert found(daily(tmp_path, both, ["a"] * len(one) + ["b"] * len(two))) is None
    same = np.concatenate([one, one])
    assert found(daily(tmp_path, same, ["a"] * len(one) + ["b"] * len(one))) == sorted((MONDAY, THURSDAY))


@pytest.mark.parametrize(("rows", "step"), [(4, 2), (3, 3), (5, 1), (6, 1)])
def test_many_series_of_one_week_tell_no_days(tmp_path: Path, rows: int, step: int) -> None:
    begin = int(np.flatnonzero(DAYS.astype(np.int64) % 7 == MONDAY)[0])
    days = np.tile(DAYS[begin : begin + rows * step : step], 8)
    table = daily(tmp_path, days, [name for name in "abcdefgh" for _ in range(rows)])
    assert table.step == step * 86_400 * 10**9 and found(table) is None


@pytest.mark.parametrize("week", [(MONDAY, WEDNESDAY, FRIDAY), (MONDAY, TUESDAY, WEDNESDAY, THURSDAY, FRIDAY)])
def test_series_that_reach_into_a_third_week_tell_its_days_together(tmp_path: Path, week: tuple[int, ...]) -> None:
    days = of_week(*week)
    begin = int(np.flatnonzero(days.astype(np.int64) % 7 == MONDAY)[0])
    days = np.tile(days[begin : begin + 3 * len(week)], 8)
    table = daily(tmp_path, days, [name for name in "abcdefgh" for _ in range(3 * len(week))])
    assert found(table) == sorted(week)
