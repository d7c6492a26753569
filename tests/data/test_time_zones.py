"""Days, weeks and months of times in a zone are those of its clocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pa_parquet
import pytest
from table_files import load, load_text

from xlstm_tune.data.clock import season_of
from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import Table

DAY = 86_400 * 10**9
SPLIT = {"validation": 0.2, "test": 0.2}


def zoned(folder: Path, local: np.ndarray, zone: str) -> Table:
    """A table whose clocks show these stamps."""
    times = pc.assume_timezone(pa.array(local.astype("datetime64[us]")), zone)
    pa_parquet.write_table(pa.table({"date": times, "cases": np.arange(len(local)) % 7}), folder / "x.parquet")
    return load(folder / "x.parquet")


def offset_text(folder: Path, local: np.ndarray, zone: str) -> Table:
    """The same as text that ends in the offset of each row."""
    zoned = pc.assume_timezone(pa.array(local.astype("datetime64[s]")), zone)
    hours = (local.astype("datetime64[s]").astype(int) - pc.cast(zoned, pa.int64()).to_numpy()) // 3600
    rows = [f"{day}T00:00:00{hour:+03d}:00,{n}\n" for n, (day, hour) in enumerate(zip(local, hours, strict=True))]
    return load_text(folder, "date,cases\n" + "".join(rows))


@pytest.mark.parametrize("zone", ["Europe/London", "Australia/Sydney", "America/New_York"])
@pytest.mark.parametrize("make", [zoned, offset_text])
def test_working_days_have_a_season_of_five(tmp_path: Path, zone: str, make: object) -> None:
    days = np.arange("2022-01-03", "2023-01-03", dtype="datetime64[D]")
    table = make(tmp_path, days[np.is_busday(days)], zone)  # type: ignore[operator]
    config = DataConfig.parse({"source": "x", "target": "cases", "lookback": 5, "time": "date", "split": SPLIT}, "data")
    assert table.step == DAY and prepare(table, config).season == 5


def test_days_between_two_changes_of_the_clocks_have_no_gaps(tmp_path: Path) -> None:
    days = np.arange("2022-01-03", "2023-01-03", dtype="datetime64[D]")
    for make in (zoned, offset_text):
        table = make(tmp_path, days, "Europe/Berlin")
        assert table.step == DAY and table.notes == ()


@pytest.mark.parametrize(("months", "step", "season"), [(3, 92, 4), (1, 31, 12)])
def test_months_and_quarters_are_those_of_the_clocks(tmp_path: Path, months: int, step: int, season: int) -> None:
    stamps = (np.datetime64("2000-01") + months * np.arange(80)).astype("datetime64[D]")
    table = zoned(tmp_path, stamps, "Pacific/Auckland")
    assert table.step == step * DAY and table.months == months and table.notes == ()
    assert season_of(table.step, table.time_kind) == season


def test_hours_pass_through_a_change_of_the_clocks(tmp_path: Path) -> None:
    begin = np.datetime64("2022-10-29T22:00", "us")
    times = pa.array(begin + np.arange(48) * np.timedelta64(1, "h")).cast(pa.timestamp("us", "UTC"))
    times = times.cast(pa.timestamp("us", "Europe/Berlin"))
    pa_parquet.write_table(pa.table({"date": times, "cases": np.arange(48)}), tmp_path / "x.parquet")
    table = load(tmp_path / "x.parquet")
    assert table.step == DAY // 24 and table.notes == () and (np.diff(table.time) == table.step).all()
