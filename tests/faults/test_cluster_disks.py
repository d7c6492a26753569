"""`--cluster` where a disk is full or a file was cut off, and where two terminals bring the same results home."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from fault_search import NAME, write_search
from rich.console import Console
from tracked import ROOT

from xlstm_tune.errors import ResourceError, StorageError
from xlstm_tune.search.remote.go import Asked, Visit
from xlstm_tune.search.remote.reach import LocalHead
from xlstm_tune.search.remote.watch import FETCHED, fetch

PARTS = 50


class FullHead(LocalHead):
    """On whose disk no byte more can be written."""

    def command(self, words: list[str]) -> tuple[list[str], dict[str, str] | None]:
        command, environment = super().command(words)
        return ["bash", "-c", 'ulimit -f 0; exec "$@"', "-", *command], environment


class KnownHead(LocalHead):
    """Which knows the processes that it has started."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *words: str, stdin: int | IO[bytes] = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        self.started.append(super().start(*words, stdin=stdin))
        return self.started[-1]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a head that has had a search which ended with exit code 1, with results larger than a pipe holds."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    searches = tmp_path / "home" / "searches"
    text = write_search(tmp_path, space={"model.family": {"choice": ["lstm", "slstm"]}}).read_text()
    for folder in (searches / ".remote" / NAME, searches / NAME):
        folder.mkdir(parents=True)
        (folder / "spec.yaml").write_text(text)
    (searches / NAME / "report.html").write_bytes(b"x" * 3_000_000)
    (searches / NAME / "results").mkdir()
    for part in range(PARTS):
        (searches / NAME / "results" / f"part-{part}.parquet").write_bytes(b"rows")
    (searches / f"{NAME}.exit").write_text("1\n")
    return tmp_path / "home"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here" / NAME


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process grows beyond a megabyte."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_start_on_a_full_disk_leaves_the_search_as_it_was(home: Path) -> None:
    before = LocalHead(home).ask("look", NAME)
    assert (before["state"], before["code"]) == ("ended", 1) and before["spec"]
    request = {"spec": before["spec"], "arguments": [], "environment": {}}
    with pytest.raises(ResourceError, match=r"could not do 'start': .*File too large"):
        FullHead(home).ask("start", NAME, send=json.dumps(request).encode())
    assert LocalHead(home).ask("look", NAME) == before
    assert {one.name for one in (home / "searches" / ".remote" / NAME).iterdir()} == {"spec.yaml", "running"}


def test_search_file_that_an_earlier_program_left_empty_on_the_head_is_passed_over(home: Path) -> None:
    before = LocalHead(home).ask("look", NAME)["spec"]
    (home / "searches" / ".remote" / NAME / "spec.yaml").write_bytes(b"")
    assert LocalHead(home).ask("look", NAME)["spec"] == before


@pytest.mark.parametrize(("code", "said"), [(137, "was killed"), (129, "was stopped"), (7, "ended with exit code 7")])
def test_whatever_ended_a_search_it_is_told_how_to_go_on(code: int, said: str, home: Path, here: Path) -> None:
    (home / "searches" / f"{NAME}.exit").write_text(f"{code}\n")
    console = Console(file=io.StringIO(), width=120)
    asked = Asked("c.yaml", NAME, storage=str(here.parent))
    assert Visit(LocalHead(home), "there", asked, console).run(None) == code
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"Search {NAME} {said}." in output and f"Go on with: {asked.command('--resume')}" in output


def test_full_disk_here_is_one_sentence_and_the_results_are_fetched_later(home: Path, here: Path) -> None:
    head, console = KnownHead(home), Console(file=io.StringIO(), width=120)
    asked = Asked("c.yaml", NAME, storage=str(here.parent))
    with (
        full_disk(),
        pytest.raises(StorageError, match=r"cannot be written into .*File too large.* fetches them again$"),
    ):
        Visit(head, "there", asked, console).run(None)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"Go on with: {asked.command('--resume')}" in output
    assert all(process.returncode is not None for process in head.started) and list(here.parent.iterdir()) == []
    assert Visit(head, "there", asked, console).run(None) == 1
    assert (here / "report.html").stat().st_size == 3_000_000


def check_whole(here: Path) -> None:
    assert [one.name for one in here.parent.iterdir()] == [here.name]
    assert len(list((here / "results").iterdir())) == PARTS and (here / FETCHED).exists()
    assert (here / "report.html").stat().st_size == 3_000_000


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("moment", ["unpack", "place"])
def test_two_terminals_that_fetch_at_once_have_all_of_it(
    moment: str, again: bool, home: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one fetches all of it while the first unpacks, or just before it puts its own in place.

    again: there is an older copy.
    """
    if again:
        fetch(LocalHead(home), here, "there", "c.yaml")
    others = [lambda: fetch(LocalHead(home), here, "there", "c.yaml")]

    rename, makefile = Path.rename, tarfile.TarFile.makefile

    def unpacked(self: tarfile.TarFile, member: tarfile.TarInfo, target: str) -> None:
        if moment == "unpack" and target.endswith("part-7.parquet") and others:
            others.pop()()
        makefile(self, member, target)

    def renamed(self: Path, target: Any) -> Path:
        if moment == "place" and target == here and others:
            others.pop()()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(tarfile.TarFile, "makefile", unpacked)
    fetch(LocalHead(home), here, "there", "c.yaml")
    assert not others
    check_whole(here)


def test_search_of_this_machine_that_begins_just_before_the_copy_takes_its_place_stays(
    home: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def renamed(self: Path, target: Any) -> Path:
        if target == here and not here.exists():
            here.mkdir()
            (here / "search.journal").write_text("{}\n")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    with pytest.raises(StorageError, match="holds a search of this machine"):
        fetch(LocalHead(home), here, "there", "c.yaml")
    assert [path.name for path in here.parent.rglob("*")] == [NAME, "search.journal"]


def test_what_killed_fetches_left_goes_after_a_day(home: Path, here: Path) -> None:
    old, young, other = (here.with_name(f".{name}") for name in (f"{NAME}.fetched", f"{NAME}.fetched123", "x.fetched"))
    for one in (old, young, other):
        (one / "results").mkdir(parents=True)
    for one in (old, other):
        os.utime(one, (time.time() - 2 * 86_400,) * 2)
    fetch(LocalHead(home), here, "there", "c.yaml")
    assert sorted(one.name for one in here.parent.iterdir()) == sorted([NAME, young.name, other.name])
