"""Columns of text views, as polars writes them, and of their codes."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as pa_feather
import pyarrow.parquet as pa_parquet
import pytest
from table_files import load

ROWS = 24
DAYS = [str(dt.date(2020, 1, 1) + dt.timedelta(row)) for row in range(ROWS)]
NAMES = ["a", "b"] * (ROWS // 2)


def written(folder: Path, ending: str, days: pa.Array, names: pa.Array) -> Path:
    table = pa.table({"date": days, "name": names, "cases": pa.array(range(ROWS))})
    path = folder / f"x.{ending}"
    if ending == "parquet":
        pa_parquet.write_table(table, path)
    else:
        pa_feather.write_feather(table, str(path), compression="uncompressed")
    return path


@pytest.mark.parametrize("ending", ["arrow", "parquet"])
@pytest.mark.parametrize("keys", [{"series": "name"}, {"categories": "name"}, {"exclude": "name"}])
def test_load_text_views_agree_with_text(tmp_path: Path, ending: str, keys: dict[str, Any]) -> None:
    texts = [pa.array(cells, pa.string()) for cells in (DAYS, NAMES)]
    views = [pa.array(cells, pa.string_view()) for cells in (DAYS, NAMES)]
    plain = load(written(tmp_path, ending, *texts), **keys)
    viewed = load(written(tmp_path, ending, *views), **keys)
    assert viewed.fingerprint == plain.fingerprint and viewed.keys == plain.keys
    assert viewed.sample == plain.sample and viewed.time_label(3) == plain.time_label(3)


def test_load_codes_of_text_views_are_names(tmp_path: Path) -> None:
    coded = pa.DictionaryArray.from_arrays(
        pa.array([0, 1] * (ROWS // 2), pa.int32()), pa.array(["a", "b"], pa.string_view())
    )
    path = tmp_path / "x.arrow"
    table = pa.table({"date": pa.array(DAYS), "name": coded, "cases": pa.array(range(ROWS))})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    assert load(path, series="name").keys == (("a",), ("b",))


def test_load_views_of_bytes_are_names_and_blanks_stay(tmp_path: Path) -> None:
    names = pa.array([b"a", b"b"] * (ROWS // 2 - 1) + [None, b"b"], pa.binary_view())
    path = written(tmp_path, "arrow", pa.array(DAYS), names)
    assert load(path, categories="name", missing="forward_fill").features == ("name=a", "name=b", "cases")
