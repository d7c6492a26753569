"""A shared folder that is not mounted for a moment is waited for, as is a storage whose errors are pyarrow's own."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from test_store import driver, owned, worker

from xlstm_tune.search.persistence.folder import STOPPED, WEIGHTS, trial_folder
from xlstm_tune.search.persistence.store import Remote
from xlstm_tune.storage.objects import Objects


@pytest.fixture
def store(tmp_path: Path) -> Remote:
    """A driver's, whose name the copy bears."""
    store = driver(Objects((tmp_path / "bucket").as_uri()), tmp_path)
    owned(store)
    return store


def soon(store: Remote, name: str) -> bool:
    deadline = time.monotonic() + 60
    while name not in store.objects.names():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return True


def test_nothing_is_handed_over_below_a_mount_point_without_its_mount(tmp_path: Path, store: Remote) -> None:
    mine, bucket = worker(store), tmp_path / "bucket"
    place = trial_folder(mine.folder, 1)
    mine.begin([place])
    (place / WEIGHTS).write_bytes(b"best")
    bucket.rename(tmp_path / "elsewhere")
    bucket.mkdir()
    pushing = threading.Thread(target=mine.push, args=(place,))
    pushing.start()
    store.mark([trial_folder(store.folder, 2)])
    time.sleep(1.0)
    assert pushing.is_alive() and not list(bucket.iterdir())
    bucket.rmdir()
    (tmp_path / "elsewhere").rename(bucket)
    pushing.join(60)
    assert store.objects.get(f"trials/00001/{WEIGHTS}") == b"best" and soon(store, f"{STOPPED}/00002")


def test_a_mark_is_written_later_where_pyarrow_has_an_error_of_its_own(
    store: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Objects.put

    def fails(self: Objects, name: str, content: Any, size: int | None = None) -> None:
        monkeypatch.setattr(Objects, "put", put)
        raise pa.ArrowException("Unknown error: the service is unavailable")

    monkeypatch.setattr(Objects, "put", fails)
    store.mark([trial_folder(store.folder, 1)])
    assert soon(store, f"{STOPPED}/00001")
