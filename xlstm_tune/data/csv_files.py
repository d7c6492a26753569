"""CSV files as Arrow tables, and the columns of names among them, which keep the texts that numbers and truths lose."""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import pyarrow as pa
import pyarrow.compute as pc
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
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
"""Numbers as files have them."""
_WHOLE = re.compile(r"-?\d+(\.0*)?")
_ZEROS = re.compile(r"^(-?\d+)\.(0*)$")
CSV = (".csv", ".csv.gz", ".csv.bz2", ".csv.zst", ".tsv", ".tsv.gz", ".txt")
"""How the names of such files end."""
_TABS = (".tsv", ".tsv.gz", ".tsv.txt")
"""And of those with tabs between cells."""


@dataclass(frozen=True)
class File:
    """Where one file lies, and what messages call it."""

    system: pa_fs.FileSystem
    path: str
    name: str
    partitions: tuple[tuple[str, str], ...] = ()


def read_csv(file: File) -> pa.Table:
    """A file of comma- or tab-separated values, typed as Arrow finds them; see `with_labels`. Raises DataError."""
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


def with_labels(tables: Sequence[pa.Table], files: Sequence[File], labels: Sequence[str]) -> list[pa.Table]:
    """The tables with the columns of names in CSV files as they are written, where what Arrow found lost something.

    Digits that begin with a zero stay text, also those of base 16 such as 0x1F, and so do numbers with a point or an
    exponent that would be written in another way, such as 008.45, 250.10 and 1E5, though not whole ones such as 4001.0.
    So do truths where another file has other texts, and spellings of a blank, such as NA and none, where no file has
    anything but texts beside them. Raises DataError for two names that are one number.
    """
    names = list(dict.fromkeys(labels))
    worded = {name for name in names if _are_words(name, tables)}
    texts = [
        _kept(table, file, names, worded) if file.path.lower().endswith(CSV) else {}
        for table, file in zip(tables, files, strict=True)
    ]
    for name in names:
        _name_numbers(name, tables, files, texts)
    made = []
    for table, columns in zip(tables, texts, strict=True):
        for name, column in columns.items():
            table = table.set_column(table.column_names.index(name), name, column)
        made.append(table)
    return made


def _are_words(name: str, tables: Sequence[pa.Table]) -> bool:
    """Whether a column is text in one of the tables, or says nothing of what it is in any."""
    kinds = {table.schema.field(name).type for table in tables if table.num_rows and name in table.column_names}
    kinds = {kind for kind in kinds if not pa.types.is_null(kind)}
    return not kinds or any(_is_text(kind) for kind in kinds)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _kept(table: pa.Table, file: File, names: Sequence[str], worded: Collection[str]) -> dict[str, pa.ChunkedArray]:
    """The texts of one table's columns that may lose something, by name. worded: of `_are_words`."""
    kinds = {name: table.schema.field(name).type for name in names if name in table.column_names}
    mine = [name for name, kind in kinds.items() if _is_number(kind)]
    mine += [name for name, kind in kinds.items() if name in worded and (pa.types.is_null(kind) or kind == pa.bool_())]
    if not mine:
        return {}
    texts = _texts(file, mine, table.num_columns == 1)
    kept = {}
    for name in mine:
        kind, column = kinds[name], texts.column(name)
        # Every cell of a column of nulls is a spelling of a blank, of which the empty one alone is no name.
        empty = pc.equal(pc.utf8_trim_whitespace(column), "")
        found = table.column(name)
        column = pc.if_else(empty if pa.types.is_null(kind) else found.is_null(nan_is_null=True), None, column)
        if pa.types.is_floating(kind):
            column = pc.utf8_trim_whitespace(column)
        if not pa.types.is_integer(kind) or padded(column):
            kept[name] = column
    return kept


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _name_numbers(
    name: str, tables: Sequence[pa.Table], files: Sequence[File], texts: Sequence[dict[str, pa.ChunkedArray]]
) -> None:
    """Make names of what a column's `texts`, of `_kept`, are as numbers with a point or an exponent.

    A number that another file has without its text goes by the name that it has there. Else the `.0` that software adds
    to whole numbers goes. Two zeros and more go where all numbers are whole, or where this one is also written in
    another way: beside 250.01 there is a name 250.00, but 5 and 5.00 are one. Texts that lose nothing are taken out.
    Raises DataError where two of them are one number otherwise.
    """
    pointed = [
        at for at, kept in enumerate(texts) if name in kept and pa.types.is_floating(tables[at].schema.field(name).type)
    ]
    if not pointed:
        return
    fixed: dict[Decimal, str] = {}
    ways: dict[Decimal, set[str]] = {}
    whole = True
    for at, table in enumerate(tables):
        if name not in table.column_names:
            continue
        kind, column = table.schema.field(name).type, texts[at].get(name, table.column(name))
        if _is_number(kind) and name not in texts[at]:
            fixed |= {exact(text): text for text in _numbers(column.cast(pa.string()))}
        elif _is_number(kind) or _is_text(kind):
            for text in _numbers(column):
                ways.setdefault(exact(text), set()).add(text)
                whole &= at not in pointed or bool(_WHOLE.fullmatch(text))
    whole &= all(_WHOLE.fullmatch(text) for text in fixed.values())
    seen: dict[Decimal, str] = {}
    for at in pointed:
        column, made = texts[at][name], []
        written = pc.unique(column).drop_null()
        for text in written.to_pylist():
            number, ends = exact(text), _ZEROS.fullmatch(text)
            other = seen.setdefault(number, text)
            if _ZEROS.sub(r"\1", other) != _ZEROS.sub(r"\1", text):
                raise DataError(
                    f"'{other}' and '{text}' in column '{name}' of {files[at].name} are the same number, so it is "
                    "unclear whether they are one name; write ids that are not numbers, such as with a letter before "
                    "them"
                )
            if ends is not None and (whole or len(ends[2]) < 2 or len(ways[number]) > 1):
                text = ends[1]
            made.append(fixed.get(number, text))
        column = pc.take(pa.array(made, pa.string()), pc.index_in(column, written))
        if column.equals(tables[at].column(name).cast(pa.string())):
            del texts[at][name]
        else:
            texts[at][name] = column


def _numbers(texts: pa.ChunkedArray) -> list[str]:
    """The texts among them that are numbers, each once."""
    found = (text.strip() for text in pc.unique(texts).to_pylist() if text is not None)
    return [text for text in found if NUMBER.fullmatch(text)]


def exact(text: str) -> Decimal:
    """The number that a text is, with all its digits."""
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of a size that Decimal does not know
        return Decimal(float(text))


def padded(texts: pa.Array | pa.ChunkedArray) -> bool:
    """Whether one of them is digits that begin with a zero, or a number of base 16 such as 0x1F: its text gets lost."""
    return bool(pc.any(pc.match_substring_regex(texts, r"^\s*-?0[\dxX]")).as_py())


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
    text = _texts(file, zoned, table.num_columns == 1)
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


def _texts(file: File, names: list[str], single: bool) -> pa.Table:
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
