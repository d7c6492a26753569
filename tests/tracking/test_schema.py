"""Databases of other programs and of other versions of MLflow are refused before a search; those in the making not."""

from __future__ import annotations

import shlex
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from alembic import command
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils
from mlflow.store.tracking.dbmodels.initial_models import Base
from tracked import MlflowClient, say_search

from xlstm_tune.errors import TrackingError
from xlstm_tune.tracking import Spool, check_tracking_uri, default_uri, sync
from xlstm_tune.tracking.schema import _known_revisions, _own_tables, foreign_author
from xlstm_tune.tracking.uri import python_command

NEWEST = utils._get_latest_schema_revision()


def refusal(uri: str) -> str:
    with pytest.raises(TrackingError) as caught:
        check_tracking_uri(uri)
    return str(caught.value)


def execute(database: Path, *statements: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def note_revision(database: Path, revision: str) -> None:
    execute(database, f"UPDATE alembic_version SET version_num = '{revision}'")


def made_up_to(database: Path, revision: str) -> None:
    """As MLflow makes one, up to this revision."""
    engine = sqlalchemy.create_engine(f"sqlite:///{database}")
    Base.metadata.create_all(engine)
    command.upgrade(utils._get_alembic_config(str(engine.url)), revision)
    engine.dispose()


def before(revision: str, steps: int = 1) -> str:
    scripts = utils.ScriptDirectory.from_config(utils._get_alembic_config(""))
    for _ in range(steps):
        down = scripts.get_revision(revision).down_revision
        assert isinstance(down, str)
        revision = down
    return revision


def test_the_files_of_mlflow_say_what_it_would_say_itself() -> None:
    scripts = utils.ScriptDirectory.from_config(utils._get_alembic_config(""))
    assert _known_revisions() == (NEWEST, {script.revision for script in scripts.walk_revisions()})
    assert _own_tables() == set(utils.Base.metadata.tables)


def test_a_newer_mlflows_database_is_refused_before_the_search_and_by_sync(folder: Path) -> None:
    database, uri = folder.parent / "mlflow.db", default_uri(folder.parent)
    note_revision(database, "fedcba987654")
    said = refusal(uri)
    assert said == (
        f"the tracking database {database} was written by another MLflow version than the one installed here, which "
        "does not know its tables; install a newer MLflow or name another with --tracking-uri"
    )
    with Spool(folder, uri) as spool:
        say_search(spool, 1)
    with pytest.raises(TrackingError) as caught:
        sync(folder)
    assert str(caught.value) == said
    with pytest.raises(MlflowException):
        MlflowClient(uri).search_experiments()


def test_an_older_mlflows_database_is_refused_with_the_command_that_mends_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xlstm_tune.tracking.schema._MADE_SECONDS", 0.0)
    uri = default_uri(folder.parent)
    note_revision(folder.parent / "mlflow.db", before(NEWEST))
    said = refusal(uri)
    assert "was written by another, older MLflow version than the one installed here; keep a copy and bring" in said
    assert said.endswith(f"with: {python_command()} -m mlflow db upgrade {shlex.quote(uri)}")
    with pytest.raises(MlflowException, match="out-of-date database schema"):
        MlflowClient(uri).search_experiments()


def test_a_database_that_mlflow_brings_up_to_date_by_itself_is_taken(tmp_path: Path) -> None:
    """Such as another search's writer leaves that is killed while it makes one."""
    database = tmp_path / "mlflow.db"
    revision = NEWEST
    while revision == NEWEST or _own_tables() <= tables(database):
        database.unlink(missing_ok=True)
        revision = before(revision)
        made_up_to(database, revision)
    check_tracking_uri(default_uri(tmp_path))
    assert MlflowClient(default_uri(tmp_path)).search_experiments()
    check_tracking_uri(default_uri(tmp_path))


def tables(database: Path) -> set[str]:
    with closing(sqlite3.connect(database)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_a_database_in_the_making_is_never_refused(tmp_path: Path) -> None:
    database, seen = tmp_path / "mlflow.db", set()
    making = threading.Thread(target=made_up_to, args=(database, "heads"))
    making.start()
    while making.is_alive():
        if database.exists():
            seen.add(foreign_author(database))
        time.sleep(0.005)
    making.join()
    assert seen == {None}


def test_a_database_whose_last_step_is_still_to_come_is_waited_for(folder: Path) -> None:
    database = folder.parent / "mlflow.db"
    note_revision(database, before(NEWEST))
    step = threading.Timer(0.2, note_revision, (database, NEWEST))
    step.start()
    check_tracking_uri(default_uri(folder.parent))
    step.join()


def an_optuna_study(database: Path) -> None:
    """With a table alembic_version too."""
    optuna.create_study(storage=f"sqlite:///{database}")


def a_shop(database: Path) -> None:
    execute(database, "CREATE TABLE customers (name TEXT)", "INSERT INTO customers VALUES ('Annika')")


@pytest.mark.parametrize("make", [an_optuna_study, a_shop])
@pytest.mark.parametrize("name", ["a b", "#1", "100%", "my%20files", "why?x=1"])
def test_another_programs_database_is_refused_and_left_alone(
    make: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    storage = tmp_path / name
    storage.mkdir()
    make(tmp_path / "made.db")
    database = shutil.copy(tmp_path / "made.db", storage / "mlflow.db")
    content = database.read_bytes()
    assert refusal(default_uri(storage)) == (
        f"{database} is another program's database, where MLflow would make tables of its own; "
        "name another file with --tracking-uri"
    )
    assert database.read_bytes() == content and list(storage.iterdir()) == [database]


def test_empty_locked_and_damaged_databases_are_left_to_mlflow(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.touch()
    check_tracking_uri(default_uri(tmp_path))
    execute(database, "CREATE TABLE gone (here INT)", "DROP TABLE gone")
    check_tracking_uri(default_uri(tmp_path))
    a_shop(database)
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        check_tracking_uri(default_uri(tmp_path))
    assert "another program's" in refusal(default_uri(tmp_path))
    database.write_bytes(database.read_bytes()[:100] + b"\xff" * 4000)
    check_tracking_uri(default_uri(tmp_path))


def test_a_database_that_another_process_writes_ahead_is_read(folder: Path) -> None:
    database, uri = folder.parent / "mlflow.db", default_uri(folder.parent)
    with closing(sqlite3.connect(database)) as other:
        assert other.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
        check_tracking_uri(uri)
        other.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
        check_tracking_uri(uri)  # it may take that back
        other.commit()
        assert "install a newer MLflow" in refusal(uri)
