"""A driver whose copy takes long, or that sleeps while it makes one: whose the search is, it asks before each write."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_mirror import Life, check_can_be_gone_on_from, copied, made
from test_mirror_drivers import fallen_asleep, gone_on, held, mirror_of

from xlstm_tune.errors import StorageError
from xlstm_tune.layout import SEARCH_JOURNAL
from xlstm_tune.search.persistence.mirror import PERIOD, Mirror
from xlstm_tune.search.persistence.owner import Owner, TakenOver
from xlstm_tune.search.stopping import Stopping
from xlstm_tune.storage.copy import CUT, KEPT_AT, OWNER, bring, read_copy
from xlstm_tune.storage.objects import Objects


def before_call(
    monkeypatch: pytest.MonkeyPatch, mirror: Mirror, method: str, call: int, act: Callable[[], Any]
) -> None:
    """Let something happen before a mirror's method is called for this time."""
    real, calls = getattr(mirror, method), [0]

    def acted(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            act()
        return real(*given)

    monkeypatch.setattr(mirror, method, acted)


@pytest.mark.parametrize(
    ("method", "call"), [("_put_cut", 1), ("_put_all", 1), ("_put_all", 2), ("_put_growing", 3), ("_put_cut", 2)]
)
def test_a_driver_that_slept_before_any_part_of_a_copy_leaves_what_the_other_has_done(
    method: str,
    call: int,
    where: Objects,
    here: Path,
    tmp_path: Path,
    stopping: Stopping,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    life, asleep = fallen_asleep(where, here, stopping)
    life.trial()
    life.results.close()
    after = dict[str, bytes]()

    def sleep() -> None:
        time.sleep(0.8)
        gone_on(where, tmp_path / "other", stopping, trials=3)
        after.update(held(where))

    before_call(monkeypatch, asleep, method, call, sleep)
    with pytest.raises(TakenOver):
        asleep._copy()
    assert after and held(where) == after
    assert check_can_be_gone_on_from(where, tmp_path / "third") >= 3


def test_a_driver_that_slept_between_two_tables_stops_at_the_next(
    where: Objects, here: Path, tmp_path: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    life, asleep = fallen_asleep(where, here, stopping)
    for number in range(4):
        (here / f"page-{number}.html").write_text("mine")
    put, pages = Objects.put, list[str]()

    def slept(self: Objects, name: str, content: Any, size: int | None = None) -> None:
        put(self, name, content, size)
        if name.startswith("page-"):
            pages.append(name)
            if len(pages) == 1:
                time.sleep(0.8)
                Owner(where / "wave", 0.2).claim()

    monkeypatch.setattr("xlstm_tune.storage.objects._AT_ONCE", 1)
    monkeypatch.setattr(Objects, "put", slept)
    with pytest.raises(TakenOver):
        asleep._copy()
    assert len(pages) == 1
    life.close()


def test_a_journal_that_is_written_late_does_not_take_the_place_of_a_longer_one(
    where: Objects, here: Path, tmp_path: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two drivers falls asleep while it writes its journal, and wakes when the next one has ended."""
    life = Life(made(here))
    put, roots = Objects.put, ["other", "third"]

    def late(self: Objects, name: str, content: Any, size: int | None = None) -> None:
        asleep = name.startswith(SEARCH_JOURNAL) and str(content).startswith(str(tmp_path / owners[-1]))
        if asleep and roots:
            time.sleep(0.8)
            owners.append(roots.pop(0))
            if owners[-1] == "third":
                gone_on(where, tmp_path / "third", stopping, trials=2)
            else:
                folder = bring(where, "wave", tmp_path / "other")
                other = Life(folder)
                other.number = 0
                other.trial()
                other.close()
                with pytest.raises(TakenOver):
                    mirror_of(where, folder, stopping).start()
        put(self, name, content, size)

    owners = ["here"]
    first = mirror_of(where, here, stopping)
    first._owner.claim()
    first._copy()
    life.trial()
    life.close()
    monkeypatch.setattr(Objects, "put", late)
    with pytest.raises(TakenOver):
        first._copy()
    assert owners == ["here", "other", "third"]
    for root in ("fourth", "fifth"):
        gone_on(where, tmp_path / root, stopping)
        copy = read_copy(where / "wave")
        assert json.loads((where / "wave").get(CUT))["version"] == 2
        assert copy is not None and copy.journals, "the plain names may still be written by those that slept"
    shutil.rmtree(tmp_path / "fourth")
    assert check_can_be_gone_on_from(where, tmp_path / "sixth") == check_can_be_gone_on_from(where, tmp_path / "fifth")
    assert not list((tmp_path / "sixth").rglob(f"{SEARCH_JOURNAL}.*"))


@pytest.mark.parametrize("ends", ["given up", "killed"])
def test_a_takeover_that_broke_off_before_its_first_copy_is_one_for_the_driver_after_it(
    ends: str, where: Objects, here: Path, tmp_path: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver sleeps while it writes its journal. The next one's storage fails, and only the third can go on."""
    life = Life(made(here))
    first = mirror_of(where, here, stopping)
    first._owner.claim()
    first._copy()
    life.trial()
    life.close()
    put, woken = Objects.put, list[str]()

    def away(self: Objects, name: str, content: Any, size: int | None = None) -> None:
        if name.startswith(SEARCH_JOURNAL) or name == CUT:
            raise OSError("slow down")
        put(self, name, content, size)

    def late(self: Objects, name: str, content: Any, size: int | None = None) -> None:
        if name == SEARCH_JOURNAL and not woken:
            woken.append(name)
            time.sleep(0.8)
            folder = bring(where, "wave", tmp_path / "other")
            with monkeypatch.context() as patched:
                patched.setattr(Objects, "put", away)
                other = mirror_of(where, folder, stopping)
                with pytest.raises(StorageError, match="slow down"):
                    other.start()
                if ends == "given up":
                    other._give_up()
            if ends == "killed":  # as a process of this machine that is gone
                there = json.loads((where / "wave").get(OWNER))
                put(where / "wave", OWNER, json.dumps(there | {"process": 2**22 + 1}).encode())
            gone_on(where, tmp_path / "third", stopping, trials=3)
        put(self, name, content, size)

    monkeypatch.setattr(Objects, "put", late)
    with pytest.raises(TakenOver):
        first._copy()
    copy = read_copy(where / "wave")
    assert woken and copy is not None and copy.journals
    assert "took_over" not in json.loads((where / "wave").get(OWNER)), "the third one's copy has settled it"
    assert check_can_be_gone_on_from(where, tmp_path / "fourth") == 3


def test_the_name_stays_fresh_while_a_long_copy_is_made(
    where: Objects, here: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PERIOD, "0.6")
    life, mirror = Life(made(here)), mirror_of(where, here, stopping)
    mirror._owner.claim()
    for number in range(10):
        (here / f"page-{number}.html").write_text("mine")
    put, refused = Objects.put, list[str]()

    def slowly(self: Objects, name: str, content: Any, size: int | None = None) -> None:
        put(self, name, content, size)
        if name.startswith("page-"):
            time.sleep(0.25)
            with pytest.raises(StorageError, match="is being run by") as caught:
                Owner(where / "wave", 0.6).claim()
            refused.append(str(caught.value))

    monkeypatch.setattr("xlstm_tune.storage.objects._AT_ONCE", 1)
    monkeypatch.setattr(Objects, "put", slowly)
    mirror._copy()
    assert len(refused) == 10
    life.close()


def test_a_new_search_whose_storage_listed_nothing_at_first_leaves_the_other_there(
    where: Objects, here: Path, tmp_path: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(where, here, stopping).close()
    before, names, calls = held(where), Objects.names, [0]
    mirror = mirror_of(where, made(tmp_path / "new" / "wave"), stopping)

    def listed(self: Objects, below: str = "") -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise OSError("Stale file handle")
        return {} if calls[0] == 1 else names(self, below)

    with monkeypatch.context() as patched:
        patched.setattr(Objects, "names", listed)
        with pytest.raises(StorageError, match="Stale file handle"):
            mirror.start()
    assert held(where) == before


@pytest.mark.parametrize("earlier", [False, True])
def test_a_copy_that_another_driver_has_written_is_not_cleared(
    earlier: bool, where: Objects, here: Path, tmp_path: Path, stopping: Stopping
) -> None:
    """earlier: it is of a program that wrote no generation."""
    copied(where, here, stopping).close()
    objects = where / "wave"
    if earlier:
        copy = read_copy(objects)
        assert copy is not None
        objects.put(CUT, json.dumps({"version": 1, "cut": copy.cut}).encode())
    mirror = mirror_of(where, made(tmp_path / "new" / "wave"), stopping)
    mirror._owner.claim()
    before = held(where)
    mirror._clear()
    assert held(where) == before


def test_each_copy_is_another_generation_where_none_can_be_noted(
    where: Objects, here: Path, stopping: Stopping
) -> None:
    life, mirror = Life(made(here)), mirror_of(where, here, stopping)
    mirror._owner.claim()
    mirror._copy()
    (here / f".{KEPT_AT}.{os.getpid()}.tmp").mkdir()  # as on a disk that is full, nothing can be written there
    numbers = list[int]()
    for _ in range(2):
        life.trial()
        mirror._copy()
        copy = read_copy(where / "wave")
        assert copy is not None and copy.generation is not None
        numbers.append(copy.generation.number)
    assert numbers == [4, 6]
    life.close()


def test_a_search_that_was_killed_before_its_first_copy_can_be_resumed(
    where: Objects, here: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(here)
    mirror = mirror_of(where, here, stopping)
    monkeypatch.setattr(mirror, "_copy", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        mirror.start()
    assert set((where / "wave").names()) == {OWNER}
    assert bring(where, "wave", here.parent) == here
    with pytest.raises(StorageError, match=r"holds no whole copy .* where it was begun, or remove .*/owner\.json"):
        bring(where, "wave", here.parent.parent / "elsewhere")
    time.sleep(0.8)
    again = mirror_of(where, here, stopping)
    again.start()
    assert again.finish() is None and read_copy(where / "wave") is not None
    shutil.rmtree(here)
    assert bring(where, "wave", here.parent) == here
