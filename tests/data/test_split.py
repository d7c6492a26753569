"""Which samples fall into which part, and that nothing learnt from is judged on."""

from __future__ import annotations

import dataclasses
import datetime as dt
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.cut import count_of
from xlstm_tune.data.split import Split, check_no_leak, split
from xlstm_tune.data.table import Table, load_table
from xlstm_tune.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not there ({SHARED})")
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


# --- forecasts by time


def test_split_horizons_lie_inside_their_part_and_inputs_reach_back() -> None:
    table, config = daily(20, split={"validation": 4, "test": 5})
    result = split(table, config, 5)
    assert ends_of(result, "train") == list(range(5, 10))  # train is rows 0 to 10, targets end at row 10
    assert ends_of(result, "validation") == [11, 12, 13]
    assert ends_of(result, "test") == [15, 16, 17, 18]
    assert result.train_rows.tolist() == [True] * 11 + [False] * 9
    assert (result.starts == 0).all() and result.notes == ()
    check_no_leak(table, result, config)


def test_split_stride_thins_training_windows_only() -> None:
    table, config = daily(20, split={"validation": 4, "test": 5}, stride=2)
    result = split(table, config, 5)
    assert ends_of(result, "train") == [5, 7, 9] and sizes(result)[1:] == [3, 4]


def test_split_larger_lookback_leaves_validation_and_test_alone() -> None:
    table, config = daily(20, split={"validation": 4, "test": 5})
    small, large = split(table, config, 5), split(table, config, 8)
    assert ends_of(large, "train") == [8, 9]
    assert ends_of(small, "validation") == ends_of(large, "validation")
    assert ends_of(small, "test") == ends_of(large, "test")


@pytest.mark.parametrize(
    ("sizes_", "bounds"),
    [
        ({"validation": 0.15, "test": 0.15}, (0, 14, 17, 20)),
        ({"validation": 0.29, "test": 1}, (0, 14, 19, 20)),
        ({"train": 8, "validation": 4, "test": 3}, (0, 8, 12, 15)),
        ({"train": 0.5, "validation": 0.25, "test": 0.25}, (0, 10, 15, 20)),
        ({"validation": "2012-01-11", "test": "2012-01-16"}, (0, 10, 15, 20)),
        ({"validation": 3, "test": "2012-01-16"}, (0, 12, 15, 20)),
        ({"validation": "2012-01-11", "test": 4}, (0, 10, 16, 20)),
        ({"train": "2012-01-03", "validation": 4, "test": 4}, (2, 12, 16, 20)),
        ({"train": 6, "validation": "2012-01-11", "test": "2012-01-16"}, (4, 10, 15, 20)),
    ],
)
def test_split_sizes_as_shares_numbers_and_moments(sizes_: dict[str, Any], bounds: tuple[int, ...]) -> None:
    table, config = daily(20, split=sizes_, lookback=1, horizon=1)
    result = split(table, config, 1)
    train, validation, test, end = bounds
    assert ends_of(result, "train") == list(range(max(train, 1), validation))
    assert ends_of(result, "validation") == list(range(validation, test))
    assert ends_of(result, "test") == list(range(test, end))
    assert np.flatnonzero(result.train_rows).tolist() == list(range(train, validation))
    assert bool(result.notes) == (end - train < 20)


def test_split_mmwr_week_as_a_beginning() -> None:
    weeks = [f"2008_{week}" for week in range(40, 54)] + [f"2009_{week}" for week in range(1, 11)]
    keys = {"time": {"column": "w", "format": "mmwr-week"}, "lookback": 3}
    table, config = make({"w": weeks, "y": list(range(24))}, split={"validation": "2008_53", "test": "2009_5"}, **keys)
    result = split(table, config, 3)
    assert ends_of(result, "validation") == list(range(13, 18)) and ends_of(result, "test") == list(range(18, 24))


def test_split_cuts_series_of_different_times_at_one_moment() -> None:
    columns = {
        "id": ["a"] * 20 + ["b"] * 15,
        "date": days(20) + days(15, begin=10),
        "y": [float(row) for row in range(35)],
    }
    table, config = make(
        columns, series="id", time={"column": "date"}, lookback=3, horizon=2, split={"validation": 5, "test": 5}
    )
    result = split(table, config, 3)  # 25 distinct days: train 0 to 14, validation 15 to 19, test 20 to 24
    assert ends_of(result, "train") == [*range(3, 14), 20 + 3]
    assert ends_of(result, "validation") == [*range(15, 19), *range(20 + 5, 20 + 9)]
    assert ends_of(result, "test") == [*range(20 + 10, 20 + 14)]
    assert result.starts[result.parts["test"]].tolist() == [20] * 4
    check_no_leak(table, result, config)


def test_split_row_order_cuts_each_series_for_itself() -> None:
    columns = {"id": ["a"] * 20 + ["b"] * 10, "y": [float(row) for row in range(30)]}
    table, config = make(columns, series="id", lookback=2, horizon=1, split={"validation": 0.2, "test": 0.2})
    result = split(table, config, 2)
    assert ends_of(result, "train") == [*range(2, 12), *range(22, 26)]
    assert ends_of(result, "validation") == [*range(12, 16), 26, 27]
    assert ends_of(result, "test") == [*range(16, 20), 28, 29]
    check_no_leak(table, result, config)


def test_split_short_series_give_no_window_and_are_counted() -> None:
    columns = {"id": ["a"] * 20 + ["b"] * 3, "date": days(20, 3), "y": [float(row) for row in range(23)]}
    table, config = make(columns, series="id", time={"column": "date"}, lookback=4, split={"validation": 4, "test": 4})
    result = split(table, config, 4)
    assert result.notes == ("1 of 2 series are shorter than lookback + horizon (5 steps) and give no window",)


@needs_shared
def test_split_etth1_has_the_windows_of_the_literature() -> None:
    config = DataConfig.parse(
        {
            "source": str(SHARED / "ETTh1.csv"),
            "time": {"column": "date"},
            "target": "all",
            "lookback": 96,
            "horizon": 24,
            "split": {"train": 8640, "validation": 2880, "test": 2880},
        },
        "data",
    )
    table = load_table(config)
    result = split(table, config, 96)
    assert sizes(result) == [8640 - 96 - 24 + 1, 2880 - 24 + 1, 2880 - 24 + 1]
    assert result.train_rows.sum() == 8640 and result.train_rows[:8640].all()
    assert ends_of(result, "validation")[0] == 8640 and ends_of(result, "test")[-1] == 14400 - 24
    assert result.notes == ("3020 of 17420 time steps lie outside all three parts and are left out",)
    check_no_leak(table, result, config)


# --- targets that were blank


def holes(policy: str, blanks: tuple[int, ...]) -> tuple[Table, DataConfig]:
    values = [None if row in blanks else float(row) for row in range(30)]
    keys = {"time": {"column": "date"}, "lookback": 3, "horizon": 2, "split": {"validation": 8, "test": 8}}
    return make({"date": days(30), "y": values}, missing=policy, **keys)


def test_split_windows_with_a_filled_target_in_the_horizon_are_left_out() -> None:
    table, config = holes("forward_fill", (7, 18, 25))
    result = split(table, config, 3)
    assert not {6, 7} & set(ends_of(result, "train"))
    assert not {17, 18} & set(ends_of(result, "validation"))
    assert not {24, 25} & set(ends_of(result, "test"))
    assert sizes(result) == [10 - 2, 7 - 2, 7 - 2]
    assert result.notes == (
        "6 windows were left out because of a filled target in the horizon (2 training, 2 validation, 2 test)",
    )


def test_split_no_window_begins_right_after_an_interpolated_cell() -> None:
    # Row 18 lies on the line to row 19: a window that ends with row 18 would have seen its own answer.
    table, config = holes("interpolate", (18,))
    result = split(table, config, 3)
    assert not {17, 18, 19} & set(ends_of(result, "validation")) and 20 in ends_of(result, "validation")
    assert "1 window was left out because interpolation filled the last step from a later one" in result.notes[1]
    table, config = holes("forward_fill", (18,))
    assert 19 in ends_of(split(table, config, 3), "validation")


def test_split_part_whose_targets_were_all_filled_is_refused() -> None:
    table, config = holes("forward_fill", tuple(range(14, 22, 2)))
    assert "no validation window is left, because too many cells there were blank" in refusal(table, config)


# --- groups

COUNTIES = {
    "county": [name for name in "abcdefghij" for _ in range(12)],
    "date": days(*[12] * 10),
    "y": [float(row) for row in range(120)],
}


def counties(**keys: Any) -> tuple[Table, DataConfig]:
    return make(COUNTIES, **{"series": "county", "time": {"column": "date"}, "lookback": 3, "horizon": 2} | keys)


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


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"by": "country"}, "names 'country', which is neither 'time' nor one of data.series; did you mean 'county'?"),
        ({"by": ["time", "time"]}, "'data.split.by' names 'time' twice"),
        ({"by": []}, "'data.split.by' is empty"),
        ({"by": "county", "test": "2012-01-05"}, "data.split.test: '2012-01-05' is a moment, but groups have no order"),
        ({"by": "county", "validation": 5, "test": 5}, "but 'county' has 10 different values; make the parts smaller"),
        ({"by": "county", "train": 8, "validation": 2, "test": 2}, "needs 8 training, 2 validation and 2 test groups"),
        ({"validation": "soon"}, "data.split.validation: 'soon' is not an ISO date"),
        ({"test": "2013-01-01"}, "data.split.test: '2013-01-01' is after the last time stamp, 2012-01-12"),
        ({"test": "2011-01-01"}, "leaves nothing for the training part of the 12 time steps"),
        ({"validation": "2012-01-10", "test": "2012-01-05"}, "leaves nothing for the validation part"),
        ({"validation": 0.5, "test": 0.5}, "(validation 0.5, test 0.5) leaves nothing for the training part of the 12"),
        ({"validation": 6, "test": 8}, "leaves nothing for the training part"),
        ({"train": 10, "validation": 2, "test": 2}, "asks for more than the 12 time steps there are"),
        ({"train": 10, "validation": "2012-01-05", "test": 2}, "asks for more than the 12 time steps there are"),
    ],
)  # fmt: skip
def test_split_that_cannot_be_is_one_sentence(keys: dict[str, Any], expected: str) -> None:
    table, config = counties(split=keys)
    assert expected in refusal(table, config)


def test_split_moment_without_a_time_column_is_refused() -> None:
    table, config = make({"y": [float(row) for row in range(20)]}, lookback=2, split={"test": "2012-01-01"})
    assert "'2012-01-01' is a time, but data.time is not set" in refusal(table, config)


# --- too little data


@pytest.mark.parametrize(
    ("keys", "lookback", "expected"),
    [
        ({"lookback": 30}, 30, ("lookback 30 and horizon 2 need 32 steps, the series has 20", "can be at most 18")),
        ({"horizon": 25}, 5, ("lookback 5 and horizon 25 need 30 steps", "data.horizon must be below 20")),
        ({}, 40, ("no series is long enough: lookback 40 (the largest that the search may try) and",)),
        (
            {"horizon": 4},
            5,
            (
                "no validation window is left: the validation part has 3 steps of any one series, horizon 4 needs 4",
                "set data.split.validation to at least 4 or data.horizon to at most 3",
            ),
        ),
        (
            {"horizon": 4, "split": {"validation": 4, "test": 3}},
            5,
            ("no test window is left", "set data.split.test to at least 4 or data.horizon to at most 3"),
        ),
        (
            {"lookback": 13},
            13,
            (
                "the training part has 14 steps of any one series, lookback 13 and horizon 2 need 15",
                "set data.lookback to at most 12 or make validation and test smaller",
            ),
        ),
    ],
)  # fmt: skip
def test_split_too_little_data_says_the_numbers_and_what_fits(
    keys: dict[str, Any], lookback: int, expected: tuple[str, ...]
) -> None:
    table, config = daily(20, **keys)
    message = refusal(table, config, lookback)
    assert all(part in message for part in expected)


def test_split_series_without_history_in_a_part_is_refused() -> None:
    columns = {
        "id": ["a"] * 10 + ["b"] * 4,
        "date": days(10) + days(4, begin=10),
        "y": [float(row) for row in range(14)],
    }
    table, config = make(columns, series="id", time={"column": "date"}, lookback=5, split={"validation": 2, "test": 4})
    assert "no series reaches 1 step into the test part with 5 steps before them" in refusal(table, config)


# --- regression

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
    assert "leaves nothing for the training part of the 8 distinct ends of sequences" in refusal(table, config)
    keys = {"task": "regression", "sequence": "s", "split": {"by": ["time", "s"], "validation": 1, "test": 1}}
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


# --- the guard


def test_count_of_share_is_not_fooled_by_rounding() -> None:
    assert [count_of(0.29, 100), count_of(0.15, 20), count_of(0.01, 10), count_of(7, 3)] == [29, 3, 1, 7]


@pytest.mark.parametrize("tamper", ["sample", "window", "order", "statistics", "group"])
def test_check_no_leak_finds_what_leaks(tamper: str) -> None:
    by = ["time", "county"] if tamper == "group" else "time"
    table, config = counties(split={"by": by, "validation": 3, "test": 3})
    result = split(table, config, 3)
    check_no_leak(table, result, config)
    parts = dict(result.parts)
    ends, rows = result.ends.copy(), result.train_rows.copy()
    starts = result.starts.copy()
    if tamper == "sample":
        parts["test"] = np.append(parts["test"], parts["train"][0])
        message = "a sample is in two parts"
    elif tamper == "window":
        ends[parts["train"][-1]] = ends[parts["validation"]].max()
        message = "train and validation share target rows"
    elif tamper == "order":
        # A test window of one county moves into the days that another county trains on.
        ends[parts["test"]] = 3
        starts[parts["test"]] = 0
        keep = starts[parts["train"]] > 0
        parts["train"] = parts["train"][keep]
        rows[:12] = False
        message = "train reaches into the time of test"
    elif tamper == "statistics":
        rows[ends[parts["test"][0]]] = True
        message = "the scaling statistics see test targets"
    else:
        sample = parts["train"][0]
        donor = parts["validation"][0]
        starts[sample] = starts[donor]
        ends[sample] = starts[donor] + 3
        message = "train and validation share a group"
    leaking = dataclasses.replace(result, parts=parts, ends=ends, starts=starts, train_rows=rows)
    with pytest.raises(AssertionError, match=message):
        check_no_leak(table, leaking, config)


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Series of different lengths and beginnings, with blanks, under any way to cut them."""
    by = draw(st.sampled_from([["time"], ["id"], ["time", "id"]]))
    # Mostly problems that can be cut, so that few examples are wasted on refusals.
    series = st.integers(6, 8) if "id" in by else st.integers(1, 4)
    lengths = draw(series.flatmap(lambda number: st.lists(st.integers(10, 30), min_size=number, max_size=number)))
    begins = [draw(st.integers(0, 6)) for _ in lengths]
    rows = sum(lengths)
    blanks = draw(st.sets(st.integers(0, rows - 1), max_size=3))
    timed = draw(st.booleans())
    columns: dict[str, Any] = {
        "id": [f"s{series}" for series, length in enumerate(lengths) for _ in range(length)],
        "y": [None if row in blanks else float(row) for row in range(rows)],
    }
    keys: dict[str, Any] = {"features": "y"}
    if timed:
        columns["date"] = [
            day for length, begin in zip(lengths, begins, strict=True) for day in days(length, begin=begin)
        ]
        keys["time"] = {"column": "date"}
    size = st.one_of(st.integers(1, 2) if by == ["id"] else st.integers(2, 6), st.floats(0.1, 0.35))
    size = st.floats(0.2, 0.35) if len(by) == 2 else size
    cut = {"validation": draw(size), "test": draw(size), "seed": draw(st.integers(0, 3))}
    if draw(st.booleans()):
        cut["train"] = draw(st.floats(0.2, 0.3) if by == ["id"] else st.floats(0.3, 0.4))
    cut["by"] = by
    keys |= {
        "series": "id",
        "lookback": draw(st.integers(1, 5)),
        "horizon": draw(st.integers(1, 3)),
        "stride": draw(st.integers(1, 3)),
        "missing": draw(st.sampled_from(["interpolate", "forward_fill", "drop"])),
        "split": cut,
    }
    return columns, keys


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(problems())
def test_split_never_leaks(problem: tuple[dict[str, Any], dict[str, Any]]) -> None:
    try:
        table, config = make(problem[0], **problem[1])
        result = split(table, config, config.lookback)
    except DataError as error:
        event(f"refused: {str(error)[:20]}")
        assume(False)
    event(f"by {config.split.by}")
    check_no_leak(table, result, config)
    # The same once more, row by row and without the guard's arithmetic.
    seen: dict[str, set[int]] = {}
    for part, samples in result.parts.items():
        assert len(samples)
        seen[part] = set()
        for sample in samples:
            start, end = int(result.starts[sample]), int(result.ends[sample])
            series = table.offsets.tolist().index(start)
            assert end - config.lookback >= start and end + config.horizon <= table.offsets[series + 1]
            assert table.observed[end : end + config.horizon].all() and not table.peeks[end - 1]
            seen[part] |= set(range(end, end + config.horizon))
    assert not seen["train"] & seen["validation"] and not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]
    assert not set(np.flatnonzero(result.train_rows)) & (seen["validation"] | seen["test"])
    if "time" in config.split.by and config.time is not None:
        moments = [table.time[sorted(seen[part])] for part in ("train", "validation", "test")]
        assert moments[0].max() < moments[1].min() and moments[1].max() < moments[2].min()
        assert table.time[result.train_rows].max() < moments[1].min()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(6, 40), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(1, 10), st.integers(1, 10)
)
def test_split_finds_every_window(
    length: int, lookback: int, horizon: int, stride: int, validation: int, test: int
) -> None:
    table, config = daily(
        length, lookback=lookback, horizon=horizon, stride=stride, split={"validation": validation, "test": test}
    )
    first, second = length - validation - test, length - test
    expected: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for end in range(lookback, length - horizon + 1):
        for part, low, high in (("train", 0, first), ("validation", first, second), ("test", second, length)):
            thinned = part != "train" or (end - lookback) % stride == 0
            if low <= end and end + horizon <= high and thinned:
                expected[part].append(end)
    if first < 1 or not all(expected.values()):
        with pytest.raises(DataError):
            split(table, config, lookback)
    else:
        result = split(table, config, lookback)
        assert {part: ends_of(result, part) for part in expected} == expected
