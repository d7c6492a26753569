"""Which columns are inputs and targets, and names that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from table_files import DAILY, load, load_text, refusal


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"target": "case"}, "'data.target' names 'case', which is not a column of the data; did you mean 'cases'?"),
        ({"features": ["tmp"]}, "'data.features' names 'tmp', which is not a column of the data; did you mean 'temp'?"),
        ({"time": {"column": "dat"}}, "'data.time.column' names 'dat'"),
        ({"series": "county"}, "'data.series' names 'county', which is not a column of the data; known here: cases, "),
        ({"exclude": "wnd"}, "'data.exclude' names 'wnd'"),
        ({"categories": "wnd"}, "'data.categories' names 'wnd'"),
        ({"exclude": ["cases"]}, "column 'cases' is both in 'data.exclude' and in 'data.target'"),
        ({"exclude": ["date"]}, "column 'date' is both in 'data.exclude' and in 'data.time.column'"),
        ({"target": "date"}, "column 'date' is both in 'data.time.column' and in 'data.target'"),
        ({"features": ["date"]}, "column 'date' is both in 'data.time.column' and in 'data.features'"),
        ({"series": "cases"}, "column 'cases' is both in 'data.series' and in 'data.target'"),
        ({"features": ["wind"], "exclude": "wind"}, "column 'wind' is both in 'data.exclude' and in 'data.features'"),
        ({"categories": "cases"}, "column 'cases' is both in 'data.categories' and in 'data.target'"),
        ({"features": ["wind", "wind"]}, "'data.features' names 'wind' twice"),
        ({"features": ["wind"], "categories": "temp"}, "'data.categories' names 'temp', which is not an input"),
        ({"target": []}, "'data.target' is empty"),
    ],
)  # fmt: skip
def test_load_names_that_do_not_fit_are_refused(tmp_path: Path, keys: dict[str, Any], expected: str) -> None:
    assert expected in refusal(tmp_path, DAILY, **keys)


def test_load_forecast_appends_targets_to_the_inputs(tmp_path: Path) -> None:
    assert load_text(tmp_path, DAILY, features=["wind"]).features == ("wind", "cases")
    assert load_text(tmp_path, DAILY, features=[]).features == ("cases",)
    assert load_text(tmp_path, DAILY, exclude="wind").features == ("temp", "cases")


def test_load_target_all_is_every_numeric_input(tmp_path: Path) -> None:
    text = "date,a,sky,b,id\n2012-01-01,1,sun,2,7\n2012-01-02,2,rain,3,8\n"
    table = load_text(tmp_path, text, target="all", categories="sky", exclude="id")
    assert table.target_names == ("a", "b") and table.features == ("a", "sky=rain", "sky=sun", "b")


def test_load_unnamed_column_is_left_out_with_a_note(tmp_path: Path) -> None:
    table = load_text(tmp_path, ",date,cases\n0,2012-01-01,5\n1,2012-01-02,6\n")
    assert table.features == ("cases",) and "without a name" in table.notes[0]


def test_row_numbers_of_pandas_in_parquet_are_no_input(tmp_path: Path) -> None:
    columns = {"date": ["2012-01-01", "2012-01-02"], "cases": [5, 6], "__index_level_0__": [3, 9]}
    pa_parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    table = load(tmp_path / "x.parquet")
    assert table.features == ("cases",) and "without a name" in table.notes[0]
    named = load(tmp_path / "x.parquet", features=["all", "__index_level_0__"])
    assert named.features == ("cases", "__index_level_0__") and not named.notes


@pytest.mark.parametrize("name", ["Unnamed: 0", "Unnamed: 0.1", "Unnamed: 0_level_0", "...1"])
def test_row_numbers_that_were_saved_again_are_no_input(tmp_path: Path, name: str) -> None:
    text = f"{name},date,cases\n0,2012-01-01,5\n1,2012-01-02,6\n"
    table = load_text(tmp_path, text)
    assert table.features == ("cases",) and "without a name" in table.notes[0]
    named = load_text(tmp_path, text, features=["all", name])
    assert named.features == ("cases", name) and not named.notes
    other = load_text(tmp_path, text.replace(name, "Unnamed: sites"))
    assert other.features == ("Unnamed: sites", "cases") and not other.notes


def test_load_hint_for_a_column_whose_name_has_dots(tmp_path: Path) -> None:
    text = "date,temp.max,wind.max,cases\n2012-01-01,1,2,3\n"
    assert "did you mean 'wind.max'?" in refusal(tmp_path, text, features=["wnd.max"])
