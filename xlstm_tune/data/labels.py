"""Columns of names in CSV files, such as series and categories, keep the texts that Arrow's numbers and truths lose."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import pyarrow as pa
import pyarrow.compute as pc

from xlstm_tune.data.config import CSV
from xlstm_tune.data.csv_files import File, texts_of
from xlstm_tune.errors import DataError

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
"""Numbers as files have them."""
_WHOLE = re.compile(r"-?\d+(\.0*)?")
_ZEROS = re.compile(r"^(-?\d+)\.(0*)$")


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
    texts = texts_of(file, mine, table.num_columns == 1)
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
    """Make names of what a column's `texts`, of `_kept`, are as numbers with a point or an exponent. Texts that lose
    nothing are taken out. Raises DataError where two that say more than each other's zeros are one number."""
    pointed = [at for at, kept in enumerate(texts) if name in kept and _is_pointed(tables[at], name)]
    if not pointed:
        return
    written = _Written.of(name, tables, texts)
    seen: dict[Decimal, str] = {}
    for at in pointed:
        column, made = texts[at][name], []
        distinct = pc.unique(column).drop_null()
        for text in distinct.to_pylist():
            other = seen.setdefault(exact(text), text)
            if _without_zeros(other) != _without_zeros(text):
                raise DataError(
                    f"'{other}' and '{text}' in column '{name}' of {files[at].name} are the same number, so it is "
                    "unclear whether they are one name; write ids that are not numbers, such as with a letter before "
                    "them"
                )
            made.append(written.name_of(text))
        column = pc.take(pa.array(made, pa.string()), pc.index_in(column, distinct))
        if column.equals(tables[at].column(name).cast(pa.string())):
            del texts[at][name]
        else:
            texts[at][name] = column


@dataclass(frozen=True)
class _Written:
    """How all files together write the numbers of a column of names."""

    fixed: dict[Decimal, str]
    """The names of those that a file has without their text."""
    ways: dict[Decimal, set[str]]
    """The texts of the others."""
    whole: bool
    """Whether all are whole, apart from what files of text alone have."""

    @classmethod
    def of(cls, name: str, tables: Sequence[pa.Table], texts: Sequence[dict[str, pa.ChunkedArray]]) -> _Written:
        """texts: as `_name_numbers` has them."""
        fixed: dict[Decimal, str] = {}
        ways: dict[Decimal, set[str]] = {}
        whole = True
        for table, kept in zip(tables, texts, strict=True):
            if name not in table.column_names:
                continue
            kind = table.schema.field(name).type
            if _is_number(kind) and name not in kept:
                fixed |= {exact(text): text for text in _numbers(table.column(name).cast(pa.string()))}
            elif _is_number(kind) or _is_text(kind):
                for text in _numbers(kept.get(name, table.column(name))):
                    ways.setdefault(exact(text), set()).add(text)
                    whole &= not _is_pointed(table, name) or bool(_WHOLE.fullmatch(text))
        return cls(fixed, ways, whole and all(_WHOLE.fullmatch(text) for text in fixed.values()))

    def name_of(self, text: str) -> str:
        """A number that another file has without its text goes by the name that it has there. Else the `.0` that
        software adds to whole numbers goes. Two zeros and more go where all numbers are whole, or where this one is
        also written in another way: beside 250.01 there is a name 250.00, but 5 and 5.00 are one."""
        number, ends = exact(text), _ZEROS.fullmatch(text)
        if number in self.fixed:
            return self.fixed[number]
        if ends is not None and (self.whole or len(ends[2]) < 2 or len(self.ways[number]) > 1):
            return ends[1]
        return text


def _is_pointed(table: pa.Table, name: str) -> bool:
    """Whether Arrow found numbers with a point or an exponent there."""
    return bool(pa.types.is_floating(table.schema.field(name).type))


def _without_zeros(text: str) -> str:
    return _ZEROS.sub(r"\1", text)


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
