"""The files of a search's tables: where they lie, and how one is opened. What is in them: results.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xlstm_tune.errors import StorageError, first_line
from xlstm_tune.result_tables import VERSION, VERSION_KEY

_MADE_ANEW = ("trials", "scores", "predictions")
"""Tables that the resume of a finished search looks for."""


def place_of(folder: Path, name: str) -> Path:
    """The folder of a table."""
    return folder / "results" / name


def pending_path(folder: Path, name: str) -> Path:
    """The file of a table's rows that are in no part yet."""
    return place_of(folder, name) / f"pending.{VERSION}.jsonl"


def part_number(path: Path) -> int:
    """Parts are counted as they are written, from 1 on. 0: another file, such as a copy that somebody made."""
    match = re.fullmatch(r"part-([0-9]+)\.parquet", path.name)
    return int(match[1]) if match else 0


def parts_of(folder: Path, name: str) -> list[Path]:
    """The part files, oldest first; what is still being written has another name. Refuses newer versions."""
    place = place_of(folder, name)
    for path in place.glob("pending.*.jsonl"):
        if match := re.fullmatch(r"pending\.([0-9]+)\.jsonl", path.name):
            check_version(path, int(match[1]))
    return sorted(filter(part_number, place.glob("part-*.parquet")), key=part_number)


@contextmanager
def opened(path: Path, as_dictionaries: list[str] | None = None) -> Iterator[pq.ParquetFile]:
    """A part file. as_dictionaries: text columns that are read dictionary-encoded.

    Raises StorageError where a newer program has written it, or it cannot be read here or inside; FileNotFoundError
    where there is none.
    """
    try:
        with pq.ParquetFile(path, read_dictionary=as_dictionaries) as file:
            check_version(path, int((file.schema_arrow.metadata or {}).get(VERSION_KEY, b"0")))
            yield file
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise StorageError(
            f"{path} cannot be read ({first_line(error)}); bring it back, or remove it to "
            + ("have it made anew by --resume" if path.parent.name in _MADE_ANEW else "go on without what it holds")
        ) from None


def read_part(path: Path, columns: list[str] | None = None) -> pa.Table:
    """The rows of a part file; columns: None for all. Raises as `opened` does."""
    with opened(path) as file:
        return file.read(columns)


def check_version(path: Path, version: int) -> None:
    """Raise StorageError for a file of a newer program."""
    if version > VERSION:
        raise StorageError(
            f"{path} was written by a newer xlstm_tune (results version {version}, known here up to {VERSION}); "
            "update xlstm_tune to read it"
        )


def pending_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """Rows that are in no part file yet; half a last line is left out.

    Raises StorageError for a damaged one, or where they cannot be read.
    """
    path, rows = pending_path(folder, name), []
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}); give yourself the right to") from None
    for place, line in enumerate(lines, 1):
        if line.endswith(b"\n"):
            try:
                rows.append(dict(json.loads(line)))
            except (ValueError, TypeError, RecursionError):
                raise StorageError(
                    f"line {place} of {path} is damaged; remove that line to go on without what it says"
                ) from None
    return rows
