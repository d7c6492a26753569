"""`search.storage`, looked at before a search starts, without leaving anything there."""

from __future__ import annotations

import os
from pathlib import Path

import optuna
import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from xlstm_tune.search.study import open_study
from xlstm_tune.spec import SearchSpec


def check_database(spec: SearchSpec, folder: Path, resume: bool) -> None:
    """Raise StorageError where `open_study` would, with its sentence. folder: the search's; it is not made."""
    if spec.search.storage is None or _takes(spec.search.storage, spec.name, resume):
        return
    # Why it does not, the search's own way of opening it says best.
    study, storage, _ = open_study(spec.name, spec.search, folder, resume)
    if not resume:  # a database that was away for a moment
        optuna.delete_study(study_name=study.study_name, storage=storage)


def _takes(url: str, name: str, resume: bool) -> bool:
    """Whether a database answers, can be written as far as its files tell, and has no study of this name if not to be
    resumed."""
    try:
        engine = sqlalchemy.create_engine(url, poolclass=NullPool)
        file = Path(engine.url.database or "") if engine.dialect.name == "sqlite" else None
        if file and file.name and not file.name.startswith((":", "file:")):
            if not os.access(file if file.exists() else file.parent, os.W_OK):
                return False
            if not file.exists():  # SQLite would make it
                return file.parent.is_dir()
        with engine.connect() as connection:
            known = sqlalchemy.inspect(connection).has_table("studies")
            same = sqlalchemy.text("SELECT study_name FROM studies WHERE study_name = :name")
            return resume or not known or connection.execute(same, {"name": name}).first() is None
    except (OSError, SQLAlchemyError, ImportError, ValueError):
        return False
