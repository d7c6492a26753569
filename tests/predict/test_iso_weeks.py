"""A champion of ISO weeks forecasts over a year of 53, and programs that know none refuse it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from champions import finish, write_csv

from xlstm_tune.data.read import read_source
from xlstm_tune.errors import StorageError
from xlstm_tune.predict.champion import load_champion
from xlstm_tune.predict.forecasts import forecasts
from xlstm_tune.predict.make import champion_of


def test_a_champion_of_iso_weeks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = [dt.date(2018, 12, 31) + dt.timedelta(7 * week) for week in range(104)]
    weeks = [f"{iso.year}-W{iso.week:02d}" for iso in (day.isocalendar() for day in days)]
    assert weeks[0] == "2019-W01" and weeks[-1] == "2020-W52"
    table = write_csv(tmp_path / "weekly.csv", {"week": weeks, "y": [float(place % 13) for place in range(104)]})
    time = {"column": "week", "format": "iso-week"}
    data = {"source": str(table), "target": "y", "time": time, "lookback": 6, "horizon": 3, "calendar": ["year"]}
    champion = champion_of(finish(tmp_path / "searches", "x", data))
    made = forecasts(load_champion(champion), read_source([str(table)], {})).table
    assert made.column("week").to_pylist() == ["2020-W53", "2021-W01", "2021-W02"]
    monkeypatch.setattr("xlstm_tune.predict.champion.SCHEMA", 4)
    with pytest.raises(StorageError, match=r"has schema 5 of xlstm_tune .*; use the program that wrote it"):
        load_champion(champion)
