"""Where tables come from: files of every format, many files, folders, and sources that cannot be read."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.feather as pa_feather
import pyarrow.parquet as pa_parquet
import pytest
from table_files import DAILY, load, load_text, one_sentence, refusal

from xlstm_tune.data.read import local_files, read_source, without_credentials
from xlstm_tune.errors import DataError


@pytest.mark.parametrize(
    "name", ["x.parquet", "x.pq", "x.arrow", "x.arrows", "x.feather", "x.csv.gz", "x.tsv", "x.CSV"]
)
def test_load_formats_agree_with_csv(tmp_path: Path, name: str) -> None:
    expected = load_text(tmp_path, DAILY)
    table = pa_csv.read_csv(tmp_path / "x.csv")
    path = tmp_path / name
    if name.endswith((".parquet", ".pq")):
        pa_parquet.write_table(table, path)
    elif name == "x.feather":
        pa_feather.write_feather(table, path)
    elif name.startswith("x.arrow"):
        new = pa.ipc.new_stream if name == "x.arrows" else pa.ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table)
    elif name == "x.csv.gz":
        with pa.CompressedOutputStream(path, "gzip") as stream:
            stream.write(DAILY.encode())
    else:
        path.write_text(DAILY.replace(",", "\t") if name == "x.tsv" else DAILY)
    loaded = load(path)
    assert loaded.fingerprint == expected.fingerprint
    np.testing.assert_array_equal(loaded.values, expected.values)


def write_parts(folder: Path) -> None:
    folder.mkdir(parents=True)
    for part in range(3):
        rows = [f"2012-01-{3 * part + day + 1:02},{3 * part + day}" for day in range(3)]
        (folder / f"part{part}.csv").write_text("\n".join(["date,cases", *rows]) + "\n")
    (folder / "README.md").write_text("not data")
    (folder / "_SUCCESS").write_text("")


@pytest.mark.parametrize(
    "source",
    [
        "{}/d/part*.csv",
        "{}/d",
        "{}/**/part?.csv",
        "{}/d/part[012].csv",
        "file://{}/d/part*.csv",
        "file://{}/d",
        "d",
        "d/*.csv",
    ],
)
def test_load_many_files_follow_each_other_by_name(tmp_path: Path, source: str, monkeypatch: Any) -> None:
    write_parts(tmp_path / "d")
    monkeypatch.chdir(tmp_path)
    table = load(source.format(tmp_path))
    assert table.values[:, 0].tolist() == list(range(9)) and table.notes == ()


def test_load_files_without_time_and_series_say_how_they_follow_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for number in range(1, 12):
        (folder / f"f{number}.csv").write_text(f"site,cases\n{number},{number}\n")
    (note,) = load(folder, time=None, exclude="site").notes
    assert note == (
        "the rows of 11 files follow each other as one series, in the order f1.csv, f10.csv, f11.csv and 8 more files; "
        "name their time in data.time, or the column that tells series apart in data.series"
    )
    assert load(folder, time=None, series="site").notes == () == load(folder / "f1.csv", time=None).notes


def test_load_a_folder_called_like_tabs_holds_commas(tmp_path: Path) -> None:
    folder = tmp_path / "exp.tsv_files"
    folder.mkdir()
    assert load_text(folder, DAILY).values.shape == (4, 3)
    (folder / "y.TSV.txt").write_text(DAILY.replace(",", "\t"))
    assert load(folder / "y.TSV.txt").values.shape == (4, 3)


def test_load_commas_behind_each_line_are_no_columns(tmp_path: Path) -> None:
    text = re.sub(r"-(\d\d),", r"-\1T00:00+02:00,", DAILY.replace("\n", ",,\n"))
    table = load_text(tmp_path, text)
    assert table.features == ("temp", "wind", "cases") and table.notes == ()
    assert table.time_label(0) == "2012-01-01T00:00+02:00"
    alone = load_text(tmp_path, "cases,,\n1,,\n\n2,,\n3,,\n", time=None, features=[])
    assert alone.features == ("cases",) and alone.targets[:, 0].tolist() == [1, 2, 3]
    load_text(tmp_path, text)
    (tmp_path / "y.csv").write_text("date,temp,wind,cases,,\n")
    assert load([str(tmp_path / "x.csv"), str(tmp_path / "y.csv")]).fingerprint == table.fingerprint


@pytest.mark.parametrize("remarks", [("", "late"), ("late", ""), ("late", "later")])
def test_load_files_of_which_some_have_remarks_without_a_name(tmp_path: Path, remarks: tuple[str, str]) -> None:
    for day, remark in enumerate(remarks, 1):
        (tmp_path / f"{day}.csv").write_text(f"date,cases,\n2012-01-0{day},{day},{remark}\n")
    assert load(tmp_path / "*.csv").targets[:, 0].tolist() == [1, 2]


def test_load_list_keeps_its_order_and_names_the_file_of_a_row(tmp_path: Path) -> None:
    write_parts(tmp_path / "d")
    sources = [str(tmp_path / "d" / f"part{part}.csv") for part in (1, 0)]
    table = load(sources, time=None, exclude="date")
    assert table.values[:, 0].tolist() == [3, 4, 5, 0, 1, 2]
    (tmp_path / "d" / "part0.csv").write_text("date,cases\n2012-01-01,1\n2012-01-02,oops\n")
    with pytest.raises(DataError, match=r'text \("oops" in row 2 of .*part0\.csv\); a target must be a number'):
        load(sources)


def test_load_file_uri_reads_one_file(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(DAILY)
    assert load(f"file://{tmp_path}/x.csv").values.shape == (4, 3)


def test_load_name_with_brackets_that_exists_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "x[1].csv").write_text(DAILY)
    assert len(load(tmp_path / "x[1].csv").values) == 4


def test_load_folder_turns_hive_partitions_into_columns(tmp_path: Path) -> None:
    for county in ("Pima", "Yuma"):
        folder = tmp_path / "d" / f"county={county}"
        folder.mkdir(parents=True)
        pa_parquet.write_table(
            pa.table({"date": [dt.date(2012, 1, 1), dt.date(2012, 1, 2)], "cases": [1, 2]}), folder / "p.parquet"
        )
    assert load(tmp_path / "d", series="county").keys == (("Pima",), ("Yuma",))


def test_load_names_in_digits_keep_their_zeros(tmp_path: Path) -> None:
    text = "fips,soil,date,cases\n" + "".join(
        f"{fips},{soil},2012-01-0{day},{day}\n" for fips, soil in (("04001", "01"), ("12086", "2")) for day in (1, 2)
    )
    keys: dict[str, Any] = {"series": "fips", "categories": "soil"}
    table = load_text(tmp_path, text, **keys)
    assert table.keys == (("04001",), ("12086",)) and table.features == ("soil=01", "soil=2", "cases")
    assert table.sample.column("fips").to_pylist() == ["04001", "04001"]
    # A second file of the same table has none that begins with a zero.
    (tmp_path / "y.csv").write_text("fips,soil,date,cases\n13001,1,2012-01-01,5\n")
    table = load([str(tmp_path / "x.csv"), str(tmp_path / "y.csv")], **keys)
    assert table.keys == (("04001",), ("12086",), ("13001",))
    # Numbers that are no names stay numbers, and so do names without such a zero.
    text = text.replace("04001", "4001").replace(",01,", ",1,").replace(",2\n", ",02\n")
    table = load_text(tmp_path, text, **keys)
    assert table.keys == (("4001",), ("12086",)) and table.targets[:, 0].tolist() == [1, 2, 1, 2]
    assert pa.types.is_integer(table.sample.column("fips").type)


def test_load_blank_name_among_padded_ones_is_still_blank(tmp_path: Path) -> None:
    text = "fips,date,cases\n04001,2012-01-01,1\nNA,2012-01-02,2\n"
    assert "column 'fips' of data.series is blank in row 2" in refusal(tmp_path, text, series="fips")


@pytest.mark.parametrize(("labels", "expected"), [({"series": "fips"}, ("04001",)), ({}, ("all",))])
def test_load_partition_that_is_a_name_keeps_its_zeros(
    tmp_path: Path, labels: dict[str, Any], expected: tuple[str, ...]
) -> None:
    folder = tmp_path / "d" / "fips=04001"
    folder.mkdir(parents=True)
    (folder / "x.csv").write_text(DAILY)
    table = load(tmp_path / "d", **labels)
    assert table.keys == (expected,) and ("fips" in table.features) == (not labels)


def test_load_files_whose_types_differ_are_widened(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("date,cases,x\n2012-01-01,1,\n2012-01-02,2,\n")
    (tmp_path / "b.csv").write_text("date,cases,x\n2012-01-03 00:00:00,1.5,7\n2012-01-04 00:00:00,2.5,8\n")
    table = load(tmp_path / "*.csv", missing="interpolate")
    assert table.values.tolist() == [[1, 7], [2, 7], [1.5, 7], [2.5, 8]]


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("a@b.csv", "a@b.csv"),
        ("s3://bucket/a@b.csv", "s3://bucket/a@b.csv"),
        ("s3://key:secret@bucket/a@b.csv?region=eu-west-1", "s3://bucket/a@b.csv?region=eu-west-1"),
        ("s3://key:se/c@ret@bucket/a.csv", "s3://bucket/a.csv"),
        ("hdfs://host:8020/a@b.csv", "hdfs://host:8020/a@b.csv"),
        ("gs://anonymous@bucket/x", "gs://anonymous@bucket/x"),
        ("gs://someone@bucket/x", "gs://bucket/x"),
        ("abfs://box@acct.dfs.core.windows.net/d/x.parquet", "abfs://box@acct.dfs.core.windows.net/d/x.parquet"),
        ("abfss://box:s@ret@acct.dfs.core.windows.net/x", "abfss://box@acct.dfs.core.windows.net/x"),
        ("abfs://:secret@acct.blob.core.windows.net/box/x", "abfs://acct.blob.core.windows.net/box/x"),
        ("abfs://box@acct/x?tenant_id=t&client_secret=s&client_id=c", "abfs://box@acct/x?tenant_id=t&client_id=c"),
        ("abfs://box@acct/x?sig=s", "abfs://box@acct/x"),
    ],
)
def test_without_credentials_keeps_the_place(source: str, kept: str) -> None:
    assert without_credentials(source) == kept


@pytest.mark.slow  # Arrow tries for six seconds before it gives up
def test_load_s3_that_cannot_be_reached_is_one_sentence_without_secrets(tmp_path: Path) -> None:
    uri = "s3://someone:topsecret@bucket/x.csv?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    with pytest.raises(DataError) as error:
        load(uri)
    message = one_sentence(error)
    assert message.startswith("'s3://bucket/x.csv' cannot be reached") and "topsecret" not in message


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("daly.csv", "'daly.csv' does not exist; did you mean 'daily.csv'?"),
        ("nowhere/x.csv", "'nowhere/x.csv' does not exist: there is no folder "),
        ("*.arrow", "no file matches '*.arrow'; a relative path starts at "),
        ("empty.csv", "empty.csv is empty"),
        ("blank.csv", "blank.csv is empty"),
        ("empty.parquet", "empty.parquet is empty"),
        ("header.csv", "header.csv has a header but no rows"),
        ("header2.csv", "header2.csv has a header but no rows"),
        ("broken.parquet", "broken.parquet cannot be read: "),
        ("twice.csv", "twice.csv has more than one column named 'a'; rename one of them"),
        ("ragged.csv", "row 2 of ragged.csv has 2 cells, but the header has 3 ('4,5'); mend that row"),
        (
            "semicolon.csv",
            "semicolon.csv seems to separate its cells by semicolons, not by commas; save it with commas",
        ),
        (
            "decimal.csv",
            "decimal.csv seems to separate its cells by semicolons, not by commas; save it with commas and d",
        ),
        (
            "tabs.csv",
            "tabs.csv seems to separate its cells by tabs, not by commas; save it with commas and decimal points",
        ),
        ("commas.tsv", "seems to separate its cells by commas, not by tabs; save it with tabs, or name it .csv"),
        ("unicode.tsv", "unicode.tsv is not UTF-8 text; save it as UTF-8"),
        ("unicode.txt", "unicode.txt is not UTF-8 text; save it as UTF-8"),
        (
            "sep.csv",
            "row 1 of sep.csv has 3 cells, but the header has 2 ('a,b,c'); remove what stands above the column ",
        ),
        ("about.csv", "row 2 of about.csv has 3 cells, but the header has 1 ('a,b,c'); remove what stands above the "),
        ("wide.csv", "row 1 of wide.csv has 3 cells, but the header has 2 ('1,2,3'); mend that row"),
        ("nameless.csv", "nameless.csv has more than one column without a name; give them names or remove them"),
        ("latin.csv", "latin.csv is not UTF-8 text; save it as UTF-8"),
        ("x.xlsx", "x.xlsx is of a kind that cannot be read; readable are .csv, "),
        ("folder", "the folder 'folder' holds no file that can be read ("),
        ("s9://x/y.csv", "'s9://x/y.csv' cannot be reached: "),
        (
            "https://me:secret@host.org/*.csv?key=1",
            "'https://host.org/*.csv' cannot be reached: addresses of tables begin with s3://, gs://, abfs://, hdfs:// "
            "or file://; put it at one of these, or download it and give the file's path",
        ),
        ("sample:seatle-weather", "did you mean 'seattle-weather'?"),
    ],
)
def test_load_source_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, source: str, expected: str, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "daily.csv": DAILY, "empty.csv": "", "blank.csv": "\n\n", "header.csv": "a,b\n", "header2.csv": "a,b",
        "twice.csv": "a,a\n1,2\n", "ragged.csv": "a,b,c\n1,2,3\n4,5\n6,7,8\n", "semicolon.csv": "a;b\n1;2\n",
        "decimal.csv": "a;b\n1,5;2,5\n", "tabs.csv": "a\tb\n1,5\t2\n", "commas.tsv": "a,b\n1,2\n",
        "sep.csv": "sep=,\na,b,c\n1,2,3\n4,5,6\n", "about.csv": "# from\n# a station\na,b,c\n1,2,3\n4,5,6\n",
        "wide.csv": "a,b\n1,2,3\n1,2\n1,2\n", "nameless.csv": "a,,,\n1,2,,3\n4,5,,6\n",
        "x.xlsx": "a", "empty.parquet": "", "broken.parquet": "PAR1 or not",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for name in ("unicode.tsv", "unicode.txt"):
        (tmp_path / name).write_bytes("a\tb\n1\t2\n".encode("utf-16"))
    (tmp_path / "latin.csv").write_bytes(b"a,b\xe9\n1,2\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError) as error:
        load(source)
    assert expected in one_sentence(error)


def test_read_source_calls_itself_what_it_was_asked_by(tmp_path: Path) -> None:
    lost = str(tmp_path / "x.csv")
    for refused in (lambda: read_source([lost], {}, asked="TABLE"), lambda: local_files(lost, "TABLE")):
        with pytest.raises(DataError) as error:
            refused()
        assert str(error.value) == f"'{lost}' does not exist; check TABLE"
    with pytest.raises(DataError, match=r"x\.csv' does not exist; check data\.source$"):
        read_source([lost], {})
    write_parts(tmp_path / "d")
    assert read_source([str(tmp_path / "d")], {}, asked="TABLE").name == "the 3 files of TABLE"
    assert read_source([str(tmp_path / "d")], {}).name == "the 3 files of data.source"


def test_load_ragged_row_far_into_a_large_file_is_found(tmp_path: Path) -> None:
    lines = ["a,b"] + ["1,2"] * 400_000
    lines[300_000] = "1,2,3"
    message = refusal(tmp_path, "\n".join(lines))
    assert "row 300000 of " in message and "has 3 cells, but the header has 2" in message


def test_load_column_whose_type_changes_late_in_a_large_file_is_read(tmp_path: Path) -> None:
    lines = ["date,cases"] + ["0,1"] * 400_000
    lines[-1] = "0.5,2.5"
    table = load_text(tmp_path, "\n".join(lines), time=None, features="cases")
    assert table.values[-1, 0] == 2.5 and table.values[0, 0] == 1


def test_load_files_with_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("date,cases\n2012-01-01,1\n")
    (tmp_path / "b.csv").write_text("date,case\n2012-01-02,1\n")
    with pytest.raises(DataError, match=r"b\.csv lacks the column 'cases' that .*a\.csv has; files must agree"):
        load(tmp_path / "*.csv")


ROWS = 24
DAYS = pa.array([dt.date(2020, 1, 1) + dt.timedelta(row) for row in range(ROWS)])
LISTS = pa.array([[row] for row in range(ROWS)], pa.list_(pa.int64()))
BAD_TEXT = pa.array([b"\xff"] * ROWS, pa.binary()).view(pa.string())
FAR = pa.array([2**31 - 1 - row for row in range(ROWS)], pa.int32()).cast(pa.date32())
MARS = pa.array([row * 86_400 for row in range(ROWS)], pa.int64()).cast(pa.timestamp("s", "Mars/Phobos"))
TWICE = pa.array([0] * ROWS, pa.int64()).cast(pa.timestamp("s", "Mars/Phobos"))
LIST_CODES = pa.DictionaryArray.from_arrays(pa.array([row % 2 for row in range(ROWS)], pa.int32()), LISTS[:2])


@pytest.mark.parametrize(
    ("column", "keys", "words"),
    [
        (BAD_TEXT, {"features": "x"}, "Invalid UTF8"),
        (BAD_TEXT, {"features": "x", "categories": "x"}, "Invalid UTF8"),
        (FAR, {"features": "x"}, "times (2147483647 in row 1)"),
        (FAR, {"time": {"column": "x"}}, "'2147483647' in row 1 of column 'x' is not a date of the years 1678 to 2262"),
        (MARS, {"features": "x"}, "times (0 in row 1)"),
        (TWICE, {"time": {"column": "x"}}, "two rows stand for '0' in column 'x'"),
        (LIST_CODES, {"features": "x"}, "holds list<item: int64> values"),
        (LIST_CODES, {"series": "x"}, "cannot name groups"),
    ],
)
def test_load_cells_that_python_cannot_hold_are_one_sentence(
    tmp_path: Path, column: pa.Array, keys: dict[str, Any], words: str
) -> None:
    table = pa.table({"date": DAYS, "cases": pa.array(range(ROWS)), "x": column})
    pa_feather.write_feather(table, str(tmp_path / "x.arrow"))
    with pytest.raises(DataError) as error:
        load(tmp_path / "x.arrow", **keys)
    assert words in one_sentence(error)


def test_load_times_in_a_zone_that_nobody_knows_have_labels(tmp_path: Path) -> None:
    pa_feather.write_feather(pa.table({"date": MARS, "cases": pa.array(range(ROWS))}), str(tmp_path / "x.arrow"))
    table = load(tmp_path / "x.arrow")
    assert table.time_label(1) == "86400"


def test_load_ragged_row_that_is_no_text_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.csv").write_bytes(DAILY.encode() + "2012-01-05,1,é\n".encode("latin-1"))
    with pytest.raises(DataError) as error:
        load(tmp_path / "x.csv")
    assert "is not UTF-8 text" in one_sentence(error)
    assert "Traceback" not in capfd.readouterr().err


def test_load_files_of_several_types_without_rows_are_one_sentence(tmp_path: Path) -> None:
    for name, column in (("a", LISTS), ("b", DAYS)):
        pa_feather.write_feather(pa.table({"cases": column[:0]}), str(tmp_path / f"{name}.arrow"))
    with pytest.raises(DataError) as error:
        load(tmp_path)
    assert "no file holds any rows" in one_sentence(error)


def test_load_files_whose_types_cannot_be_joined_are_refused(tmp_path: Path) -> None:
    for name, column in (("a", LISTS), ("b", DAYS)):
        pa_feather.write_feather(pa.table({"date": DAYS, "cases": column}), str(tmp_path / f"{name}.arrow"))
    with pytest.raises(DataError) as error:
        load(tmp_path)
    assert "cannot be joined" in one_sentence(error) and "a.arrow" in str(error.value)


def test_load_sample_parameters_for_a_file_are_refused(tmp_path: Path) -> None:
    assert "sets parameters of a built-in sample" in refusal(tmp_path, DAILY, sample={"years": 3})


def test_load_sample_among_other_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be joined"):
        load(["sample:seattle-weather", "x.csv"])
