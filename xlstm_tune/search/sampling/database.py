"""`search.storage`, looked at before a search starts, without leaving anything there."""

from __future__ import annotations

import os
from pathlib import Path

import optuna
import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from xlstm_tune.errors import StorageError
from xlstm_tune.search.sampling.study import open_study
from xlstm_tune.spec import SearchSpec
from xlstm_tune.tracking import hide_credentials

_OPTUNAS = {"alembic_version", "version_info", "trials", "trial_params", "trial_values", "study_directions"}
"""Tables of Optuna's that other programs may have too: MLflow has the first."""


def check_database(spec: SearchSpec, folder: Path, resume: bool) -> None:
    """Raise StorageError where `open_study` would, with its sentence. folder: the search's; it is not made."""
    url = spec.search.storage
    if url is None or _takes(url, spec.name, resume):
        return
    # Why it does not, the search's own way of opening it says best.
    study, storage, _ = open_study(spec.name, spec.search, folder, resume)
    if not resume:  # a database that was away for a moment
        optuna.delete_study(study_name=study.study_name, storage=storage)


def _takes(url: str, name: str, resume: bool) -> bool:
    """Whether a database answers, can be written as far as its files tell, has tables of this Optuna or none, and no
    study of this name if not to be resumed. Raises StorageError for another program's tables, which Optuna would mix
    with its own."""
    try:
        engine = sqlalchemy.create_engine(url, poolclass=NullPool)
        file = Path(engine.url.database or "") if engine.dialect.name == "sqlite" else None
        if file and file.name and not file.name.startswith((":", "file:")):
            if not os.access(file if file.exists() else file.parent, os.W_OK):
                return False
            if not file.exists():  # SQLite would make it
                return file.parent.is_dir()
        with engine.connect() as connection:
            tables = set(sqlalchemy.inspect(connection).get_table_names())
        if "studies" in tables:
            storage = optuna.storages.get_storage(url)  # refuses those of another version; makes nothing
            return resume or name not in optuna.get_all_study_names(storage)
    except (OSError, SQLAlchemyError, ImportError, RuntimeError, ValueError):
        return False
    if foreign := sorted(tables & _OPTUNAS):
        raise StorageError(
            f"search.storage {hide_credentials(url)} holds another program's table '{foreign[0]}', where Optuna would "
            "make its own; give the search a database of its own"
        )
    return True
