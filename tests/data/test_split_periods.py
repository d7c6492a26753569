"""Sequences of a regression in time: whole periods on one side, and refusals where the time tells no order."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from split_tables import DAY_ONE, make, refusal

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.split import Split, check_no_leak, split
from xlstm_tune.data.table import Table
from xlstm_tune.errors import DataError, SpecError

PARTS = ("train", "validation", "test")


def spanning(spans: list[tuple[int, int]], step: int = 1, **keys: Any) -> tuple[Table, DataConfig]:
    """A sequence from one day to another for each of `spans`, its target its number."""
    rows = [(number, day) for number, (begin, end) in enumerate(spans) for day in range(begin, end + 1, step)]
    columns = {
        "s": [number for number, _ in rows],
        "date": [DAY_ONE + dt.timedelta(day) for _, day in rows],
        "x": [float(row % 7) for row in range(len(rows))],
        "y": [float(number) for number, _ in rows],
    }
    return make(columns, **{"task": "regression", "sequence": "s", "time": {"column": "date"}} | keys)


def yearly(cuts: dict[tuple[int, int], int], years: int = 10, **keys: Any) -> tuple[Table, DataConfig]:
    """Three counties × years of 20 days, 100 days apart; `cuts`: days that a (county, year) lacks at its end."""
    sequences = [(county, year) for county in range(3) for year in range(years)]
    spans = [(100 * year, 100 * year + 19 - cuts.get((county, year), 0)) for county, year in sequences]
    return spanning(spans, **keys)


def years_of(table: Table, result: Split) -> list[list[int]]:
    """Which years the sequences of each part begin in."""
    begins = table.time[result.starts] // (86_400 * 10**9) - (DAY_ONE - dt.date(1970, 1, 1)).days
    return [sorted({int(begin) // 100 for begin in begins[result.parts[part]]}) for part in PARTS]


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ({"validation": 0.2, "test": 0.2}, [6, 8]),
        ({"validation": 1, "test": 2}, [7, 8]),
        # The second moment lies inside year 6, which is not over then.
        ({"validation": "2012-10-01", "test": "2013-09-01"}, [3, 6]),
    ],
)
def test_split_by_time_keeps_years_whole_where_sequences_end_on_different_days(
    cut: dict[str, Any], expected: list[int]
) -> None:
    lacking = {(0, 5): 3, (1, 5): 1, (2, 2): 4, (1, 8): 2, (0, 9): 9}
    table, config = yearly(lacking, split=cut)
    result = split(table, config, None)
    first, second = expected
    assert years_of(table, result) == [list(range(first)), list(range(first, second)), list(range(second, 10))]
    assert sum(len(samples) for samples in result.parts.values()) == 30 and result.notes == ()
    check_no_leak(table, result, config)


def test_check_no_leak_sees_a_sequence_that_begins_before_the_earlier_part_is_over() -> None:
    table, config = yearly({(0, 5): 3}, split={"validation": 0.2, "test": 0.2})
    result = split(table, config, None)
    # The other counties of year 5, which end a few days later, as validation.
    year_5 = [15, 25]
    parts = result.parts | {
        "train": np.setdiff1d(result.parts["train"], year_5),
        "validation": np.append(result.parts["validation"], year_5),
    }
    rows = result.train_rows.copy()
    for number in year_5:
        rows[result.starts[number] : result.ends[number]] = False
    with pytest.raises(AssertionError, match="train reaches into the time of validation"):
        check_no_leak(table, dataclasses.replace(result, parts=parts, train_rows=rows), config)


def test_split_by_time_of_sequences_that_overlap_all_along_leaves_out_what_lies_across() -> None:
    # Five days before each of a hundred.
    table, config = spanning([(day, day + 4) for day in range(100)], split={"validation": 0.2, "test": 0.2})
    result = split(table, config, None)
    assert [len(result.parts[part]) for part in PARTS] == [60, 16, 16]
    assert result.notes == (
        "8 of 100 sequences begin in one part and end in a later one and are left out, because the sequences overlap "
        "in time",
    )
    check_no_leak(table, result, config)
    table, config = spanning([(day, day + 30) for day in range(100)], split={"validation": 0.2, "test": 0.2})
    assert "leaves no sequence for the validation part, because all of its sequences begin before" in refusal(
        table, config
    )
    table, config = spanning([(day, day + 30) for day in range(40)], split={"validation": 0.4, "test": 0.4})
    assert "by: time finds no moment to cut at: 32 of 40 sequences begin in one part and end" in refusal(table, config)


def test_split_regression_by_time_without_an_order_in_time_is_refused() -> None:
    table, config = yearly({}, time=None, exclude="date")
    message = refusal(table, config)
    assert "needs the time of each sequence, but data.time is not set" in message
    assert "name an ordered one of data.sequence (s) in data.split.order" in message
    # A day of the year: leap years are longer.
    table, config = spanning([(1, 366 if year % 4 == 0 else 365) for year in range(12)], step=73)
    message = refusal(table, config)
    assert "all 12 of them have rows around the same time (2012-01-02)" in message and "data.split.order" in message


def test_split_by_the_order_of_a_column() -> None:
    columns: dict[str, list[Any]] = defaultdict(list)
    for county in "cab":
        for year in (9, 10, 11, 8, 12):
            for day in range(1, 4):
                cells = (county, year, f"{2000 + year}-06-30", day, day * year % 5, year)
                for name, cell in zip(("county", "year", "until", "day", "x", "y"), cells, strict=True):
                    columns[name].append(cell)
    for order, begin, others in (("year", "11", "until"), ("until", "2011-01-01", "year")):
        for cut in ({"validation": 1, "test": 1}, {"validation": 0.2, "test": 0.25}, {"validation": begin, "test": 1}):
            keys = {"task": "regression", "sequence": ["county", order], "exclude": ["day", others]}
            table, config = make(columns, **keys, split={"order": order, **cut})
            result = split(table, config, None)
            found = [{int(table.targets[sample, 0]) for sample in result.parts[part]} for part in PARTS]
            assert found == [{8, 9, 10}, {11}, {12}]
            check_no_leak(table, result, config)
            parts = result.parts | {"train": result.parts["test"], "test": result.parts["train"]}
            with pytest.raises(AssertionError, match="train reaches into the time of"):
                none = np.zeros(len(table.time), dtype=bool)
                check_no_leak(table, dataclasses.replace(result, parts=parts, train_rows=none), config)
    assert prepare(table, config).parts["test"].tolist() == result.parts["test"].tolist()


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ({"order": "s", "validation": 2007}, "2007 is how many values of 's' the part has, and there are 10; for the "),
        ({"order": "s", "test": "30"}, "data.split.test: '30' is after the last value of 's', 9; give one inside"),
        ({"order": "s", "test": "soon"}, "data.split.test: 'soon' is not a number, as the values of 's' are"),
        ({"order": "s", "validation": 5, "test": 5}, "leaves nothing for the training part of the 10 values of 's'"),
        ({"order": "name"}, "data.split.order: 'n0' in column 'name' is neither a number nor an ISO date"),
    ],
)
def test_split_by_an_order_that_cannot_be(cut: dict[str, Any], expected: str) -> None:
    columns = {
        "s": [row // 2 for row in range(20)],
        "name": [f"n{row // 2}" for row in range(20)],
        "x": list(range(20)),
        "y": [row // 2 for row in range(20)],
    }
    table, config = make(columns, task="regression", sequence=["s", "name"], split=cut)
    assert expected in refusal(table, config)


def test_split_by_weeks_with_an_underscore_is_refused() -> None:
    """Python reads 2006_10 as 200610, which would be later than 2007_1."""
    weeks = [f"{year}_{week}" for year in (2006, 2007) for week in range(1, 13)]
    numbers = [int(year) * 100 + int(week) for year, week in (text.split("_") for text in weeks)]
    columns = {"w": weeks, "n": numbers, "x": list(range(24)), "y": list(range(24))}
    keys: dict[str, Any] = {"task": "regression", "sequence": ["w", "n"]}
    table, config = make(columns, **keys, split={"order": "w", "test": "2007_1"})
    assert refusal(table, config) == (
        "data.split.order: '2006_1' in column 'w' is neither a number nor an ISO date, so its values have no order; "
        "write weeks and months as numbers of as many digits, such as 200601, or name another column of data.sequence"
    )
    table, config = make(columns, **keys, split={"order": "n", "test": "2007_1"})
    assert refusal(table, config) == "data.split.test: '2007_1' is not a number, as the values of 'n' are"
    table, config = make(columns, **keys, split={"order": "n", "test": "200701"})
    assert split(table, config, None).parts["test"].tolist() == list(range(12, 24))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"split": {"order": "yaer"}}, "'data.split.order' names 'yaer', not one of data.sequence; did you mean 'year"),
        ({"split": {"order": "year", "by": "county"}}, "add time to 'data.split.by' or leave it out"),
        ({"task": "forecast", "sequence": [], "lookback": 1, "split": {"order": "y"}}, "belongs to task: regression"),
    ],
)  # fmt: skip
def test_config_order_that_does_not_fit(keys: dict[str, Any], expected: str) -> None:
    given = {"source": "x", "target": "y", "task": "regression", "sequence": ["county", "year"]} | keys
    with pytest.raises(SpecError) as error:
        DataConfig.parse(given, "data")
    assert expected in str(error.value)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), min_size=4, max_size=30),
    st.one_of(st.integers(1, 3), st.floats(0.1, 0.3)),
    st.one_of(st.integers(1, 3), st.floats(0.1, 0.3)),
)
def test_split_of_any_sequences_never_leaks(
    spans: list[tuple[int, int]], validation: int | float, test: int | float
) -> None:
    table, config = spanning(
        [(begin, begin + length) for begin, length in spans], split={"validation": validation, "test": test}
    )
    try:
        result = split(table, config, None)
    except DataError as error:
        event(f"refused: {str(error)[:40]}")
        assume(False)
    event("left out" if result.notes else "whole")
    check_no_leak(table, result, config)
    over = -1
    for part in PARTS:
        mine = [spans[int(table.keys[sample][0])] for sample in result.parts[part]]
        assert mine and min(begin for begin, _ in mine) > over
        over = max(begin + length for begin, length in mine)
