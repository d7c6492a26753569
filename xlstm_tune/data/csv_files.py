"""CSV files as Arrow tables."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.fs as pa_fs

from xlstm_tune.errors import DataError, first_line

BLANKS = (
    "", "NA", "N/A", "n/a", "na", "#N/A", "#NA", "<NA>", "NaN", "nan", "-nan", "NULL", "null", "None", "none", "-", "?",
    ".",
)  # fmt: skip
"""Spellings of a blank cell in a column of numbers."""
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_LINE_END = re.compile(rb"\r\n|\r|\n")
_TABS = (".tsv", ".tsv.gz", ".tsv.txt")
"""How the names of files with tabs between cells end."""


@dataclass(frozen=True)
class File:
    """Where one file lies, and what messages call it."""

    system: pa_fs.FileSystem
    path: str
    name: str
    partitions: tuple[tuple[str, str], ...] = ()


def read_csv(file: File) -> pa.Table:
    """A file of comma- or tab-separated values, typed as Arrow finds them; see `labels`. Raises DataError."""
    delimiter = _delimiter(file)
    # Blanks become nulls in columns of numbers, dates and truths; in text "NA" may well be a name.
    convert = pa_csv.ConvertOptions(null_values=list(BLANKS), strings_can_be_null=False)
    parse = pa_csv.ParseOptions(delimiter=delimiter)
    try:
        with file.system.open_input_stream(file.path) as stream:
            table = pa_csv.read_csv(stream, parse_options=parse, convert_options=convert)
        if table.num_columns == 1:
            _check_separator(file, delimiter)
            table = _single(file, convert)
        return _with_zones(_without_empty(table), file)
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            with file.system.open_input_stream(file.path) as stream:
                text = stream.read(1 << 16)
            raise DataError(f"{file.name} {'has a header but no rows' if text.strip() else 'is empty'}") from None
        if "columns, got" not in str(error):
            raise
    ragged: list[pa_csv.InvalidRow] = []

    def note(row: pa_csv.InvalidRow) -> str:
        ragged.append(row)
        return "error" if row.number is None else "skip"

    # Arrow cannot hand over a row that is no text.
    with file.system.open_input_stream(file.path) as stream:
        for _ in codecs.iterdecode(iter(lambda: stream.read(1 << 20), b""), "utf-8"):
            pass
    # Only a reader of one thread knows the line, so the file is read again for the message.
    parse = pa_csv.ParseOptions(delimiter=delimiter, invalid_row_handler=note)
    with file.system.open_input_stream(file.path) as stream:
        kept = pa_csv.read_csv(stream, pa_csv.ReadOptions(use_threads=False), parse, convert)
    _check_separator(file, delimiter)
    first = ragged[0]
    quoted = first.text if len(first.text) <= 60 else first.text[:57] + "..."
    remedy = "mend that row"
    if first.actual_columns > first.expected_columns and len(ragged) > kept.num_rows:
        remedy = "remove what stands above the column names, name every column, or write decimals with a point"
    raise DataError(
        f"row {first.number - 1} of {file.name} has {first.actual_columns} cells, but the header has "
        f"{first.expected_columns} ({quoted!r}); {remedy}"
    )


def _without_empty(table: pa.Table) -> pa.Table:
    """The table without nameless columns that hold nothing, which commas at the end of each line make."""
    names, rows = table.column_names, table.num_rows
    empty = [at for at, name in enumerate(names) if not name and table.column(at).null_count == rows]
    if not rows and len(empty) == 1:  # other files may have cells there
        return table
    if len(names) - len(empty) < 2:  # a file of one column is read in a way of its own
        empty = empty[1:]
    return table.select([at for at in range(len(names)) if at not in empty])


def _check_separator(file: File, delimiter: str) -> None:
    """Refuse a file whose header has more of another separator than of its own."""
    with file.system.open_input_stream(file.path) as stream:
        head = stream.read(1 << 16)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as Excel writes its Unicode text
        raise DataError(f"{file.name} is not UTF-8 text; save it as UTF-8")
    lines = head.decode("utf-8", "replace").splitlines() or [""]
    found = max(_SEPARATORS, key=lines[0].count)
    if lines[0].count(found) <= lines[0].count(delimiter):
        return
    mine, ending = ("tabs", ".csv") if delimiter == "\t" else ("commas", ".tsv")
    remedy = f"save it with {mine}" + (" and decimal points" if delimiter == "," else "")
    if found in ",\t":
        remedy += f", or name it {ending}"
    raise DataError(f"{file.name} seems to separate its cells by {_SEPARATORS[found]}, not by {mine}; {remedy}")


def _with_zones(table: pa.Table, file: File) -> pa.Table:
    """The table with times in a zone as text: Arrow turned them into UTC and forgot how they were written."""
    zoned = [field.name for field in table.schema if pa.types.is_timestamp(field.type) and field.type.tz]
    if not zoned or len(set(table.column_names)) < table.num_columns:
        return table
    text = texts_of(file, zoned, table.num_columns == 1)
    for name in zoned:
        table = table.set_column(table.column_names.index(name), name, text.column(name))
    return table


def _single(file: File, convert: pa_csv.ConvertOptions) -> pa.Table:
    """A file of one column, where an empty line is a blank cell, apart from those at its beginning and its end."""
    before, behind = _empty_lines(file)
    options = pa_csv.ReadOptions(skip_rows=before)
    parse = pa_csv.ParseOptions(delimiter=_delimiter(file), ignore_empty_lines=False)
    with file.system.open_input_stream(file.path) as stream:
        table = pa_csv.read_csv(stream, options, parse, convert)
    return table.slice(0, table.num_rows - behind)


def _empty_lines(file: File) -> tuple[int, int]:
    """How many lines without anything a file has before its first line that has something, and behind its last."""
    begin, end, begun = b"", b"", False
    with file.system.open_input_stream(file.path) as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            if not begun:
                text = block.removeprefix(codecs.BOM_UTF8).lstrip(b"\r\n")
                begin, begun = begin + block[: len(block) - len(text)], bool(text)
            bare = block.rstrip(b"\r\n")
            end = block[len(bare) :] if bare else end + block
    # The first at the end is that of the last line that has something.
    return len(_LINE_END.findall(begin)), max(0, len(_LINE_END.findall(end)) - 1)


def texts_of(file: File, names: list[str], single: bool) -> pa.Table:
    """Columns of a file as they are written. single: whether it has no other."""
    convert = pa_csv.ConvertOptions(include_columns=names, column_types=dict.fromkeys(names, pa.string()))
    parse = pa_csv.ParseOptions(delimiter=_delimiter(file))
    try:
        if single:
            return _single(file, convert)
        with file.system.open_input_stream(file.path) as stream:
            return pa_csv.read_csv(stream, parse_options=parse, convert_options=convert)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file.name} cannot be read: {first_line(error)}") from None


def _delimiter(file: File) -> str:
    return "\t" if file.path.lower().endswith(_TABS) else ","
