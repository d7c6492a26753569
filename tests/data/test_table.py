"""Reading, checking, ordering and cleaning tables, on real files."""

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
from epiweeks import Week

from xlstm_tune.data.clock import season_of, week_number
from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.table import Table, load_table
from xlstm_tune.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not there ({SHARED})")

DAILY = "date,temp,wind,cases\n2012-01-01,1,5,10\n2012-01-02,2,6,11\n2012-01-03,3,7,12\n2012-01-04,4,8,14\n"


def load(source: Path | str | list[str], **keys: Any) -> Table:
    keys = {"lookback": 2, "target": "cases", "time": {"column": "date"}} | keys
    source = str(source) if isinstance(source, Path) else source
    return load_table(DataConfig.parse({"source": source, **keys}, "data"))


def load_text(folder: Path, text: str, **keys: Any) -> Table:
    path = folder / "x.csv"
    path.write_text(text)
    return load(path, **keys)


def refusal(folder: Path, text: str, **keys: Any) -> str:
    with pytest.raises(DataError) as error:
        load_text(folder, text, **keys)
    return one_sentence(error)


def one_sentence(error: pytest.ExceptionInfo[DataError]) -> str:
    message = str(error.value)
    assert message and "\n" not in message and not message.endswith(".")
    return message


def test_load_csv_gives_values_in_the_order_of_the_file(tmp_path: Path) -> None:
    table = load_text(tmp_path, DAILY)
    assert table.features == ("temp", "wind", "cases")
    np.testing.assert_array_equal(table.values, [[1, 5, 10], [2, 6, 11], [3, 7, 12], [4, 8, 14]])
    assert table.values.dtype == np.float32 and table.values.flags.c_contiguous
    assert table.targets.dtype == np.float64 and table.targets.tolist() == [[10], [11], [12], [14]]
    assert table.offsets.tolist() == [0, 4] and table.keys == (("all",),) and table.key_names == ()
    assert table.observed.all() and table.notes == () and table.oracle is None
    assert table.step == 86_400_000_000_000 and season_of(table.step, table.time_kind) == 7
    assert table.time_label(2) == "2012-01-03"
    assert table.time[0] == np.datetime64("2012-01-01", "ns").astype(np.int64)


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


def test_load_files_whose_types_differ_are_widened(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("date,cases,x\n2012-01-01,1,\n2012-01-02,2,\n")
    (tmp_path / "b.csv").write_text("date,cases,x\n2012-01-03 00:00:00,1.5,7\n2012-01-04 00:00:00,2.5,8\n")
    table = load(tmp_path / "*.csv", missing="interpolate")
    assert table.values.tolist() == [[1, 7], [2, 7], [1.5, 7], [2.5, 8]]


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
        ("semicolon.csv", "semicolon.csv separates its cells by semicolons; save it with commas (and decimal points)"),
        ("latin.csv", "latin.csv is not UTF-8 text; save it as UTF-8"),
        ("x.xlsx", "x.xlsx is of a kind that cannot be read; readable are .csv, "),
        ("folder", "the folder 'folder' holds no file that can be read ("),
        ("s9://x/y.csv", "'s9://x/y.csv' cannot be reached: "),
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
        "x.xlsx": "a", "empty.parquet": "", "broken.parquet": "PAR1 or not",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.csv").write_bytes(b"a,b\xe9\n1,2\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError) as error:
        load(source)
    assert expected in one_sentence(error)


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


def test_load_sample_parameters_for_a_file_are_refused(tmp_path: Path) -> None:
    assert "sets parameters of a built-in sample" in refusal(tmp_path, DAILY, sample={"years": 3})


def test_load_sample_among_other_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be joined"):
        load(["sample:seattle-weather", "x.csv"])


# --- names and roles


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


def test_load_hint_for_a_column_whose_name_has_dots(tmp_path: Path) -> None:
    text = "date,temp.max,wind.max,cases\n2012-01-01,1,2,3\n"
    assert "did you mean 'wind.max'?" in refusal(tmp_path, text, features=["wnd.max"])


# --- time


@pytest.mark.parametrize(
    ("stamps", "time", "season"),
    [
        (["2012-01-01 00:00:00", "2012-01-01 01:00:00", "2012-01-01 02:00:00"], {}, 24),
        (["2012-01-01T00:00", "2012-01-01T00:15", "2012-01-01T00:30"], {"format": "iso"}, 96),
        (["2012-01-01T00:00:00Z", "2012-01-01T00:10:00Z", "2012-01-01T00:20:00Z"], {}, 144),
        (["2012-01-01", "2012-01-08", "2012-01-15"], {}, 52),
        (["2012/01/01", "2012/01/02", "2012/01/03"], {}, 7),
        (["2012-01", "2012-02", "2012-03"], {}, 12),
        (["2012-01-31", "2012-02-29", "2012-03-31"], {}, 12),
        (["2012-03-31", "2012-06-30", "2012-09-30"], {}, 4),
        (["2012-01-01", "2013-01-01", "2014-01-01"], {}, 1),
        (["1325376000", "1325379600", "1325383200"], {"format": "epoch"}, 24),
        (["1325376000.0", "1325379600.0", "1325383200.0"], {"format": "epoch"}, 24),
        (["1325376000000", "1325379600000", "1325383200000"], {"format": "epoch", "unit": "ms"}, 24),
        (["2012_1", "2012_2", "2012_3"], {"format": "mmwr-week"}, 52),
        (["2012-W01", "2012-W02", "2012-W03"], {"format": "mmwr-week"}, 52),
        (["201201", "201202", "201203"], {"format": "mmwr-week"}, 52),
    ],
)  # fmt: skip
def test_load_time_in_every_format_sorts_and_gives_the_season(
    tmp_path: Path, stamps: list[str], time: dict[str, str], season: int
) -> None:
    text = "date,cases\n" + "".join(f"{stamp},{row}\n" for row, stamp in enumerate(stamps))
    table = load_text(tmp_path, text, time={"column": "date", **time})
    assert (np.diff(table.time) > 0).all() and table.values[:, 0].tolist() == [0, 1, 2]
    assert season_of(table.step, table.time_kind) == season
    assert table.notes == ()
    if table.time_kind == "date":
        assert str(table.time[0].astype("datetime64[ns]"))[:4] == "2012"


def test_load_row_order_counts_rows_and_has_no_step(tmp_path: Path) -> None:
    table = load_text(tmp_path, DAILY, time=None, exclude="date")
    assert table.time.tolist() == [0, 1, 2, 3] and table.step is None and table.time_label(2) == "3"


def test_load_parquet_timestamps_of_any_unit_agree(tmp_path: Path) -> None:
    days = [dt.datetime(2012, 1, day) for day in (1, 2, 3)]
    stamps = set()
    for kind in (pa.date32(), pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us", "UTC"), pa.timestamp("ns")):
        table = pa.table({"date": pa.array(days, pa.timestamp("s")).cast(kind), "cases": [1, 2, 3]})
        pa_parquet.write_table(table, tmp_path / "x.parquet")
        stamps.add(tuple(load(tmp_path / "x.parquet").time.tolist()))
    assert len(stamps) == 1


def test_week_number_counts_53_week_years() -> None:
    assert week_number("2009_1") - week_number("2008_53") == 1
    assert week_number("2008_53") - week_number("2008_52") == 1
    assert week_number("2007_1") - week_number("2006_52") == 1
    assert (
        week_number("2025_20") - week_number("2006_1")
        == (Week(2025, 20).startdate() - Week(2006, 1).startdate()).days // 7
    )


@pytest.mark.parametrize(
    ("stamps", "time", "expected"),
    [
        (["2006_52", "2006_53"], {"format": "mmwr-week"}, "row 2: '2006_53' is not an MMWR week; 2006 has the"),
        (["2006_1", "2006_0"], {"format": "mmwr-week"}, "'2006_0' is not an MMWR week"),
        (["2006_1", "week 2"], {"format": "mmwr-week"}, "write year_week, such as 2006_1"),
        (["2006_1", "2006_2"], {}, "'2006_1' in row 1 of column 'date' is not an ISO date; set data.time.format: mmwr"),
        (["2012-01-01", "31/01/2012"], {}, "'31/01/2012' in row 2 of column 'date' is not an ISO date; write it as "),
        (["2012-01-01", "2012-13-01"], {}, "'2012-13-01' in row 2"),
        (["2012-01-01", "2012-02-30"], {}, "'2012-02-30' in row 2"),
        (["2012-01-01", "9999-01-01"], {}, "'9999-01-01' in row 2 of column 'date' is not a date of the years 1678"),
        (["2012-01-01", "n/a"], {}, "the time column 'date' is blank in row 2; every row needs its time"),
        (["2012-01-01", ""], {}, "the time column 'date' is blank in row 2"),
        (["17", "18"], {}, "the time column 'date' holds numbers (17 in row 1); set data.time.format: epoch"),
        (["17", "late"], {"format": "epoch"}, "column 'date' holds text ('late' in row 2), but data.time.format"),
        (["1325376000000", "1325376060000"], {"format": "epoch"}, "which is no time in s since 1970"),
        (["18446744073709551615", "1"], {"format": "epoch", "unit": "ns"}, "is no time in ns since 1970"),
        (["1.5", "nan"], {"format": "epoch"}, "the time column 'date' is blank in row 2"),
    ],
)  # fmt: skip
def test_load_bad_time_is_one_sentence(tmp_path: Path, stamps: list[str], time: dict[str, str], expected: str) -> None:
    text = "date,cases\n" + "".join(f"{stamp},{row}\n" for row, stamp in enumerate(stamps))
    assert expected in refusal(tmp_path, text, time={"column": "date", **time})


def test_load_rows_out_of_order_are_sorted_inside_their_series_and_said(tmp_path: Path) -> None:
    text = "unique_id,ds,y\nB,2012-01-02,4\nA,2012-01-01,1\nB,2012-01-01,3\nA,2012-01-02,2\n"
    table = load_text(tmp_path, text, series="unique_id", time={"column": "ds"}, target="y")
    assert table.keys == (("B",), ("A",)) and table.key_names == ("unique_id",)
    assert table.values[:, 0].tolist() == [3, 4, 1, 2] and table.offsets.tolist() == [0, 2, 4]
    assert table.notes == ("the rows were not in the order of 'ds' in 1 of 2 series and were sorted by it",)
    assert table.series_name(1) == "unique_id=A" and table.file_rows.tolist() == [2, 0, 1, 3]


def test_load_two_rows_of_one_moment_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, DAILY + "2012-01-02,9,9,9\n")
    assert message == (
        "two rows stand for '2012-01-02' in column 'date' (row 2 and row 5); "
        "remove one, or name the columns that tell series apart in data.series"
    )
    text = "county,date,cases\nPima,2012-01-01,1\nYuma,2012-01-01,2\nYuma,2012-01-01,3\n"
    assert refusal(tmp_path, text, series="county") == (
        "the series county=Yuma has two rows for '2012-01-01' in column 'date' (row 2 and row 3); remove one of them"
    )
    assert load_text(tmp_path, text, series="county", time=None, exclude="date").offsets.tolist() == [0, 1, 3]


def test_load_gaps_in_time_are_noted(tmp_path: Path) -> None:
    table = load_text(tmp_path, DAILY + "2012-01-07,1,1,1\n2012-01-08,1,1,1\n")
    (note,) = table.notes
    assert note.startswith("1 step in time differs from the usual 1 d, the first between 2012-01-04 and 2012-01-07")


def test_load_blank_series_key_is_refused(tmp_path: Path) -> None:
    for blank in ("Pima,2012-01-01,1\n,2012-01-02,2\n", "1.5,2012-01-01,1\nnan,2012-01-02,2\n"):
        message = refusal(tmp_path, "county,date,cases\n" + blank, series="county")
        assert "column 'county' of data.series is blank in row 2" in message


def test_load_text_key_called_na_is_a_name(tmp_path: Path) -> None:
    text = "country,date,cases\nNA,2012-01-01,1\nDE,2012-01-02,2\n"
    assert load_text(tmp_path, text, series="country").keys == (("NA",), ("DE",))


# --- cells


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
        (DAILY + "2012-01-05,1,2,many\n", {}, 'the target \'cases\' holds text ("many" in row 5)'),
        (DAILY + "2012-01-05,inf,2,1\n", {}, "column 'temp' holds inf in row 5; a number must be finite"),
        (DAILY + "2012-01-05,1e300,2,1\n", {}, "column 'temp' holds 1e+300 in row 5"),
        (DAILY + "2012-01-05,1,,2\n", {}, "column 'wind' has 1 blank cell in row 5; set data.missing to forward_fill"),
        (DAILY + "2012-01-05,,,2\n2012-01-06,,3,3\n", {}, "'temp' has 2 blank cells, the first in row 5 (and there"),
        ("date,cases,x\n2012-01-01,1,\n2012-01-02,2,\n", {}, "column 'x' has no values at all; name it in data.exc"),
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


# --- missing cells

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


def test_load_blank_category_takes_the_nearest_earlier_value(tmp_path: Path) -> None:
    text = SKY + "2012-01-04,4,\n"
    assert "column 'sky' has 1 blank cell in row 4" in refusal(tmp_path, text, categories="sky")
    for policy in ("forward_fill", "interpolate"):
        table = load_text(tmp_path, text, categories="sky", missing=policy)
        assert table.values[3].tolist() == [4, 1, 0] and not table.peeks.any()


# --- regression

YEARS = "county,year,day,rain,cases\n" + "".join(
    f"{county},{year},{day},{day * year % 7},{len(county) * year}\n"
    for county in ("Pima", "La Paz")
    for year in (2006, 2007)
    for day in (3, 1, 2)
)


def load_years(folder: Path, text: str = YEARS, **keys: Any) -> Table:
    keys = {"task": "regression", "sequence": ["county", "year"], "time": {"column": "day", "format": "epoch"}} | keys
    return load_text(folder, text, **{"lookback": None} | keys)


def test_load_regression_gives_a_target_per_sequence(tmp_path: Path) -> None:
    table = load_years(tmp_path)
    assert table.features == ("rain",) and table.offsets.tolist() == [0, 3, 6, 9, 12]
    assert table.keys == (("Pima", "2006"), ("Pima", "2007"), ("La Paz", "2006"), ("La Paz", "2007"))
    assert table.targets.tolist() == [[8024], [8028], [12036], [12042]] and table.observed.all()
    assert table.values[:3, 0].tolist() == [2006 * day % 7 for day in (1, 2, 3)]
    assert "in 4 of 4 sequences and were sorted" in table.notes[0]


def test_load_regression_target_that_changes_is_refused(tmp_path: Path) -> None:
    text = YEARS.replace("La Paz,2006,2,1,12036", "La Paz,2006,2,1,5")
    with pytest.raises(DataError) as error:
        load_years(tmp_path, text)
    assert re.search(
        r"the target 'cases' changes within the sequence county=La Paz, year=2006 \(12036 in row 8, 5 in row 9\); "
        r"a regression has one target per sequence",
        one_sentence(error),
    )


def test_load_regression_sequence_without_target(tmp_path: Path) -> None:
    text = YEARS.replace(",8028\n", ",\n")
    with pytest.raises(DataError, match=r"'cases' is blank in 1 sequence, first in county=Pima, year=2007"):
        load_years(tmp_path, text)
    table = load_years(tmp_path, text, missing="drop")
    assert len(table.keys) == 3 and table.targets[:, 0].tolist() == [8024, 12036, 12042]
    assert "1 of 4 sequences have no target and were left out" in table.notes
    # A blank beside known values of the same sequence is no blank: the target is one number.
    assert load_years(tmp_path, YEARS.replace(",8028\n", ",\n", 1)).targets[1, 0] == 8028


def test_load_regression_dropped_sequence_takes_its_target_along(tmp_path: Path) -> None:
    text = "\n".join(
        line.rsplit(",", 2)[0] + ",," + line.rsplit(",", 1)[1] if line.startswith("Pima,2006") else line
        for line in YEARS.splitlines()
    )
    table = load_years(tmp_path, text, missing="drop")
    assert table.targets[:, 0].tolist() == [8028, 12036, 12042] and len(table.keys) == 3


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"target": "all"}, "'data.target: all' is for forecasts"),
        ({"features": ["rain", "cases"]}, "column 'cases' is both in 'data.target' and in 'data.features'"),
        ({"features": []}, "'data.features' is empty"),
        ({"exclude": "rain"}, "no column is left as an input"),
    ],
)
def test_load_regression_roles_that_cannot_be(tmp_path: Path, keys: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError) as error:
        load_years(tmp_path, **keys)
    assert expected in one_sentence(error)


# --- built-in and real data


def test_load_outbreak_keeps_the_conditional_mean_apart() -> None:
    keys = {"task": "regression", "sequence": ["county", "year"], "lookback": None, "time": {"column": "date"}}
    table = load(
        "sample:outbreak",
        sample={"counties": 3, "years": 2},
        categories=["weather_main", "weather_description"],
        **keys,
    )
    assert table.oracle is not None and table.oracle.shape == table.targets.shape == (6, 1)
    assert not any("expected" in name for name in table.features)
    assert (table.oracle > 0).all() and np.unique(table.oracle).size == 6
    with pytest.raises(DataError, match=r"'data\.features' names 'expected_cases', which is not a column"):
        load("sample:outbreak", sample={"counties": 3, "years": 2}, features=["expected_cases"], **keys)


def test_load_seattle_weather() -> None:
    table = load("sample:seattle-weather", target="temp_max", categories="weather")
    assert len(table.values) == 1461 and "weather=rain" in table.features and table.notes == ()


@needs_shared
@pytest.mark.parametrize("policy", ["interpolate", "forward_fill"])
def test_load_maricopa_by_mmwr_week(policy: str) -> None:
    path = SHARED / "maricopa_valley_fever_weekly.csv"
    time = {"column": "Date", "format": "mmwr-week"}
    with pytest.raises(
        DataError,
        match=r"'Daily AQI Value' has 16 blank cells, the first in row 996 \(and there are some in 1 other column\)",
    ):
        load(path, time=time, target="MARICOPA")
    table = load(path, time=time, target="MARICOPA", missing=policy)
    # 1011 weeks without a gap, the three 53-week years included; the blanks are the last 16 rows.
    assert table.values.shape == (1011, 28) and (np.diff(table.time) == 1).all() and table.step == 1
    assert table.time_label(0) == "2006_1" and table.time_label(1010) == "2025_20"
    assert len(table.notes) == 1 and "32 blank cells" in table.notes[0] and not table.peeks.any()
    column = table.features.index("Daily AQI Value")
    assert (table.values[995:, column] == table.values[994, column]).all() and table.observed.all()


@needs_shared
def test_load_etth1() -> None:
    table = load(SHARED / "ETTh1.csv", target="all")
    assert table.values.shape == (17420, 7) and table.target_names == table.features and table.notes == ()
    assert season_of(table.step, table.time_kind) == 24


def test_fingerprint_follows_values_names_and_time(tmp_path: Path) -> None:
    same, *others = [
        load_text(tmp_path, text).fingerprint
        for text in (DAILY, DAILY.replace("14\n", "15\n"), DAILY.replace("wind", "gust"), DAILY.replace("-04", "-05"))
    ]
    assert len({same, *others}) == 4 and load_text(tmp_path, DAILY).fingerprint == same
