"""What the clocks of a zone show at a moment, and at which moment they show it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xlstm_tune.data.clock import OFFSET, ZONED, Kind, to_nanoseconds


def known_zone(column: pa.DataType | None) -> str | None:
    """The zone of a time column's type; None where it has none, or one that nobody knows."""
    if column is None or not pa.types.is_timestamp(column) or not column.tz:
        return None
    try:
        local(np.zeros(1, dtype=np.int64), column.tz)
    except pa.ArrowException:
        return None
    return str(column.tz)


def local(stamps: np.ndarray, zone: str) -> np.ndarray:
    """Stamps as the clocks of a zone show them."""
    there = pc.local_timestamp(pa.array(stamps, pa.int64()).cast(pa.timestamp("ns", zone)))
    shown: np.ndarray = there.cast(pa.int64()).to_numpy()
    return shown


def universal(shown: np.ndarray, zone: str) -> np.ndarray:
    """The contrary of `local`. An hour that there is twice is the first of them."""
    there = pa.array(shown, pa.int64()).cast(pa.timestamp("ns"))
    zoned = pc.assume_timezone(there, zone, ambiguous="earliest", nonexistent="latest")
    stamps: np.ndarray = zoned.cast(pa.int64()).to_numpy()
    return stamps


def on_clocks(time: np.ndarray, kind: Kind, column: pa.ChunkedArray | None, rows: np.ndarray) -> np.ndarray:
    """Stamps int64 [R] as the clocks of the user show them: those of the column's zone, or by the offset in each text.

    column: of `plain`, in the order of the file. rows: int64 [R], the row of the file of each stamp.
    """
    if kind != "date" or column is None:
        return time
    if (zone := known_zone(column.type)) is not None:
        return local(time, zone)
    if not pa.types.is_string(column.type):
        return time
    texts = pc.utf8_trim_whitespace(column)
    if not pc.all(pc.match_substring_regex(texts, ZONED)).as_py():
        return time
    shown: np.ndarray = to_nanoseconds(pc.replace_substring_regex(texts, OFFSET, ""))[rows]
    return shown
