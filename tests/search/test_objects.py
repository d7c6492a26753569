"""An object is written whole or not at all: in a folder by its file:// address, and in a bucket of a real S3 server."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from buckets import CREDENTIALS, S3
from pyarrow.fs import FileSelector, FileSystem

from xlstm_tune.storage.objects import Objects, at_once

UNREADABLE = Path("/proc/self/mem")
"""Opens, and cannot be read from its beginning: nothing lies at a process's first address."""
LONG = 12 << 20
"""More bytes than S3 is sent in one request."""


@pytest.fixture(params=["file", "s3"])
def where(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    if request.param == "file":
        return Objects((tmp_path / "bucket").as_uri())
    server: S3 = request.getfixturevalue("s3")
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return Objects(server.uri("searches", tmp_path.name))


def everything(where: Objects) -> list[str]:
    """Hidden names too."""
    system, root = FileSystem.from_uri(where.uri)
    return sorted(one.base_name for one in system.get_file_info(FileSelector(root, recursive=True)) if one.is_file)


@pytest.mark.parametrize("size", [None, LONG])
def test_an_object_stays_as_it_was_where_the_new_file_cannot_be_read(where: Objects, size: int | None) -> None:
    where.put("wave/weights", b"good")
    with pytest.raises(OSError, match="Input/output error"):
        where.put("wave/weights", UNREADABLE, size)
    assert where.get("wave/weights") == b"good" and everything(where) == ["weights"]


@pytest.mark.parametrize("length", [0, 3, LONG])
def test_an_object_is_written_at_any_length_and_leaves_nothing_beside_it(
    where: Objects, tmp_path: Path, length: int
) -> None:
    content = bytes(range(256)) * (length // 256 + 1)
    file = tmp_path / "file"
    file.write_bytes(content)
    where.put("wave/bytes", content[:length])
    where.put("wave/file", file, length)
    where.put("wave/all", file)
    assert where.get("wave/bytes") == where.get("wave/file") == content[:length] and where.get("wave/all") == content
    assert everything(where) == ["all", "bytes", "file"]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a power cut wants it, and its name soon after."""
    kept, folder, order = os.fsync, tmp_path / "bucket" / "wave", list[str]()

    def fsync(handle: int) -> None:
        kept(handle)
        synced = Path(os.readlink(f"/proc/self/fd/{handle}"))
        order.append(
            "names" if synced == folder else f"{synced.read_bytes()!r} beside {sorted(os.listdir(folder))[1:]}"
        )

    monkeypatch.setattr(os, "fsync", fsync)
    where = Objects((tmp_path / "bucket").as_uri())
    where.put("wave/weights", b"first")
    where.put("wave/weights", b"second")
    assert order == ["b'first' beside []", "names", "b'second' beside ['weights']", "names"]


@pytest.mark.parametrize("error", [OSError("away"), KeyboardInterrupt()])
def test_no_call_begins_after_an_error_and_those_under_way_end(error: BaseException) -> None:
    begun: list[int] = []
    ended: list[int] = []

    def call(item: int) -> None:
        begun.append(item)
        if item == 3:
            raise error
        time.sleep(0.05 if item else 1.0)  # a large one that was begun first hides no error
        ended.append(item)

    with pytest.raises(type(error)):
        at_once(call, range(400))
    assert len(begun) < 100 and sorted([*ended, 3]) == sorted(begun)
