"""Whole sequences of a regression split by time, by group and by both."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from split_tables import make, refusal, sizes

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.split import check_no_leak, split
from xlstm_tune.data.table import Table
from xlstm_tune.errors import DataError

YEARS = {
    "county": [name for name in "abcde" for _ in range(8 * 4)],
    "year": [2000 + year for _ in range(5) for year in range(8) for _ in range(4)],
    "date": [dt.date(2000 + year, 1 + quarter, 1) for _ in range(5) for year in range(8) for quarter in range(4)],
    "rain": [float(row % 7) for row in range(160)],
    "y": [float(sequence) for sequence in range(40) for _ in range(4)],
}


def yearly(**keys: Any) -> tuple[Table, DataConfig]:
    return make(YEARS, **{"task": "regression", "sequence": ["county", "year"], "time": {"column": "date"}} | keys)


def test_split_regression_by_time_cuts_between_years() -> None:
    table, config = yearly(split={"validation": 1, "test": "2006-01-01"})
    result = split(table, config, None)
    for part, years in (("train", range(2000, 2005)), ("validation", [2005]), ("test", [2006, 2007])):
        assert {int(table.keys[number][1]) for number in result.parts[part]} == set(years)
        assert len(result.parts[part]) == 5 * len(years)
    assert result.starts.tolist() == list(range(0, 160, 4)) and (result.ends - result.starts == 4).all()
    assert result.train_rows.sum() == 25 * 4
    check_no_leak(table, result, config)


def test_split_regression_by_group_and_by_both() -> None:
    table, config = yearly(split={"by": "county", "validation": 1, "test": 1})
    result = split(table, config, None)
    assert sizes(result) == [24, 8, 8]
    check_no_leak(table, result, config)
    table, config = yearly(split={"by": ["time", "county"], "validation": 0.25, "test": 0.25})
    result = split(table, config, None)
    assert sizes(result) == [3 * 4, 1 * 2, 1 * 2]
    assert result.notes == ("24 of 40 sequences are left out: their group and their time belong to different parts",)
    check_no_leak(table, result, config)


def test_split_regression_by_every_key_shuffles_sequences() -> None:
    table, config = yearly(split={"by": ["county", "year"], "validation": 0.2, "test": 0.2})
    result = split(table, config, None)
    assert sizes(result) == [24, 8, 8]
    check_no_leak(table, result, config)


def test_split_regression_refusals() -> None:
    table, config = yearly(split={"by": "rain"})
    assert "names 'rain', which is neither 'time' nor one of data.sequence" in refusal(table, config)
    table, config = yearly(split={"validation": 4, "test": 4})
    assert "leaves nothing for the training part of the 8 periods of sequences" in refusal(table, config)
    cut = {"by": ["time", "s"], "order": "s", "validation": 1, "test": 1}
    keys: dict[str, Any] = {"task": "regression", "sequence": "s", "split": cut}
    for seed in range(20):
        table, config = make(
            {"s": [1, 2, 3], "x": [1, 2, 3], "y": [1, 2, 3]}, **keys | {"split": {**keys["split"], "seed": seed}}
        )
        try:
            split(table, config, None)
        except DataError as error:
            assert "leaves no sequence for the" in str(error)
            break
    else:
        pytest.fail("no draw left a part empty")
