"""Names that were numbers, such as 04001 and 250.10, and lost their zeros on the way here, or on that to the search."""

from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc

from xlstm_tune.data.clock import plain
from xlstm_tune.data.labels import NUMBER, exact
from xlstm_tune.data.read import Source
from xlstm_tune.predict.champion import Champion

_DIGITS = re.compile(r"-?[1-9]\d{0,17}")
"""Whole numbers without zeros before them, which are what they were; one of 17 digits and more is not its neighbour."""


def with_zeros(champion: Champion, source: Source) -> Source:
    """The table with the series and categories of the search again where a column has them as numbers.

    What reads 04001 as 4001 and 250.10 as 250.1, as pandas does of a CSV file, would else make of each a name that the
    model never saw. Other numbers stay, also those that stand for two names of the search. Earlier programs read
    250.10 as 250.1 themselves: where a search did, texts are its numbers.
    """
    table = source.table
    kinds = {column["name"]: column["type"] for column in champion.about["serving"]["inputs"]}
    for name in champion.data.labels:
        if name not in table.column_names:
            continue
        column, names = plain(table.column(name)), _known(champion, name)
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            back = _names_of_numbers(column, names)
        elif pa.types.is_string(column.type) and kinds.get(name) == "double":
            back = _numbers_of_texts(column, names)
        else:
            continue
        if back is not None:
            table = table.set_column(table.column_names.index(name), name, back)
    return replace(source, table=table)


def _names_of_numbers(column: pa.ChunkedArray, names: set[str]) -> pa.Array | None:
    """A column of numbers as the names that they stand for; None where it has no such name."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)  # pandas has whole numbers as floats beside a blank
    spelled = column.cast(pa.string())
    if names.issuperset(pc.unique(spelled).drop_null().to_pylist()):
        return None
    texts = spelled.to_pylist()
    alike: dict[Decimal, list[str]] = {}
    for known in names:
        if NUMBER.fullmatch(known):
            alike.setdefault(exact(known), []).append(known)
    back = {number: known[0] for number, known in alike.items() if len(known) == 1}
    made = [text if text is None or text in names else back.get(exact(text), text) for text in texts]
    return None if made == texts else pa.array(made, pa.string())


def _numbers_of_texts(column: pa.ChunkedArray, names: set[str]) -> pa.Array | None:
    """A column of texts as the numbers that an earlier program made of them; None where it made none."""
    texts = column.to_pylist()
    written = {text.strip() for text in texts if text is not None}
    odd = [text for text in written - names if NUMBER.fullmatch(text) and not _DIGITS.fullmatch(text)]
    numbers = pa.array([float(text) for text in odd], pa.float64()).cast(pa.string()).to_pylist()
    usual = names - written
    back = {text: number for text, number in zip(odd, numbers, strict=True) if number in usual}
    made = [None if text is None else back.get(text.strip(), text) for text in texts]
    return pa.array(made, pa.string()) if back else None


def _known(champion: Champion, column: str) -> set[str]:
    """What a column of names held in the search: its values as a category, or in the names of the series."""
    titles = [*champion.scaling.inputs.names, *champion.scaling.static.names, *champion.residuals.names]
    cell = re.compile(rf"(?:^|, ){re.escape(column)}=([^,]*)")
    return {found[1] for title in titles for found in cell.finditer(title)}
