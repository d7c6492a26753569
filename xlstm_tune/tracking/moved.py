"""A storage folder that was moved or copied: MLflow's database in it says by absolute paths where its files lie.

MLflow has no call to change that, so its tables are changed here: an experiment's, its runs', its models' (MLflow 3).
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

log = logging.getLogger(__name__)

FILES = "mlflow-artifacts"
"""The folder beside an SQLite database."""
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_PATIENCE = 30.0
"""Seconds that others may keep the database locked."""


def take_files_along(database: Path) -> None:
    """Where files are said to lie in the folder of another database, name them where they lie beside this one.

    Unless they were left where they were: then there is no such folder here, while that one is still there. What goes
    wrong is noted and changes nothing: they stay where they are said to be.
    """
    here = database.parent / FILES
    if not database.is_file():
        return
    try:
        with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=rw", uri=True, timeout=_PATIENCE)) as store:
            tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "experiments" not in tables:
                return
            said = [place for (place,) in store.execute("SELECT DISTINCT artifact_location FROM experiments")]
            for old in said:
                if not _moved(old, here):
                    continue
                with store:
                    for table, column in _COLUMNS:
                        if table in tables:
                            _replace(store, table, column, old, here.as_uri())
                log.warning("MLflow's files of %s lie in %s now, and its database says so", old, here)
    except (OSError, sqlite3.Error) as error:
        log.warning("%s still names the files of where it was (%s)", database, error)


def _moved(said: str | None, here: Path) -> bool:
    """Whether files lie here that are said to lie in another such folder."""
    if not said or urlsplit(said).scheme != "file":
        return False
    there = Path(unquote(urlsplit(said).path))
    if there.name != FILES or there == here:
        return False
    if not os.path.isdir(there):  # Path.is_dir raises for a folder closed to us
        return True
    return os.path.isdir(here) and not os.path.samefile(here, there)


def _replace(store: sqlite3.Connection, table: str, column: str, old: str, new: str) -> None:
    """Of this folder and what lies below it."""
    if column not in {row[1] for row in store.execute(f"PRAGMA table_info({table})")}:
        return
    store.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?",
        (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
    )
