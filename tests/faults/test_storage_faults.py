"""Searches kept in a bucket: workers share no disk with the driver, whose machine goes away for good."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from buckets import CREDENTIALS, S3, names
from fault_search import NAME, Search, check_accounted, write_search

from xlstm_tune.search.persistence.journal import JOURNAL
from xlstm_tune.storage.copy import read_copy
from xlstm_tune.storage.objects import Objects

pytestmark = pytest.mark.slow
TWO: dict[str, Any] = {"space": {"model.family": {"choice": ["lstm", "slstm"]}}, "training": {"epochs": 180}}
"""Long enough for two copies on a busy machine, where one takes seconds and the next comes ten times as many later."""


class Elsewhere(Search):
    """A search that is kept at a URI and works in a folder of its own. work: the driver's current folder."""

    def __init__(self, work: Path, uri: str, **environment: str) -> None:
        quick = {"XLSTM_TUNE_MIRROR_SECONDS": "1", "XLSTM_TUNE_CHECKPOINT_SHARE": "1000"}
        super().__init__(work / "searches", None, **(CREDENTIALS | quick | environment))
        self.uri, self.objects = uri, Objects(uri) / NAME
        self._always = ["--storage", uri]

    def kill(self) -> None:
        """SIGKILL to the driver; returns when the workers that it leaves write no more."""
        assert self.process is not None
        self.process.kill()
        self.process.communicate()
        before: dict[str, Any] = {}
        while (now := self.objects.names()) != before:
            before = now
            time.sleep(3)

    def checkpoints(self) -> set[str]:
        """Whole checkpoints at the URI."""
        return {name for name in self.objects.names("trials") if name.endswith("sha256.txt")}


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


def test_a_search_goes_on_from_the_bucket_when_its_machine_is_gone(
    s3: S3, tmp_path: Path, undisturbed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver is killed when a trial has a checkpoint that the copy of the journal knows, and its folder removed."""
    uri = s3.uri("searches")
    file = str(write_search(tmp_path / "data", **TWO))
    gone = Elsewhere(tmp_path / "gone", uri)
    gone.start(file)

    def in_the_middle() -> bool:
        time.sleep(0.3)  # every look is a request
        copy = read_copy(gone.objects) if gone.epochs() > 3 else None
        return copy is not None and copy.cut[JOURNAL] > 2500 and bool(gone.checkpoints())

    gone.until(in_the_middle, 600)
    assert not list(gone.folder.glob("trials/*/checkpoints")), "the workers' checkpoints are their own"
    gone.kill()
    shutil.rmtree(tmp_path / "gone")
    kept = {name for name in names(uri) if "checkpoints" in name}

    search = Elsewhere(tmp_path / "here", uri)
    monkeypatch.chdir(tmp_path / "here")
    search.start("--resume", NAME)
    search.until(lambda: search.epochs() > 60, 600)
    s3.hold()  # a storage that says nothing for a while is waited for
    time.sleep(10)
    assert search.process is not None and search.process.poll() is None
    s3.go_on()
    output = search.end()
    assert kept and "Resuming wave" in output and "won: rmse" in output
    check_accounted(search.folder, undisturbed(**TWO))
    there = {name.removeprefix(f"{NAME}/") for name in names(uri)}
    assert not {name for name in there if "checkpoints" in name or name.startswith("stopped")}
    mine = {path.relative_to(search.folder).as_posix() for path in search.folder.rglob("*") if path.is_file()}
    own = {"storage.json", "driver.lock", "mlflow/state.json", "mlflow/writer.log", "mlflow/writer.lock"}
    assert there - {"copy.json", "owner.json"} == mine - own
    for name in there - {"copy.json", "owner.json"}:
        assert search.objects.get(name) == (search.folder / name).read_bytes(), name
    assert "is finished" in search.run("--resume", NAME)
