"""Any table gives numbers or one clear sentence: CSV, Parquet and Arrow, whole and damaged."""

from __future__ import annotations

import datetime
import decimal
import io
import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from fuzzing import check_sentence, examples, texts
from hypothesis import event, given
from hypothesis import strategies as st

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.errors import UserError
from xlstm_tune.models.baselines import baselines
from xlstm_tune.search.plan import sample_groups

NAMES = [
    "day", "y", "x", "s", "", " ", "y ", "Y", "é", "日", "a b", "y=1", "x=a", "year_sin", "all", "time", "\ufeffday",
    "1",
]  # fmt: skip
ENDINGS = [
    ".csv", ".csv", ".tsv", ".txt", ".csv.gz", ".parquet", ".pq", ".arrow", ".arrows", ".feather", ".pkl", ".CSV", "",
]  # fmt: skip
CELLS = [
    "", "NA", "nan", "inf", "-inf", "1e39", "1e400", "-0", "1e-320", "1_000", "1,5", "0x1F", "9" * 30, "true", "False",
    "many", "2020-01-01", "2020-01-01T00:00:00Z", "2020-01-01 00:00:00+99:99", "1600-01-01", "9999-12-31", "2020_1",
    "2020_54", "9999_52", "0001_1", "12:30", '"', '"a', 'a"b"', "'", "\x00", "\r", "\n", "é", "\u2028", "🦜",
    "\x1b[31m", " 1 ", "1;2",
]  # fmt: skip
ROWS = 24
EPOCH = datetime.date(2020, 1, 1)

names = st.sampled_from(NAMES[:4]) | st.sampled_from(NAMES) | st.text(max_size=5)
cells = st.sampled_from(CELLS) | st.integers(0, 99).map(str) | st.text(max_size=5)


@st.composite
def csv_files(draw: st.DrawFn) -> bytes:
    """A daily table as text, with columns, cells and bytes that do not belong in it."""
    rows = draw(st.sampled_from([ROWS] * 9 + [0, 1, 2, 5]))
    columns: dict[str, list[str]] = {
        "day": [str(EPOCH + datetime.timedelta(row)) for row in range(rows)],
        "y": [str(row * 37 % 101) for row in range(rows)],
        "s": ["ab"[row % 2] for row in range(rows)],
    }
    for name in ["x", *draw(st.lists(names, max_size=1))]:
        few = draw(st.lists(cells, min_size=1, max_size=3) | st.just(["1", "2", "5"]))
        columns[name] = [few[row % len(few)] for row in range(rows)]
    lines = [list(columns), *([column[row] for column in columns.values()] for row in range(rows))]
    for _ in range(draw(st.integers(0, 3))):
        line = draw(st.sampled_from(lines))
        place = draw(st.integers(0, len(line) - 1)) if line else 0
        what = draw(st.integers(0, 9))
        if what < 7 and line:
            line[place] = draw(cells)
        elif what == 7:
            line.insert(place, draw(cells))
        elif what == 8 and line:
            line.pop(place)
        else:
            lines.append(line)
    end = draw(st.sampled_from(["\n"] * 4 + ["\r\n", "\r"]))
    comma = draw(st.sampled_from([","] * 9 + ["\t", ";"]))
    text = end.join(comma.join(line) for line in lines) + draw(st.sampled_from(["", end]))
    encoding = draw(st.sampled_from(["utf-8"] * 9 + ["utf-8-sig", "latin-1", "utf-16", "utf-32"]))
    return text.encode(encoding, "replace")


def _times(rows: int) -> list[int]:
    return [row * 86_400 for row in range(rows)]


def _dictionary(rows: int, values: pa.Array) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([row % len(values) for row in range(rows)], pa.int32()), values)


COLUMNS: dict[str, Callable[[int], pa.Array]] = {
    "int8": lambda n: pa.array([row % 100 for row in range(n)], pa.int8()),
    "uint64": lambda n: pa.array([2**64 - 1 - row for row in range(n)], pa.uint64()),
    "int64": lambda n: pa.array([2**62 + row for row in range(n)], pa.int64()),
    "half": lambda n: pa.array(np.arange(n, dtype=np.float16)),
    "float": lambda n: pa.array([row / 7 for row in range(n)], pa.float32()),
    "odd numbers": lambda n: pa.array([[1e300, -1e300, np.inf, np.nan, None, 5e-324][row % 6] for row in range(n)]),
    "tiny": lambda n: pa.array([5e-324 * row for row in range(n)]),
    "large": lambda n: pa.array([3e38 * (-1) ** row for row in range(n)]),
    "constant": lambda n: pa.array([3.0] * n),
    "null": lambda n: pa.nulls(n),
    "null numbers": lambda n: pa.nulls(n, pa.float64()),
    "bool": lambda n: pa.array([row % 2 == 0 for row in range(n)]),
    "text": lambda n: pa.array([str(row) for row in range(n)]),
    "words": lambda n: pa.array(["abc"[row % 3] for row in range(n)]),
    "many words": lambda n: pa.array([f"word {row}" for row in range(n)]),
    "large text": lambda n: pa.array([str(row) for row in range(n)], pa.large_string()),
    "text view": lambda n: pa.array([str(row) for row in range(n)], pa.string_view()),
    "binary": lambda n: pa.array([b"\xff%d" % row for row in range(n)]),
    "binary view": lambda n: pa.array([b"\xff"] * n, pa.binary_view()),
    "fixed binary": lambda n: pa.array([b"ab"] * n, pa.binary(2)),
    "decimal": lambda n: pa.array([decimal.Decimal(row) / 4 for row in range(n)], pa.decimal128(38, 2)),
    "decimal256": lambda n: pa.array([decimal.Decimal(10) ** 60 + row for row in range(n)], pa.decimal256(76, 0)),
    "date32": lambda n: pa.array([EPOCH + datetime.timedelta(row) for row in range(n)]),
    "date64": lambda n: pa.array([1000 * second for second in _times(n)], pa.int64()).cast(pa.date64()),
    "date32 far": lambda n: pa.array([2**31 - 1 - row for row in range(n)], pa.int32()).cast(pa.date32()),
    "timestamp": lambda n: pa.array(_times(n), pa.int64()).cast(pa.timestamp("s")),
    "timestamp far": lambda n: pa.array([2**62 + row for row in range(n)], pa.int64()).cast(pa.timestamp("s")),
    "timestamp ns": lambda n: pa.array([2**62 + row for row in range(n)], pa.int64()).cast(pa.timestamp("ns")),
    "timestamp zone": lambda n: pa.array(_times(n), pa.int64()).cast(pa.timestamp("us", "Europe/Paris")),
    "timestamp no zone": lambda n: pa.array(_times(n), pa.int64()).cast(pa.timestamp("us", "Mars/Phobos")),
    "one moment": lambda n: pa.array([0] * n, pa.int64()).cast(pa.timestamp("us", "Mars/Phobos")),
    "backwards": lambda n: pa.array([n - row for row in range(n)], pa.int32()).cast(pa.date32()),
    "time": lambda n: pa.array(range(n), pa.int32()).cast(pa.time32("s")),
    "duration": lambda n: pa.array(range(n), pa.int64()).cast(pa.duration("ns")),
    "interval": lambda n: pa.array([pa.MonthDayNano([1, row, 0]) for row in range(n)], pa.month_day_nano_interval()),
    "list": lambda n: pa.array([[row] for row in range(n)], pa.list_(pa.int64())),
    "fixed list": lambda n: pa.array([[row, 1] for row in range(n)], pa.list_(pa.int64(), 2)),
    "struct": lambda n: pa.array([{"a": row} for row in range(n)], pa.struct([("a", pa.int64())])),
    "map": lambda n: pa.array([[("a", row)] for row in range(n)], pa.map_(pa.string(), pa.int64())),
    "dictionary": lambda n: _dictionary(n, pa.array(["a", "b", None])),
    "dictionary of numbers": lambda n: _dictionary(n, pa.array([1.5, 2.5])),
    "dictionary of lists": lambda n: _dictionary(n, pa.array([[1], [2]])),
    "dictionary of nulls": lambda n: _dictionary(n, pa.nulls(2)),
    "runs": lambda n: pa.RunEndEncodedArray.from_arrays([n], [1.5]) if n else pa.nulls(0),
    "extension": lambda n: pa.array([b"0123456789abcdef"] * n, pa.uuid()),
    "bad text": lambda n: pa.array([b"\xff"] * n, pa.binary()).view(pa.string()),
    "weeks": lambda n: pa.array([f"{2020 + row // 52}_{row % 52 + 1}" for row in range(n)]),
    "last weeks": lambda n: pa.array([f"9999_{row % 52 + 1}" for row in range(n)]),
}  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """Columns of any types that Arrow has, under the names that the search file asks for."""
    rows = draw(st.sampled_from([0, 1, ROWS, ROWS, ROWS, ROWS]))
    made: dict[str, pa.Array] = {
        "day": COLUMNS["date32"](rows),
        "y": COLUMNS["int8"](rows),
        "s": COLUMNS["words"](rows),
    }
    for name in ["x", *draw(st.lists(names, max_size=1))]:
        made[name] = COLUMNS[draw(st.sampled_from(sorted(COLUMNS)))](rows)
    arrays = list(made.values())
    twice = draw(st.integers(0, 9)) == 0
    return pa.table([*arrays, *arrays[: int(twice)]], names=[*made, *list(made)[: int(twice)]])


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """The `data` section, for the columns that the tables have."""

    def rarely(choices: Sequence[Any]) -> Any:
        return draw(st.sampled_from([None] * 3 * len(choices) + list(choices)))

    given: dict[str, Any] = {
        "lookback": draw(st.sampled_from([3, 3, 3, 1, 30])),
        "target": rarely(["x", "all", "day", ["y", "x"]]) or "y",
        "features": draw(st.sampled_from(["x", "x", "y", "all", ["x", "s"]])),
        "missing": draw(st.sampled_from(["error", "forward_fill", "interpolate", "drop"])),
    }
    if draw(st.integers(0, 3)):
        given["time"] = {"column": rarely(["x"]) or "day", "unit": draw(st.sampled_from(["s", "ms", "ns"]))}
        given["time"]["format"] = rarely(["iso", "epoch", "mmwr-week", "iso-week"]) or "auto"
    if draw(st.integers(0, 2)) == 0:
        if draw(st.booleans()):
            given |= {"task": "regression", "sequence": draw(st.sampled_from(["s", "x", ["s", "x"]]))}
        else:
            given["series"] = draw(st.sampled_from(["s", "x", "day"]))
        given["static"] = rarely(["x", "s"]) or []
    given["categories"] = [name for name in ("s", "x") if draw(st.integers(0, 2)) == 0 and name in given["features"]]
    if cycle := rarely(["year", "week", "day"]):
        given["calendar"] = [cycle]
    if by := rarely(["s", "x", ["time", "s"]]):
        given["split"] = {"by": by}
    if "sequence" in given and (order := rarely(["s", "x"])):
        given.setdefault("split", {})["order"] = order
    if size := rarely([0.3, 1, 3, "2020-01-10", "2020_10", "many"]):
        given.setdefault("split", {})[draw(st.sampled_from(["train", "validation", "test"]))] = size
    return given


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each example puts its files in a folder of its own."""
    return tmp_path_factory.mktemp("table")


_number = itertools.count()


def read(folder: Path, files: dict[str, bytes], source: str, section: dict[str, Any]) -> None:
    """What a search does with its data before it starts."""
    place = folder / str(next(_number))
    place.mkdir()
    for name, content in files.items():
        (place / name).write_bytes(content)
    try:
        config = DataConfig.parse(section | {"source": str(place / source) if source else str(place)}, "data")
        table = load_table(config)
        event("loaded")
        data = prepare(table, config)
        event("prepared")
        baselines(data, sample_groups(table, data))
        assert np.isfinite(data.target_std).all() and data.target_std.min() > 0
    except UserError as error:
        check_sentence(error)
    finally:
        shutil.rmtree(place)


def parquet(table: pa.Table) -> bytes | None:
    """As a file; None for types that Parquet does not have."""
    sink = io.BytesIO()
    try:
        pa_parquet.write_table(table, sink)
    except (pa.ArrowException, ValueError):
        return None
    return sink.getvalue()


def arrow(table: pa.Table, stream: bool = False) -> bytes:
    """As a file of Arrow's own format."""
    sink = io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Cut short, with bytes changed, or with a part of it doubled."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(0, 3))):
        if changed:
            # The ends of these files say where everything else lies.
            place = draw(st.integers(0, len(changed) - 1) | st.integers(max(0, len(changed) - 300), len(changed) - 1))
            changed[place] = draw(st.integers(0, 255))
    cut = draw(st.integers(0, 9))
    if cut == 0:
        del changed[draw(st.integers(0, len(changed))) :]
    elif cut == 1:
        changed += changed[: draw(st.integers(0, len(changed)))]
    return bytes(changed)


@pytest.mark.slow
@given(content=csv_files(), ending=st.sampled_from(ENDINGS[:3] * 3 + ENDINGS), section=configs())
@examples(200)
def test_any_csv_gives_numbers_or_a_sentence(
    folder: Path, content: bytes, ending: str, section: dict[str, Any]
) -> None:
    read(folder, {f"table{ending}": content}, f"table{ending}", section)


@given(table=tables(), section=configs(), kind=st.sampled_from(["parquet", "arrow", "arrows"]))
@examples(200)
def test_any_types_give_numbers_or_a_sentence(
    folder: Path, table: pa.Table, section: dict[str, Any], kind: str
) -> None:
    content = parquet(table) if kind == "parquet" else arrow(table, kind == "arrows")
    if content is not None:
        read(folder, {f"table.{kind}": content}, f"table.{kind}", section)


@given(
    data=st.data(),
    table=tables(),
    section=configs(),
    kind=st.sampled_from(["parquet", "arrow", "arrows"]),
    ending=st.sampled_from([*ENDINGS, None, None]),
)
@examples(200)
def test_damaged_files_give_numbers_or_a_sentence(
    folder: Path, data: st.DataObject, table: pa.Table, section: dict[str, Any], kind: str, ending: str | None
) -> None:
    content = parquet(table) if kind == "parquet" else arrow(table, kind == "arrows")
    if content is not None:
        name = f"table.{kind}" if ending is None else f"table{ending}"
        read(folder, {name: data.draw(damaged(content))}, name, section)


@given(
    contents=st.lists(csv_files() | tables().map(arrow), max_size=3),
    ending=st.sampled_from([".csv", ".arrow"]),
    source=st.sampled_from(
        ["", "*", "*.csv", "**/*", "[", "a[0].csv", "none*", "\x00", "\ud800", "?", "a" * 300, "~", "0.csv/x"]
    )
    | texts,
    section=configs(),
)
@examples(200)
def test_any_source_gives_numbers_or_a_sentence(
    folder: Path, contents: list[bytes], ending: str, source: str, section: dict[str, Any]
) -> None:
    if not source.startswith("/"):
        read(folder, {f"{number}{ending}": content for number, content in enumerate(contents)}, source, section)
