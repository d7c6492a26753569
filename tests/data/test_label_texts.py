"""Names in CSV files are the texts that were written, whatever else the same file holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from table_files import load, load_text, refusal

from xlstm_tune.errors import DataError

HEADER = "date,c,cases\n"


def files(folder: Path, *columns: list[str]) -> list[str]:
    """A file for each list of cells; their rows are of consecutive days."""
    day, paths = 0, []
    for number, cells in enumerate(columns):
        lines = []
        for cell in cells:
            day += 1
            lines.append(f"2012-01-{day:02d},{cell},{day}\n")
        path = folder / f"{number}.csv"
        path.write_text(HEADER + "".join(lines))
        paths.append(str(path))
    return paths


def categories(source: list[str], **keys: Any) -> list[str | None]:
    """The category of each row; None where every 0/1 column is 0."""
    table = load(source, categories="c", **keys)
    rows = table.values[:, list(table.one_hot)]
    names = [table.features[column].removeprefix("c=") for column in table.one_hot]
    return [names[int(row.argmax())] if row.any() else None for row in rows]


def test_a_file_with_nothing_but_none_has_that_category(tmp_path: Path) -> None:
    one, two = ["none", "rain"], ["none", "none", "NA", "-"]
    assert categories(files(tmp_path, one, two)) == one + two
    assert categories(files(tmp_path, two, one)) == two + one
    assert categories(files(tmp_path, ["none", "none"])) == ["none", "none"], "also where there is no other file"


def test_an_empty_cell_among_them_stays_blank(tmp_path: Path) -> None:
    made = categories(files(tmp_path, ["rain"], ["none", "", " ", "-"]), missing="forward_fill")
    assert made == ["rain", "none", "none", "none", "-"]


@pytest.mark.parametrize("others", [["1", "2"], ["1.5", "2.5"], ["01", "02"], ["true", "false"]])
def test_where_other_files_have_numbers_or_truths_they_are_blanks(tmp_path: Path, others: list[str]) -> None:
    made = categories(files(tmp_path, others, ["NA", "none"]), missing="forward_fill")
    assert made == [*others, others[-1], others[-1]]


def test_a_series_called_na_is_one_also_where_its_file_has_no_other(tmp_path: Path) -> None:
    assert load(files(tmp_path, ["DE", "FR"], ["NA"]), series="c").keys == (("DE",), ("FR",), ("NA",))
    assert load(files(tmp_path, ["NA", "NA"]), series="c").keys == (("NA",),)


def test_truths_are_the_same_categories_beside_other_texts(tmp_path: Path) -> None:
    one, two = ["True", "False"], ["True", "unknown", "FALSE"]
    assert categories(files(tmp_path, one, two)) == ["true", "false", "true", "unknown", "false"]
    assert categories(files(tmp_path, one)) == ["true", "false"]
    assert categories(files(tmp_path, two)) == ["true", "unknown", "false"]
    pa_parquet.write_table(pa.table({"date": ["2012-02-01"], "c": [True], "cases": [9]}), tmp_path / "z.parquet")
    assert categories([*files(tmp_path, two), str(tmp_path / "z.parquet")])[-1] == "true"


def test_series_called_like_truths_keep_their_names_beside_others(tmp_path: Path) -> None:
    table = load(files(tmp_path, ["TRUE", "TRUE"], ["AAPL", "TRUE"]), series="c")
    assert table.keys == (("TRUE",), ("AAPL",)) and table.offsets.tolist() == [0, 3, 4]


@pytest.mark.parametrize(
    ("one", "other"),
    [("1.1", "1.10"), ("1E2", "10E1"), ("007.00", "7.00")],
)
@pytest.mark.parametrize("key", ["series", "categories"])
def test_two_names_that_are_one_number_are_refused(tmp_path: Path, one: str, other: str, key: str) -> None:
    remedy = "write ids that are not numbers, such as with a letter before them"
    rows = [f"2012-01-0{day},{name},{day}\n" for day, name in enumerate((one, other, "2.5"), 1)]
    message = refusal(tmp_path, HEADER + "".join(rows), **{key: "c"})
    assert f"'{one}' and '{other}' in column 'c' of " in message and message.endswith(remedy)
    assert load_text(tmp_path, HEADER + "".join(rows), exclude="c").offsets.tolist() == [0, 3], "numbers may be so"


@pytest.mark.parametrize(("one", "other"), [("1.1", "1.10"), ("007.00", "7.0")])
def test_two_names_of_two_files_that_are_one_number_are_refused(tmp_path: Path, one: str, other: str) -> None:
    with pytest.raises(DataError, match=f"'{re.escape(one)}' and '{re.escape(other)}' in column 'c' of .*1.csv "):
        load(files(tmp_path, [one], [other, "2.5"]), series="c")


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (["008.45", "250.10"], ["008.45", "250.10"]),
        (["250.00", "250.01", "4.0"], ["250.00", "250.01", "4"]),
        (["1E5", "2E5"], ["1E5", "2E5"]),
        (["12345678901234567890", "12345678901234567891"], ["12345678901234567890", "12345678901234567891"]),
        (["4001.0", "4002.0", "4003."], ["4001", "4002", "4003"]),
        (["04001.0", "12.5"], ["04001", "12.5"]),
        ([" 1.5", "2.5 "], ["1.5", "2.5"]),
    ],
)
def test_names_with_a_point_are_the_texts_that_were_written(
    tmp_path: Path, written: list[str], kept: list[str]
) -> None:
    assert load(files(tmp_path, written), series="c").keys == tuple((name,) for name in kept)
    assert categories(files(tmp_path, written)) == kept
    assert categories(files(tmp_path, written, ["7", "7.5"])) == [*kept, "7", "7.5"], "also beside a file of numbers"
    assert load(files(tmp_path, written), exclude="c").offsets.tolist() == [0, len(written)], "numbers may be so"


def test_whole_numbers_with_and_without_a_point_are_one_name(tmp_path: Path) -> None:
    assert load(files(tmp_path, ["1", "1.0", "1.", "2.5"]), series="c").keys == (("1",), ("2.5",))
    assert load(files(tmp_path, ["1", "2"], ["1.0", "2.0"]), series="c").keys == (("1",), ("2",))
    assert categories(files(tmp_path, ["4001.0", "4002.00", "4003."])) == ["4001", "4002", "4003"]


@pytest.mark.parametrize(
    ("columns", "kept"),
    [
        ([["250.00", "250.01"], ["250.00", "250.00"]], ["250.00", "250.01", "250.00", "250.00"]),
        ([["5", "6"], ["5.00", "5.25"]], ["5", "6", "5", "5.25"]),
        ([["01", "5"], ["5.00", "5.25"]], ["01", "5", "5", "5.25"]),
        ([["100", "6"], ["1E2", "6.5"]], ["100", "6", "100", "6.5"]),
        ([["5", "x"], ["5.00", "5.25"]], ["5", "x", "5", "5.25"]),
        ([["1.0", "1.00", "2.5"]], ["1", "1", "2.5"]),
        ([["1.00", "", "2.5"], ["1.000"]], ["1", "1", "2.5", "1"]),
        ([["1E99999999999999999999", "2.50"]], ["1E99999999999999999999", "2.50"]),
    ],
)
def test_a_number_with_a_point_is_one_name_over_all_files(
    tmp_path: Path, columns: list[list[str]], kept: list[str]
) -> None:
    assert categories(files(tmp_path, *columns), missing="forward_fill") == kept
    if len(columns) == 2:
        turned = categories(files(tmp_path, *reversed(columns)), missing="forward_fill")
        assert sorted(map(str, turned)) == sorted(kept), "whichever comes first"


def test_a_number_of_another_kind_of_file_names_texts_of_it(tmp_path: Path) -> None:
    pa_parquet.write_table(pa.table({"date": ["2012-02-01"], "c": [5.5], "cases": [9]}), tmp_path / "z.parquet")
    made = categories([*files(tmp_path, ["5.50", "7.10"]), str(tmp_path / "z.parquet")])
    assert made == ["5.5", "7.10", "5.5"]


@pytest.mark.parametrize("names", [["0x1F", "0x20"], ["0X1f", "7"], ["-0x1F", "-07"]])
def test_names_of_base_16_are_the_texts_that_were_written(tmp_path: Path, names: list[str]) -> None:
    assert load(files(tmp_path, names), series="c").keys == tuple((name,) for name in names)
    assert load(files(tmp_path, names), exclude="c").offsets.tolist() == [0, 2]
