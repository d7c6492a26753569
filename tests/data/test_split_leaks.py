"""Nothing learnt from is judged on: the guard against leaks, and any split of any table."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from split_tables import counties, daily, days, ends_of, make, refusal

from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.split import check_no_leak, split
from xlstm_tune.errors import DataError


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


def test_split_keeps_what_interpolation_drew_from_later_parts_out_of_the_statistics() -> None:
    """The training part ends with day 12; what fills its last days comes from day 14."""
    results = []
    for later in (1.0, 1e6):
        y = [float(day % 5) for day in range(13)] + [later * day for day in range(13, 20)]
        x: list[float | None] = [*y]
        for day in (4, 5, 10, 11, 12, 13):
            x[day] = None
        columns = {"date": days(20), "y": y, "x": x}
        keys: dict[str, Any] = {"time": {"column": "date"}, "missing": "interpolate", "lookback": 2, "horizon": 1}
        table, config = make(columns, **keys, split={"validation": 3, "test": 4})
        result = split(table, config, 2)
        assert np.flatnonzero(result.train_rows).tolist() == list(range(10))
        results.append(prepare(table, config))
    for name in ("mean", "std"):
        one, other = (getattr(result.scaling.inputs, name) for result in results if result.scaling)
        np.testing.assert_array_equal(one, other)
    leaking = dataclasses.replace(result, train_rows=np.arange(20) < 13)
    with pytest.raises(AssertionError, match="the scaling statistics see cells that were filled from behind"):
        check_no_leak(table, leaking, config)


def test_split_training_part_filled_from_behind_it_is_refused() -> None:
    x = [None if day == 9 else float(day) for day in range(20)]
    columns = {"date": days(20), "y": [float(day) for day in range(20)], "x": x}
    keys: dict[str, Any] = {"time": {"column": "date"}, "missing": "interpolate", "lookback": 2, "horizon": 1}
    table, config = make(columns, **keys, split={"train": 1, "validation": "2012-01-11", "test": 4})
    assert "every row of the training part has a cell that interpolation filled from a later" in refusal(table, config)


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
    trained = set(np.flatnonzero(result.train_rows).tolist())
    assert not trained & (seen["validation"] | seen["test"])
    for row in trained:
        while table.peeks[row]:  # filled from here or further on
            row += 1
        assert row in trained
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
