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

from xlstm_tune.layout import MLFLOW_FILES

log = logging.getLogger(__name__)

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

    Unless they were left where they were: while the folder is there, the files of some run have to lie here too. What
    goes wrong is noted and changes nothing: they stay where they are said to be.
    """
    here = database.resolve().parent / MLFLOW_FILES
    if not database.is_file():
        return
    try:
        with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=rw", uri=True, timeout=_PATIENCE)) as store:
            said = [place for (place,) in store.execute("SELECT DISTINCT artifact_location FROM experiments")]
            for old in filter(None, said):
                if _moved(store, old, here):
                    with store:  # a transaction
                        for table, column in _COLUMNS:
                            _replace(store, table, column, old, here.as_uri())
                    log.warning("MLflow's files of %s lie in %s now, and its database says so", old, here)
    except (OSError, sqlite3.Error) as error:  # MLflow will say more of a database that cannot be used
        log.info("nobody looked whether the files of %s have moved (%s)", database, error)


def _moved(store: sqlite3.Connection, said: str, here: Path) -> bool:
    """Whether files lie here that are said to lie in another such folder."""
    if urlsplit(said).scheme != "file":
        return False
    there = Path(unquote(urlsplit(said).path))
    if there.name != MLFLOW_FILES or there == here:
        return False
    if not os.path.isdir(there):  # Path.is_dir raises for a folder closed to us
        return True
    if not os.path.isdir(here) or os.path.samefile(here, there):
        return False
    below = f"{said}/"
    runs = store.execute("SELECT artifact_uri FROM runs WHERE substr(artifact_uri, 1, ?) = ?", (len(below), below))
    return any(os.path.isdir(here / unquote(uri[len(below) :])) for (uri,) in runs)


def _replace(store: sqlite3.Connection, table: str, column: str, old: str, new: str) -> None:
    """Of this folder and what lies below it, where there is such a column."""
    if column not in {row[1] for row in store.execute(f"PRAGMA table_info({table})")}:
        return
    store.execute(
        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?",
        (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
    )
