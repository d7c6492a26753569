"""Cells of a table: numbers, categories and blanks, bad ones and missing ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from table_files import DAILY, load, load_text, one_sentence, refusal

from xlstm_tune.errors import DataError


def test_load_usual_spellings_of_a_blank_are_blanks(tmp_path: Path) -> None:
    text = DAILY + "2012-01-05,n/a,1,NaN\n2012-01-06,NULL,2,?\n2012-01-07,9,3,9\n"
    table = load_text(tmp_path, text, missing="interpolate")
    assert table.values[4:, 0].tolist() == pytest.approx([17 / 3, 22 / 3, 9])
    assert table.observed[:, 0].tolist() == [True] * 4 + [False, False, True]
    assert table.notes == ("4 blank cells were filled by data.missing: interpolate (2 in 'temp', 2 in 'cases')",)


def test_load_text_that_spells_numbers_in_parquet_is_read(tmp_path: Path) -> None:
    columns = {"date": ["2012-01-01", "2012-01-02", "2012-01-03"], "cases": ["1", " 2.5", "NA"]}
    table = pa.table(columns).set_column(1, "cases", pa.array(columns["cases"]).dictionary_encode())
    pa_parquet.write_table(table, tmp_path / "x.parquet")
    assert load(tmp_path / "x.parquet", missing="forward_fill").values[:, 0].tolist() == [1, 2.5, 2.5]


def test_load_truths_become_zero_and_one(tmp_path: Path) -> None:
    table = load_text(tmp_path, "date,cases,wet\n2012-01-01,1,true\n2012-01-02,2,false\n")
    assert table.values.tolist() == [[1, 1], [2, 0]]


SKY = "date,cases,sky\n2012-01-01,1,sun\n2012-01-02,2,sun\n2012-01-03,3,rain\n"


@pytest.mark.parametrize(
    ("text", "keys", "expected"),
    [
        (SKY, {}, 'column \'sky\' holds text ("sun" in row 1); name it in data.categories or data.excl'),
        (DAILY + "2012-01-05,1,x7,2\n", {}, 'column \'wind\' holds text ("x7" in row 5)'),
        (SKY, {"target": "sky"}, 'the target \'sky\' holds text ("sun" in row 1); a target must be a number'),
        (DAILY + '2012-01-05,1,"2,5",2\n', {}, 'column \'wind\' holds "2,5" in row 5; numbers are written with'),
        (DAILY + '2012-01-05,1,2,"1.054,9"\n', {}, 'column \'cases\' holds "1.054,9" in row 5; numbers are written'),
        (DAILY + "2012-01-05,1,2,many\n", {}, 'the target \'cases\' holds text ("many" in row 5)'),
        (DAILY + "2012-01-05,inf,2,1\n", {}, "column 'temp' holds inf in row 5; a number must be finite"),
        (DAILY + "2012-01-05,1e300,2,1\n", {}, "column 'temp' holds 1e+300 in row 5"),
        (DAILY + "2012-01-05,1,,2\n", {}, "column 'wind' has 1 blank cell in row 5; set data.missing to forward_fill"),
        (DAILY + "2012-01-05,,,2\n2012-01-06,,3,3\n", {}, "'temp' has 2 blank cells, the first in row 5 (and there"),
        ("date,cases,x\n2012-01-01,1,\n2012-01-02,2,\n", {}, "column 'x' has no values at all; name it in data.exc"),
        ("date,cases\n2012-01-01,\n", {}, "the target 'cases' has no values at all; name another column in data.t"),
        ("date,cases,x\n2012-01-01,1,2012-05-01\n", {}, "column 'x' holds times (2012-05-01 in row 1), which"),
    ],
)  # fmt: skip
def test_load_bad_cells_are_one_sentence(tmp_path: Path, text: str, keys: dict[str, Any], expected: str) -> None:
    assert expected in refusal(tmp_path, text, **keys)


def test_load_bad_cell_in_a_large_file_is_named_exactly(tmp_path: Path) -> None:
    lines = ["date,cases"] + ["0,1"] * 400_000
    lines[345_678] = "0,1.2.3"
    assert '("1.2.3" in row 345678)' in refusal(tmp_path, "\n".join(lines), time=None, features="cases")


def test_load_nested_column_is_refused(tmp_path: Path) -> None:
    pa_parquet.write_table(pa.table({"cases": [1, 2], "x": [[1], [2]]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"column 'x' holds list<.*> values, which cannot be an input"):
        load(tmp_path / "x.parquet", time=None)


def test_load_categories_become_one_column_per_value(tmp_path: Path) -> None:
    table = load_text(tmp_path, SKY, categories="sky")
    assert table.features == ("cases", "sky=rain", "sky=sun") and table.one_hot == (1, 2)
    assert table.values[:, 1:].tolist() == [[0, 1], [0, 1], [1, 0]]


def test_load_numbers_can_be_categories(tmp_path: Path) -> None:
    assert load_text(tmp_path, DAILY, categories="wind").features == (
        "temp", "wind=5", "wind=6", "wind=7", "wind=8", "cases",
    )  # fmt: skip


def test_load_series_column_can_be_an_input_besides_all(tmp_path: Path) -> None:
    text = "county,date,cases\nPima,2012-01-01,1\nYuma,2012-01-01,2\n"
    table = load_text(tmp_path, text, series="county", features=["all", "county"], categories="county")
    assert table.features == ("cases", "county=Pima", "county=Yuma")


def test_load_too_many_values_of_a_category_are_refused(tmp_path: Path) -> None:
    text = "date,cases,id\n" + "".join(f"2012-{1 + row // 28:02}-{1 + row % 28:02},1,id{row}\n" for row in range(65))
    assert "column 'id' has 65 different values, too many" in refusal(tmp_path, text, categories="id")


def test_load_column_named_like_a_category_value_is_refused(tmp_path: Path) -> None:
    assert "'sky=sun' is named like" in refusal(
        tmp_path, SKY.replace("cases", "sky=sun"), target="sky=sun", categories="sky"
    )


HOLES = "s,date,cases,x\n" + "".join(
    f"{series},2012-01-0{day},{day},{'' if hole else 10 * day}\n"
    for series, holes in (("a", (3, 4)), ("b", (1, 6)))
    for day, hole in [(day, day in holes) for day in range(1, 7)]
)


def test_load_forward_fill_stays_inside_a_series(tmp_path: Path) -> None:
    text = HOLES.replace("b,2012-01-01,1,", "b,2012-01-01,1,10")
    table = load_text(tmp_path, text, series="s", missing="forward_fill")
    assert table.values[:, 1].tolist() == [10, 20, 20, 20, 50, 60, 10, 20, 30, 40, 50, 50]
    assert not table.peeks.any() and table.observed.all()


def test_load_forward_fill_of_a_leading_blank_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, HOLES, series="s", missing="forward_fill") == (
        "column 'x' is blank in row 7 (s=b), before its first value, so forward_fill has nothing to carry on; "
        "set data.missing to interpolate (takes the nearest value) or drop"
    )


def test_load_interpolate_is_linear_and_extends_the_ends(tmp_path: Path) -> None:
    table = load_text(tmp_path, HOLES, series="s", missing="interpolate")
    assert table.values[:, 1].tolist() == [10, 20, 30, 40, 50, 60, 20, 20, 30, 40, 50, 50]
    # What was drawn from a later row is marked; the last row of series b took an earlier value.
    assert np.flatnonzero(table.peeks).tolist() == [2, 3, 6]


def test_load_drop_removes_rows_and_says_so(tmp_path: Path) -> None:
    table = load_text(tmp_path, HOLES, series="s", missing="drop")
    assert table.offsets.tolist() == [0, 4, 8] and table.file_rows.tolist() == [0, 1, 4, 5, 7, 8, 9, 10]
    assert table.notes[0] == "4 of 12 rows were dropped for a blank cell (4 in 'x')"
    assert table.time_label(2) == "2012-01-05" and "step in time differs" in table.notes[1]


def test_load_drop_can_lose_a_series_but_not_all(tmp_path: Path) -> None:
    text = "s,date,cases,x\na,2012-01-01,1,2\na,2012-01-02,1,2\nb,2012-01-01,1,\n"
    table = load_text(tmp_path, text, series="s", missing="drop")
    assert table.keys == (("a",),) and "with them 1 of 2 series" in table.notes[0]
    text = "s,date,cases,x\na,2012-01-01,1,\na,2012-01-02,,2\n"
    assert "drop leaves none" in refusal(tmp_path, text, series="s", missing="drop")


def test_load_series_without_any_value_cannot_be_filled(tmp_path: Path) -> None:
    text = "s,date,cases,x\na,2012-01-01,1,2\nb,2012-01-01,1,\n"
    assert "column 'x' has no value at all in s=b" in refusal(tmp_path, text, series="s", missing="interpolate")


@pytest.mark.parametrize("missing", ["interpolate", "forward_fill"])
def test_load_series_without_any_target_is_not_told_to_exclude_it(tmp_path: Path, missing: str) -> None:
    text = "s,date,cases,x\na,2012-01-01,1,2\nb,2012-01-01,,3\n"
    assert refusal(tmp_path, text, series="s", missing=missing) == (
        "the target 'cases' has no value at all in s=b, so nothing can fill it; set data.missing: drop or take that "
        "series out of the data"
    )


@pytest.mark.parametrize(
    ("column", "keys", "expected"),
    [
        (
            pa.array([[1]] * 3),
            {"series": "x"},
            "values, which cannot name groups; name a column of text or whole numbers",
        ),
        (pa.array([{"a": 1}] * 3), {"time": "x"}, "not dates; write them as dates or as text such as 2012-01-31"),
        (
            pd.Series(pd.period_range("2012-01", periods=3, freq="M")),
            {"time": "x"},
            "not dates; write them as dates or",
        ),
        (
            pa.array([1.5, 2.5, 3.5]),
            {"time": {"column": "x", "format": "mmwr-week"}},
            "write them as text such as 2006_1",
        ),
    ],
)
def test_load_column_of_another_kind_says_what_to_do(
    tmp_path: Path, column: Any, keys: dict[str, Any], expected: str
) -> None:
    pa_parquet.write_table(pa.table({"cases": [1, 2, 3], "x": column}), tmp_path / "x.parquet")
    with pytest.raises(DataError) as error:
        load(tmp_path / "x.parquet", **({"time": None} | keys))
    assert expected in one_sentence(error)


def test_load_blank_category_takes_the_nearest_earlier_value(tmp_path: Path) -> None:
    text = SKY + "2012-01-04,4,\n"
    assert "column 'sky' has 1 blank cell in row 4" in refusal(tmp_path, text, categories="sky")
    for policy in ("forward_fill", "interpolate"):
        table = load_text(tmp_path, text, categories="sky", missing=policy)
        assert table.values[3].tolist() == [4, 1, 0] and not table.peeks.any()
