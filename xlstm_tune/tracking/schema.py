"""Which program wrote an SQLite database, and of which version, told from its tables without importing MLflow."""

from __future__ import annotations

import importlib.util
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Literal

_LOCKED_SECONDS = 1.0  # how long to wait for a process that writes
_MADE_SECONDS = 1.0
"""For how long a database that another search's writer makes this moment may stay at one revision."""
# MLflow's files are read as text; each of its migrations says which revision it makes, and of which.
_REVISION = re.compile(r"^(down_)?revision\b[^=\n]*=(.*)$", re.MULTILINE)
_TABLE = re.compile(r"^\s+__tablename__ *=(.*)$", re.MULTILINE)
_QUOTED = re.compile(r"""["'](\w+)["']""")

Author = Literal["another program", "an older MLflow", "a newer MLflow"]


def foreign_author(path: Path) -> Author | None:
    """Who wrote the database, if it is not one that the installed MLflow takes.

    None also where that cannot be told: the database is locked or damaged, or MLflow's files are not as expected.
    """
    author = _author(path)
    if author == "an older MLflow":  # or this one, which makes it this moment, revision by revision
        time.sleep(_MADE_SECONDS)
        author = _author(path)
    return author


def _author(path: Path) -> Author | None:
    content = _content(path)
    if content is None:
        return None
    tables, revisions = content
    if not tables:
        return None
    mlflows = "experiments" in tables  # the first that MLflow makes
    if not revisions:
        return None if mlflows else "another program"
    known = _known_revisions()
    if known is None or revisions == {known[0]}:
        return None
    if not revisions <= known[1]:
        return "a newer MLflow" if mlflows else "another program"
    # One that lacks a table MLflow brings up to date by itself.
    return "an older MLflow" if _own_tables() <= tables else None


def _content(path: Path) -> tuple[set[str], set[str]] | None:
    """Names of the tables, without alembic's and SQLite's own, and the revisions that alembic has noted."""
    try:
        with closing(
            sqlite3.connect(f"{path.as_uri()}?mode=ro", timeout=_LOCKED_SECONDS, isolation_level=None, uri=True)
        ) as database:
            database.execute("BEGIN")  # both answers are of one moment
            tables = {str(name) for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            noted = "SELECT version_num FROM alembic_version"
            revisions = {str(one) for (one,) in database.execute(noted)} if "alembic_version" in tables else set()
    except sqlite3.Error:
        return None
    return {name for name in tables if not name.startswith(("alembic_", "sqlite_"))}, revisions


def _known_revisions() -> tuple[str, set[str]] | None:
    """The revision that the installed MLflow wants, and all that it can bring up to it."""
    revisions: set[str] = set()
    left: set[str] = set()
    for text in _texts("db_migrations/versions/*.py"):
        for down, names in _REVISION.findall(text):
            (left if down else revisions).update(_QUOTED.findall(names))
    newest = revisions - left
    return (newest.pop(), revisions) if len(newest) == 1 else None


def _own_tables() -> set[str]:
    """The tables of the installed MLflow."""
    return {
        name for text in _texts("*/dbmodels/*.py") for names in _TABLE.findall(text) for name in _QUOTED.findall(names)
    }


def _texts(pattern: str) -> list[str]:
    """Files of the installed MLflow's store; none where it cannot be found or read."""
    found = importlib.util.find_spec("mlflow")
    places = (found.submodule_search_locations if found else None) or []
    try:
        return [file.read_text(errors="replace") for place in places for file in Path(place, "store").glob(pattern)]
    except OSError:
        return []
