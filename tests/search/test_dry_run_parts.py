"""Where `--dry-run` says that the parts begin."""

from __future__ import annotations

import datetime as dt
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from xlstm_tune.search import plan as planning
from xlstm_tune.search.dry_run import data_lines, print_plan, too_little
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.spec import SearchSpec

DAY_ONE = dt.date(2012, 1, 1)
SPLIT = {"validation": "2012-02-20", "test": 10}
FORECAST = {"time": {"column": "t"}, "target": "y", "lookback": 5, "horizon": 3, "split": SPLIT}
REGRESSION = {
    "task": "regression", "time": {"column": "t"}, "sequence": ["county", "year"], "target": "cases",
    "split": {"validation": 1, "test": 1},
}  # fmt: skip


def planned(folder: Path, rows: list[str], data: dict[str, Any]) -> planning.Plan:
    """A search on a table of these lines."""
    (folder / "t.csv").write_text("\n".join(rows) + "\n")
    space = {"model.family": {"choice": ["lstm_torch"]}}
    spec = SearchSpec.parse({"name": "parts", "data": {"source": str(folder / "t.csv")} | data, "space": space})
    return planning.make_plan(spec, Space.from_spec(spec), str(folder / "searches"), None, None)


def lines(folder: Path, rows: list[str], data: dict[str, Any]) -> dict[str, str]:
    """What is printed of a table of these lines, by title."""
    return dict(data_lines(planned(folder, rows, data)))


def days(first: int, last: int, name: str = "a") -> list[str]:
    return [f"{name},{DAY_ONE + dt.timedelta(day)},{day * 37 % 101}" for day in range(first, last)]


def sequences(last: int = 2008, counties: int = 2) -> list[str]:
    """Three days in the summer of each year from 2000, of counties of which each begins a day later."""
    return [
        f"{county},{year},{year}-06-0{day + county},{day * year % 7},{year % 5 + county}"
        for county in range(counties)
        for year in range(2000, last)
        for day in range(1, 4)
    ]


def test_parts_of_a_forecast_are_those_of_what_is_forecast(tmp_path: Path) -> None:
    found = lines(tmp_path, ["id,t,y", *days(0, 80)], FORECAST | {"exclude": ["id"]})
    expected = "train 2012-01-06 … 2012-02-19, validation from 2012-02-20, test from 2012-03-11"
    assert found["parts"] == expected and list(found)[-2:] == ["windows", "parts"]


def test_parts_of_several_series_are_the_earliest_and_latest_of_all(tmp_path: Path) -> None:
    rows = ["id,t,y", *days(20, 80), *days(10, 45, "b"), *days(30, 60, "c")]
    found = lines(tmp_path, rows, FORECAST | {"series": "id"})
    assert found["parts"] == "train 2012-01-16 … 2012-02-19, validation from 2012-02-20, test from 2012-03-11"


def test_parts_are_written_as_the_table_has_them(tmp_path: Path) -> None:
    rows = [f"{2006 + n // 52}_{n % 52 + 1},{n * 37 % 101}" for n in range(104)]
    data = FORECAST | {"time": {"column": "t", "format": "mmwr-week"}, "split": {"validation": "2007_11", "test": 10}}
    found = lines(tmp_path, ["t,y", *rows], data)
    assert found["parts"] == "train 2006_6 … 2007_10, validation from 2007_11, test from 2007_43"


def test_a_date_is_in_utc_where_the_times_have_an_offset(tmp_path: Path) -> None:
    zone = dt.timezone(dt.timedelta(hours=2))
    hours = [dt.datetime(2023, 8, 25, tzinfo=zone) + dt.timedelta(hours=n) for n in range(240)]
    rows = ["t,y", *(f"{hour.isoformat()},{n * 37 % 101}" for n, hour in enumerate(hours))]
    split = {"validation": "2023-09-01", "test": "2023-09-02T00:00:00+02:00"}
    found = lines(tmp_path, rows, FORECAST | {"split": split})["parts"]
    assert found.endswith("validation from 2023-09-01T02:00:00+02:00, test from 2023-09-02T00:00:00+02:00")


def test_parts_of_a_regression_are_those_of_its_sequences(tmp_path: Path) -> None:
    found = lines(tmp_path, ["county,year,t,rain,cases", *sequences()], REGRESSION)
    expected = "train 2000-06-01 … 2005-06-04, validation from 2006-06-01, test from 2007-06-01"
    assert found["parts"] == expected and list(found)[-2:] == ["sequences", "parts"]


def test_parts_by_the_values_of_a_key_are_those_values(tmp_path: Path) -> None:
    data = REGRESSION | {"split": {"order": "year", "validation": 2, "test": 1}}
    found = lines(tmp_path, ["county,year,t,rain,cases", *sequences()], data)
    assert found["parts"] == "train 2000 … 2004, validation from 2005, test from 2007"


@pytest.mark.parametrize(
    ("rows", "data"),
    [
        (["id,t,y", *days(0, 80)], FORECAST | {"time": None, "exclude": ["id", "t"], "split": {"test": 10}}),
        (
            ["id,t,y", *days(0, 40), *days(0, 40, "b"), *days(0, 40, "c")],
            FORECAST | {"series": "id", "split": {"by": "id", "validation": 1, "test": 1}},
        ),
    ],
    ids=["no time", "groups"],
)
def test_no_parts_where_no_time_divides(rows: list[str], data: dict[str, Any], tmp_path: Path) -> None:
    assert "parts" not in lines(tmp_path, rows, data)


def test_a_test_part_of_too_few_years_is_told_of_before_anything_is_trained(tmp_path: Path) -> None:
    header = "county,year,t,rain,cases"
    data = REGRESSION | {"split": {"validation": 2, "test": 3}}
    made = planned(tmp_path, [header, *sequences(2020, 5)], data)
    console = Console(file=io.StringIO(), width=400)
    print_plan(made, console)
    words = (
        "note: models can hardly be told apart on the test part; of the baselines, group_mean and linear come nearest "
        "to it: The test part holds"
    )
    assert f"{words} 3 values of year" in console.file.getvalue()  # type: ignore[attr-defined]
    both = REGRESSION | {"split": {"by": ["time", "county"], "validation": 2, "test": 2}}
    (note,) = too_little(planned(tmp_path, [header, *sequences(2020, 5)], both))  # no mean of a group is known there
    assert "of the baselines, mean and linear come nearest to it" in note
    enough = planned(tmp_path, [header, *sequences(2040, 5)], REGRESSION | {"split": {"validation": 2, "test": 12}})
    assert too_little(enough) == []


def test_a_short_test_part_of_a_forecast_is_told_of(tmp_path: Path) -> None:
    rows = ["id,t,y", *days(0, 200)]
    short = FORECAST | {"exclude": ["id"], "split": {"validation": 20, "test": 8}}
    (note,) = too_little(planned(tmp_path, rows, short))
    assert "independent block" in note and note.startswith("models can hardly be told apart")
    assert too_little(planned(tmp_path, rows, short | {"split": {"validation": 20, "test": 120}})) == []


def test_the_baselines_that_are_told_apart_best_speak_for_a_test_part(tmp_path: Path) -> None:
    """Each pair has blocks of its own length: a model that is far off has few, which says nothing of the others."""
    rng = np.random.default_rng(1)
    slow = 0.3 * np.convolve(rng.normal(size=500), np.ones(60), mode="valid")[:400]  # one week says little of the next
    values = slow + np.sin(2 * np.pi * np.arange(400) / 7) + 0.1 * rng.normal(size=400)
    stamps = [str(np.datetime64("2020-01-01") + day) for day in range(400)]
    made = planned(
        tmp_path,
        ["t,y", *(f"{t},{y:.4f}" for t, y in zip(stamps, values, strict=True))],
        FORECAST | {"lookback": 21, "horizon": 2, "split": {"validation": 30, "test": 60}},
    )
    (note,) = too_little(replace(made, baselines=[one for one in made.baselines if one.name != "dlinear"]))
    assert note.startswith("models can hardly be told apart")
    assert too_little(made) == []


def test_a_test_part_of_many_series_is_looked_at_whole(tmp_path: Path) -> None:
    """50 moments of 1,000 series each: every tenth window would be the same five moments of each."""
    rng = np.random.default_rng(0)
    levels = rng.normal(size=1000)
    values = levels[:, None] + rng.normal(size=(1000, 140))
    stamps = [str(np.datetime64("2020-01-01") + day) for day in range(140)]
    rows = [
        "id,t,y",
        *(f"s{n},{t},{y:.3f}" for n, line in enumerate(values) for t, y in zip(stamps, line, strict=True)),
    ]
    data = {"series": ["id"], "lookback": 14, "horizon": 1, "split": {"validation": 20, "test": 50}}
    assert too_little(planned(tmp_path, rows, FORECAST | data)) == []
