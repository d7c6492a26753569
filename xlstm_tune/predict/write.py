"""Forecasts to a file and to the terminal."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xlstm_tune.errors import StorageError


def write_table(table: pa.Table, place: Path) -> None:
    """As CSV or Parquet, by the file's ending, whole or not at all. Raises StorageError when it cannot be written."""
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        if place.suffix == ".csv":
            pa_csv.write_csv(table, temporary)
        else:
            pa_parquet.write_table(table, temporary, compression="zstd")
        temporary.replace(place)
    except OSError as error:
        raise StorageError(f"{place} cannot be written ({error.strerror or error}); choose another --output") from None
    finally:
        with suppress(OSError):  # read-only, or no folder
            temporary.unlink(missing_ok=True)


def print_rows(table: pa.Table, most: int, console: Console) -> None:
    """The first rows."""
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for field in table.schema:
        shown.add_column(Text(field.name), justify="right" if pa.types.is_floating(field.type) else "left")
    for row in table.slice(0, most).to_pylist():
        shown.add_row(*(Text(_cell(value)) for value in row.values()))
    console.print(shown)
    if table.num_rows > most:
        console.print(f"… and {table.num_rows - most:,} more", highlight=False)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
