"""`search.storage`, refused by a plan as it would be by the search."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from searcher_bench import SMALL, make_spec

from xlstm_tune.errors import StorageError
from xlstm_tune.search.sampling.database import check_database
from xlstm_tune.search.sampling.study import open_study
from xlstm_tune.spec import SearchSpec


def spec_of(url: str | None) -> SearchSpec:
    return make_spec(SMALL, trials=4, storage=url)


def refusal(spec: SearchSpec, folder: Path) -> str:
    """The sentence of the search itself."""
    with pytest.raises(StorageError) as search:
        open_study(spec.name, spec.search, folder)
    return str(search.value)


@pytest.mark.parametrize(
    "url",
    ["s4://bucket", "no address", "redis://localhost", "sqlite:///{}/text/x.db", "sqlite:///{}/away/x.db",
     "sqlite:///{}/text", "sqlite:///{}", "mysql+nodriver://me:secret@127.0.0.1:9/x"],
)  # fmt: skip
@pytest.mark.parametrize("resume", [False, True])
def test_check_database_refuses_what_the_search_would(url: str, resume: bool, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database\n" * 100)
    spec = spec_of(url.format(tmp_path))
    with pytest.raises(StorageError) as plan:
        check_database(spec, tmp_path / "folder", resume)
    assert str(plan.value) == refusal(spec, tmp_path / "folder")
    assert "secret" not in str(plan.value)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_check_database_leaves_nothing_where_a_study_can_be(tmp_path: Path) -> None:
    check_database(spec_of(None), tmp_path / "folder", False)
    check_database(spec_of("sqlite://"), tmp_path / "folder", False)
    check_database(spec_of(f"sqlite:///{tmp_path}/new.db"), tmp_path / "folder", False)
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty.db").touch()
    check_database(spec_of(f"sqlite:///{tmp_path}/empty.db"), tmp_path / "folder", False)
    assert not (tmp_path / "empty.db").stat().st_size


def test_check_database_knows_the_studies_that_are_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/there.db"
    spec = spec_of(url)
    optuna.create_study(study_name="another", storage=url)
    check_database(spec, tmp_path, False)
    assert optuna.get_all_study_names(url) == ["another"]
    open_study(spec.name, spec.search, tmp_path)
    with pytest.raises(StorageError, match=f"already holds a search named '{spec.name}'"):
        check_database(spec, tmp_path, False)
    check_database(spec, tmp_path, True)
    assert sorted(optuna.get_all_study_names(url)) == sorted(["another", spec.name])


def test_check_database_refuses_one_that_cannot_be_written(tmp_path: Path) -> None:
    spec = spec_of(f"sqlite:///file:{tmp_path}/there.db?mode=ro&uri=true")
    optuna.create_study(study_name=spec.name, storage=f"sqlite:///{tmp_path}/there.db")
    with pytest.raises(StorageError, match=r"there\.db.* cannot be written: .*readonly database; get leave"):
        check_database(spec, tmp_path, False)


def test_open_study_refuses_tables_of_another_optuna(tmp_path: Path) -> None:
    spec = spec_of(f"sqlite:///{tmp_path}/there.db")
    optuna.create_study(study_name="another", storage=spec.search.storage)
    with closing(sqlite3.connect(tmp_path / "there.db")) as tables, tables:
        tables.execute("UPDATE alembic_version SET version_num = 'v1.3.0.a'")
    for resume in (False, True):
        with pytest.raises(StorageError, match=r"there\.db cannot be opened: .*(version|schema)"):
            open_study(spec.name, spec.search, tmp_path, resume)
        with pytest.raises(StorageError, match=r"there\.db cannot be opened: .*(version|schema)"):
            check_database(spec, tmp_path, resume)


def test_check_database_refuses_one_of_another_program(tmp_path: Path) -> None:
    spec = spec_of(f"sqlite:///{tmp_path}/there.db")
    with closing(sqlite3.connect(tmp_path / "there.db")) as tables, tables:
        tables.execute("CREATE TABLE alembic_version (version_num TEXT)")
        before = list(tables.execute("SELECT name FROM sqlite_master"))
        for resume in (False, True):
            with pytest.raises(StorageError, match=r"another program's table 'alembic_version'.*; give the search a"):
                check_database(spec, tmp_path, resume)
        assert list(tables.execute("SELECT name FROM sqlite_master")) == before
