"""One Arrow column as float64 numbers, category codes or text, or the sentence that says which cell forbids it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xlstm_tune.data.clock import cell, first_bad, plain, to_float
from xlstm_tune.data.csv_files import BLANKS
from xlstm_tune.data.read import Source
from xlstm_tune.data.roles import Roles
from xlstm_tune.errors import DataError

_COMMAS = re.compile(r"[+-]?[\d.]*(,\d+)+(\.\d*)?")
MAX_VALUES = 64
"""Of one category column; each becomes an input column."""
_ROUNDED = 0.01
"""Deviations by which float32 may move a cell."""
_HALF_STEP = 2.0**-24
"""Share of a number by which float32 may round it."""


def numbers(source: Source, name: str, target: bool) -> np.ndarray:
    """A column as float64 [R] in file order, NaN where blank; truths are 0 and 1.

    Text that spells numbers is read as such. Raises DataError for other text, dates, infinities, an empty column.
    """
    column = plain(source.table.column(name))
    kind = column.type
    if pa.types.is_string(kind):
        column = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.is_in(column, pa.array(BLANKS)), None, column)
        try:
            column = to_float(column)
        except pa.ArrowException:
            row = first_bad(column, to_float)
            text = cell(column, row)
            found = f'"{text}" in {source.where(row)}'
            if _COMMAS.fullmatch(text):
                words = "numbers are written with a decimal point and without commas"
                raise DataError(f"column '{name}' holds {found}; {words}") from None
            if target:
                raise DataError(f"the target '{name}' holds text ({found}); a target must be a number") from None
            raise DataError(
                f"column '{name}' holds text ({found}); name it in data.categories or data.exclude, or mend the cell"
            ) from None
    elif pa.types.is_null(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind) or _is_plain_number(kind):
        column = to_float(column)
    else:
        if pa.types.is_temporal(kind):
            what = f"times ({cell(column, 0)} in {source.where(0)})"
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            what = "bytes that are not UTF-8 text"
        else:
            what = f"{kind} values"
        if target:
            raise DataError(f"the target '{name}' holds {what}; a target must be a number")
        raise DataError(f"column '{name}' holds {what}, which cannot be an input; name it in data.exclude")
    cells: np.ndarray = column.to_numpy()
    if np.isnan(cells).all():
        if target:
            raise DataError(f"the target '{name}' has no values at all; name another column in data.target")
        raise DataError(f"column '{name}' has no values at all; name it in data.exclude")
    # Inputs are float32, so what overflows there counts as infinite.
    huge = np.abs(cells) > np.finfo(np.float32).max
    if huge.any():
        row = int(np.flatnonzero(huge)[0])
        raise DataError(
            f"column '{name}' holds {cells[row]:g} in {source.where(row)}; a number must be finite and fit into float32"
        )
    return cells


def _is_plain_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_rounded(cells: np.ndarray) -> bool:
    """Whether float32 moves one of the cells by a share of their deviation that matters, as it does 1.7e9 ± 20."""
    if cells.min() == cells.max():
        return False
    least = _ROUNDED * float(cells.std())
    if float(np.abs(cells).max()) * _HALF_STEP < least and least > np.finfo(np.float32).tiny:
        return False
    return bool(np.abs(cells.astype(np.float32) - cells).max() > least)


def category_codes(source: Source, name: str) -> tuple[np.ndarray, list[str]]:
    """Codes float64 [R] in file order, NaN where blank, and the values they stand for in sorted order.

    Truths in text are those of a column of truths, whatever else the text holds: True is `true`.
    """
    codes, texts = text_codes(source, name)
    values = [as_truth(text) for text in texts]
    used = sorted(set(values) - {""})
    if not used:
        raise DataError(f"column '{name}' has no values at all; name it in data.exclude")
    if len(used) > MAX_VALUES:
        raise DataError(
            f"column '{name}' has {len(used)} different values, too many for data.categories (at most {MAX_VALUES}); "
            f"group them or name it in data.exclude"
        )
    place = {value: position for position, value in enumerate(used)}
    rank = np.array([place.get(value, np.nan) for value in values], dtype=np.float64)
    return rank[codes], used


def as_truth(text: str) -> str:
    """`true` or `false` for any spelling of them; other text as it is."""
    return text.lower() if text.lower() in ("true", "false") else text


def text_codes(source: Source, name: str) -> tuple[np.ndarray, list[str]]:
    """Codes int64 [R] and the text of each; a blank cell is the empty text."""
    column = plain(source.table.column(name))
    try:
        text = pc.if_else(pc.is_null(column, nan_is_null=True), None, column).cast(pa.string())
    except pa.ArrowException:
        raise DataError(
            f"column '{name}' holds {column.type} values, which cannot name groups; "
            "name a column of text or whole numbers"
        ) from None
    text = pc.fill_null(pc.utf8_trim_whitespace(text), "")
    coded = text.combine_chunks().dictionary_encode()
    return coded.indices.to_numpy().astype(np.int64), coded.dictionary.to_pylist()


def column_of(feature: str, categories: Sequence[str]) -> str:
    """The column that an input was made of: `weather` of `weather=rain`; itself where it is no value of a category."""
    return next((name for name in categories if feature.startswith(f"{name}=")), feature)


@dataclass(frozen=True)
class Columns:
    """Input columns in table order: numbers as they are, categories as codes, both NaN where blank."""

    cells: dict[str, np.ndarray]
    vocabulary: dict[str, list[str]]

    @classmethod
    def read(cls, source: Source, order: np.ndarray, roles: Roles) -> Columns:
        """All inputs; `order` [R] gives the row of the file for each row of the table. Raises DataError."""
        cells: dict[str, np.ndarray] = {}
        vocabulary: dict[str, list[str]] = {}
        for name in roles.features:
            if name in roles.categories:
                codes, vocabulary[name] = category_codes(source, name)
                cells[name] = codes[order]
            else:
                cells[name] = numbers(source, name, name in roles.targets)[order]
        return cls(cells, vocabulary)

    def keep(self, mask: np.ndarray) -> Columns:
        """Only the rows of `mask`; values of a category that stand in none of them are gone."""
        cells = {name: column[mask] for name, column in self.cells.items()}
        vocabulary: dict[str, list[str]] = {}
        for name, values in self.vocabulary.items():
            known = ~np.isnan(cells[name])
            used, cells[name][known] = np.unique(cells[name][known], return_inverse=True)
            vocabulary[name] = [values[int(code)] for code in used]
        return Columns(cells, vocabulary)

    def exact(self, roles: Roles, names: Collection[str] | None) -> dict[str, np.ndarray]:
        """float64 [R] of the inputs of these names; None = of those that float32 would round too coarsely.

        A target is not among them: it is never rounded before it is standardised.
        """
        inputs = [name for name in roles.features if name not in self.vocabulary and name not in roles.targets]
        if names is None:
            names = [name for name in inputs if _is_rounded(self.cells[name])]
        return {name: self.cells[name] for name in inputs if name in names}

    def matrix(self, roles: Roles) -> tuple[np.ndarray, tuple[str, ...], tuple[int, ...]]:
        """[R, F] float32, the F names and which of them are one value of a category."""
        names: list[str] = []
        one_hot: list[int] = []
        for name in roles.features:
            values = self.vocabulary.get(name)
            if values is None:
                names.append(name)
            else:
                one_hot += range(len(names), len(names) + len(values))
                names += [f"{name}={value}" for value in values]
        clash = {name for name in names if names.count(name) > 1}
        if clash:
            raise DataError(f"column '{min(clash)}' is named like a value of a category; rename it")
        matrix = np.zeros((len(next(iter(self.cells.values()))), len(names)), dtype=np.float32)
        column = 0
        for name in roles.features:
            values = self.vocabulary.get(name)
            if values is None:
                matrix[:, column] = self.cells[name]
                column += 1
            else:
                matrix[np.arange(len(matrix)), column + self.cells[name].astype(np.int64)] = 1
                column += len(values)
        return matrix, tuple(names), tuple(one_hot)
