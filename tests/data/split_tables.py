"""Small tables to split, and what a split says of them."""

from __future__ import annotations

import datetime as dt
import tempfile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.split import Split, split
from xlstm_tune.data.table import Table, load_table
from xlstm_tune.errors import DataError

DAY_ONE = dt.date(2012, 1, 1)


def make(columns: dict[str, Any], **keys: Any) -> tuple[Table, DataConfig]:
    """Write the columns to a file, read it back by the search file's keys."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/x.parquet"
        pa_parquet.write_table(pa.table(columns), path)
        config = DataConfig.parse({"source": path, "target": "y", **keys}, "data")
        return load_table(config), config


def days(*lengths: int, begin: int = 0) -> list[dt.date]:
    return [DAY_ONE + dt.timedelta(begin + day) for length in lengths for day in range(length)]


def daily(length: int, **keys: Any) -> tuple[Table, DataConfig]:
    """One series of `length` days, y = 0, 1, 2, …"""
    keys = {"time": {"column": "date"}, "lookback": 5, "horizon": 2} | keys
    return make({"date": days(length), "y": [float(day) for day in range(length)]}, **keys)


def sizes(result: Split) -> list[int]:
    return [len(result.parts[part]) for part in ("train", "validation", "test")]


def ends_of(result: Split, part: str) -> list[int]:
    return [int(end) for end in result.ends[result.parts[part]]]


def refusal(table: Table, config: DataConfig, lookback: int | None = None) -> str:
    with pytest.raises(DataError) as error:
        split(table, config, lookback or config.lookback)
    assert "\n" not in str(error.value)
    return str(error.value)


COUNTIES = {
    "county": [name for name in "abcdefghij" for _ in range(12)],
    "date": days(*[12] * 10),
    "y": [float(row) for row in range(120)],
}


def counties(**keys: Any) -> tuple[Table, DataConfig]:
    return make(COUNTIES, **{"series": "county", "time": {"column": "date"}, "lookback": 3, "horizon": 2} | keys)
