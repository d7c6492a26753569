"""Whole tables: a small one, the built-in samples and real data sets, and their fingerprint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from table_files import DAILY, load, load_text

from xlstm_tune.data.clock import season_of
from xlstm_tune.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not there ({SHARED})")


def test_load_csv_gives_values_in_the_order_of_the_file(tmp_path: Path) -> None:
    table = load_text(tmp_path, DAILY)
    assert table.features == ("temp", "wind", "cases")
    np.testing.assert_array_equal(table.values, [[1, 5, 10], [2, 6, 11], [3, 7, 12], [4, 8, 14]])
    assert table.values.dtype == np.float32 and table.values.flags.c_contiguous
    assert table.targets.dtype == np.float64 and table.targets.tolist() == [[10], [11], [12], [14]]
    assert table.offsets.tolist() == [0, 4] and table.keys == (("all",),) and table.key_names == ()
    assert table.observed.all() and table.notes == () and table.oracle is None
    assert table.step == 86_400_000_000_000 and season_of(table.step, table.time_kind) == 7
    assert table.time_label(2) == "2012-01-03"
    assert table.time[0] == np.datetime64("2012-01-01", "ns").astype(np.int64)


def test_load_outbreak_keeps_the_conditional_mean_apart() -> None:
    keys = {"task": "regression", "sequence": ["county", "year"], "lookback": None, "time": {"column": "date"}}
    table = load(
        "sample:outbreak",
        sample={"counties": 3, "years": 2},
        categories=["weather_main", "weather_description"],
        **keys,
    )
    assert table.oracle is not None and table.oracle.shape == table.targets.shape == (6, 1)
    assert not any("expected" in name for name in table.features)
    assert (table.oracle > 0).all() and np.unique(table.oracle).size == 6
    with pytest.raises(DataError, match=r"'data\.features' names 'expected_cases', which is not a column"):
        load("sample:outbreak", sample={"counties": 3, "years": 2}, features=["expected_cases"], **keys)


def test_load_seattle_weather() -> None:
    table = load("sample:seattle-weather", target="temp_max", categories="weather")
    assert len(table.values) == 1461 and "weather=rain" in table.features and table.notes == ()


@needs_shared
@pytest.mark.parametrize("policy", ["interpolate", "forward_fill"])
def test_load_maricopa_by_mmwr_week(policy: str) -> None:
    path = SHARED / "maricopa_valley_fever_weekly.csv"
    time = {"column": "Date", "format": "mmwr-week"}
    with pytest.raises(
        DataError,
        match=r"'Daily AQI Value' has 16 blank cells, the first in row 996 \(and there are some in 1 other column\)",
    ):
        load(path, time=time, target="MARICOPA")
    table = load(path, time=time, target="MARICOPA", missing=policy)
    # 1011 weeks without a gap, the three 53-week years included; the blanks are the last 16 rows.
    assert table.values.shape == (1011, 28) and (np.diff(table.time) == 1).all() and table.step == 1
    assert table.time_label(0) == "2006_1" and table.time_label(1010) == "2025_20"
    assert len(table.notes) == 1 and "32 blank cells" in table.notes[0] and not table.peeks.any()
    column = table.features.index("Daily AQI Value")
    assert (table.values[995:, column] == table.values[994, column]).all() and table.observed.all()


@needs_shared
def test_load_etth1() -> None:
    table = load(SHARED / "ETTh1.csv", target="all")
    assert table.values.shape == (17420, 7) and table.target_names == table.features and table.notes == ()
    assert season_of(table.step, table.time_kind) == 24


def test_fingerprint_follows_values_names_and_time(tmp_path: Path) -> None:
    same, *others = [
        load_text(tmp_path, text).fingerprint
        for text in (DAILY, DAILY.replace("14\n", "15\n"), DAILY.replace("wind", "gust"), DAILY.replace("-04", "-05"))
    ]
    assert len({same, *others}) == 4 and load_text(tmp_path, DAILY).fingerprint == same
