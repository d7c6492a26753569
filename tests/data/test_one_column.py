"""CSV files of one column: an empty line between others is a blank cell, and none is one at either end."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from table_files import load, one_sentence

from xlstm_tune.data.read import read_source
from xlstm_tune.errors import DataError

TEXT = "cases\n1\n2\n\n4\n5\n"
KEYS: dict[str, Any] = {"time": None, "features": "cases"}


def write(folder: Path, text: str, ending: str = "csv", begin: bytes = b"") -> Path:
    path = folder / f"x.{ending}"
    data = begin + text.encode()
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    return path


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv", "txt"])
@pytest.mark.parametrize("line", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("around", [("", ""), ("", "\n\n\n"), ("\n\n", "\n")])
def test_load_empty_line_is_a_blank_cell(
    tmp_path: Path, ending: str, line: str, begin: bytes, around: tuple[str, str]
) -> None:
    path = write(tmp_path, TEXT.join(around).replace("\n", line), ending, begin)
    with pytest.raises(DataError) as error:
        load(path, **KEYS)
    assert "column 'cases' has 1 blank cell in row 3" in one_sentence(error)
    assert load(path, **KEYS, missing="interpolate").values[:, 0].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("end", ["", "\n", "\n\n\n", "\r\n\r\n"])
def test_load_empty_lines_at_the_end_are_harmless(tmp_path: Path, end: str) -> None:
    assert load(write(tmp_path, "cases\n1\n2\n3" + end), **KEYS).values[:, 0].tolist() == [1, 2, 3]


def test_load_quoted_blank_at_the_end_is_a_cell(tmp_path: Path) -> None:
    table = load(write(tmp_path, 'cases\n1\n2\n3\n""\n\n'), **KEYS, missing="forward_fill")
    assert table.values[:, 0].tolist() == [1, 2, 3, 3] and not table.observed[3, 0]


def test_load_header_and_empty_lines_have_no_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has a header but no rows"):
        load(write(tmp_path, "cases\n\n\n"), **KEYS)


@pytest.mark.parametrize(
    ("column", "cells", "expected"),
    [("name", ["04001", "", "2"], ["04001", None, "2"]), ("name", ["0x1F", "", "0x20"], ["0x1F", None, "0x20"])],
)
def test_read_names_of_one_column_keep_their_texts(
    tmp_path: Path, column: str, cells: list[str], expected: list[str | None]
) -> None:
    path = write(tmp_path, "\n".join([column, *cells]) + "\n\n")
    assert read_source([str(path)], {}, [column]).table.column(column).to_pylist() == expected


def test_read_times_in_a_zone_of_one_column_keep_their_texts(tmp_path: Path) -> None:
    path = write(tmp_path, "when\n2020-01-01T00:00+02:00\n\n2020-01-02T00:00+02:00\n\n")
    made = read_source([str(path)], {}).table.column("when").to_pylist()
    assert made == ["2020-01-01T00:00+02:00", "", "2020-01-02T00:00+02:00"]
