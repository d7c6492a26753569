"""Forecasts split by group: whole series on one side."""

from __future__ import annotations

import numpy as np
from split_tables import COUNTIES, counties, make, sizes

from xlstm_tune.data.split import Split, check_no_leak, split
from xlstm_tune.data.table import Table


def groups_of(table: Table, result: Split, part: str) -> set[str]:
    series = np.searchsorted(table.offsets, result.starts[result.parts[part]], side="right") - 1
    return {table.keys[number][0] for number in series}


def test_split_by_group_keeps_whole_series_on_one_side() -> None:
    table, config = counties(split={"by": "county", "validation": 0.2, "test": 3})
    result = split(table, config, 3)
    found = [groups_of(table, result, part) for part in ("train", "validation", "test")]
    assert [len(names) for names in found] == [5, 2, 3] and set.union(*found) == set("abcdefghij")
    assert sizes(result) == [5 * 8, 2 * 8, 3 * 8]
    assert result.train_rows.sum() == 5 * 12
    check_no_leak(table, result, config)


def test_split_by_group_depends_on_the_seed_alone() -> None:
    draws = []
    for seed in (0, 0, 1):
        table, config = counties(split={"by": "county", "validation": 0.2, "test": 0.3, "seed": seed})
        draws.append(groups_of(table, split(table, config, 3), "test"))
    assert draws[0] == draws[1] != draws[2]


def test_split_by_group_does_not_depend_on_the_order_of_the_rows() -> None:
    keys = {"series": "county", "time": {"column": "date"}, "lookback": 3, "split": {"by": "county"}}
    turned = {name: values[::-1] for name, values in COUNTIES.items()}
    (one, config), (other, _) = make(COUNTIES, **keys), make(turned, **keys)
    for part in ("train", "validation", "test"):
        assert groups_of(one, split(one, config, 3), part) == groups_of(other, split(other, config, 3), part)


def test_split_by_time_and_group_judges_late_groups_only() -> None:
    table, config = counties(split={"by": ["time", "county"], "validation": 0.25, "test": 0.25})
    result = split(table, config, 3)
    # Three of the twelve days and two of the ten counties for validation and for test each.
    assert sizes(result) == [6 * (6 - 3 - 2 + 1), 2 * 2, 2 * 2]
    assert result.train_rows.sum() == 6 * 6
    assert result.notes == ("72 of 120 rows are left out: their group and their time belong to different parts",)
    check_no_leak(table, result, config)
