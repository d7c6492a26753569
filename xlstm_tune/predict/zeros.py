"""Names that were numbers with zeros before them, such as 04001, and lost those on the way here."""

from __future__ import annotations

import re
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from xlstm_tune.data.read import Source
from xlstm_tune.predict.champion import Champion


def with_zeros(champion: Champion, source: Source) -> Source:
    """The table with the series and categories of the search again where a column has them as whole numbers.

    What reads 04001 as 4001, as pandas does of a CSV file, would else make of each a name that the model never saw.
    Other numbers stay, also those that stand for two names of the search.
    """
    table = source.table
    for name in champion.data.labels:
        if name not in table.column_names or (numbers := _whole(table.column(name))) is None:
            continue
        names = _known(champion, name)
        padded: dict[int, set[str]] = {}
        for known in names:
            if re.fullmatch(r"0\d+", known):
                padded.setdefault(int(known), set()).add(known)
        back = {number: known.pop() for number, known in padded.items() if len(known) == 1 and str(number) not in names}
        if not back:
            continue
        texts = [None if cell is None else back.get(cell, str(cell)) for cell in numbers.to_pylist()]
        table = table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))
    return replace(source, table=table)


def _known(champion: Champion, column: str) -> set[str]:
    """What a column of names held in the search: its values as a category, or in the names of the series."""
    titles = [*champion.scaling.inputs.names, *champion.scaling.static.names, *champion.residuals.names]
    cell = re.compile(rf"(?:^|, ){re.escape(column)}=([^,]*)")
    return {found[1] for title in titles for found in cell.finditer(title)}


def _whole(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """As whole numbers; None where the column holds anything else. pandas has them as floats beside a blank."""
    if pa.types.is_integer(column.type):
        return column
    if not pa.types.is_floating(column.type):
        return None
    try:
        return pc.cast(pc.if_else(pc.is_nan(column), None, column), pa.int64())
    except pa.ArrowInvalid:
        return None
