"""What `sync` says of a search, or a database, that lies in a folder closed to us."""

from __future__ import annotations

from pathlib import Path

import pytest
from closed import closed, refusal
from tracked import say_search

from xlstm_tune.tracking import Spool, default_uri

SYNC = ("xlstm_tune.tracking", "sync")
DENIED = "cannot be reached (Permission denied); give yourself the right to, or name another"


def tracked(folder: Path, uri: str) -> Path:
    """A search folder with something to send there."""
    with Spool(folder, uri) as spool:
        say_search(spool, 1)
    return folder


def test_sync_of_a_search_below_a_closed_folder_is_one_sentence(tmp_path: Path) -> None:
    search = tracked(tmp_path / "searches" / "s", default_uri(tmp_path))
    with closed(tmp_path / "searches"):
        assert refusal(*SYNC, "s", folder=tmp_path) == f"{search} {DENIED}"
        assert refusal(*SYNC, str(search), folder=tmp_path) == f"{search} {DENIED}"
        assert refusal(*SYNC, "s", "--storage", "searches", folder=tmp_path) == f"{search} {DENIED}"


@pytest.mark.parametrize("name", ["", "mlflow", "mlflow/spool.json", "mlflow/spool.jsonl", "mlflow/state.json"])
def test_sync_of_a_search_closed_in_part_is_one_sentence(tmp_path: Path, name: str) -> None:
    search = tracked(tmp_path / "searches" / "s", default_uri(tmp_path))
    (search / "mlflow" / "state.json").write_text("{}")
    with closed(search / name):
        error = refusal(*SYNC, "s", folder=tmp_path)
    assert error.startswith(str(search)) and "(Permission denied); " in error


def test_sync_to_a_database_below_a_closed_folder_is_one_sentence_and_makes_no_other(tmp_path: Path) -> None:
    database = tmp_path / "shut" / "mlflow.db"
    database.parent.mkdir()
    search = tracked(tmp_path / "searches" / "s", f"sqlite:///{database}")
    beside = search.parent / "mlflow.db"
    beside.touch()
    said = f"the tracking database {database} cannot be reached (Permission denied); name another with --tracking-uri"
    with closed(database.parent):
        assert refusal(*SYNC, "s", folder=tmp_path) == said
    assert beside.stat().st_size == 0
