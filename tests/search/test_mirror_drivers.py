"""Several drivers of one search that is kept at a URI, one after the other: none undoes what another has done."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_mirror import Life, check_can_be_gone_on_from, copied, made

from xlstm_tune.errors import SpecError, StorageError
from xlstm_tune.layout import CHAMPION, OPTUNA_JOURNAL, PAGE, SEARCH_JOURNAL
from xlstm_tune.lines import cut_torn_line
from xlstm_tune.search.persistence.journal import read_journal
from xlstm_tune.search.persistence.mirror import PERIOD, Mirror, mirrored
from xlstm_tune.search.persistence.owner import TakenOver
from xlstm_tune.search.persistence.store import Remote
from xlstm_tune.search.stopping import Stopping
from xlstm_tune.storage.copy import CUT, KEPT_AT, OWNER, bring, read_copy
from xlstm_tune.storage.objects import Objects


def held(where: Objects) -> dict[str, bytes]:
    """What the copy holds, without whose it is."""
    objects = where / "wave"
    return {name: objects.get(name) for name in objects.names() if name != OWNER}


def cut_of(objects: Objects) -> dict[str, int]:
    """How much of the journals of a copy counts."""
    copy = read_copy(objects)
    assert copy is not None
    return copy.cut


def mirror_of(where: Objects, folder: Path, stopping: Stopping) -> Mirror:
    return Mirror(Remote(where, "wave", folder), stopping, print)


def fallen_asleep(where: Objects, folder: Path, stopping: Stopping) -> tuple[Life, Mirror]:
    """A search whose driver has copied it once, so long ago that its name has grown old."""
    life, mirror = Life(made(folder)), mirror_of(where, folder, stopping)
    mirror._owner.claim()
    mirror._copy()
    time.sleep(0.8)
    return life, mirror


def gone_on(where: Objects, root: Path, stopping: Stopping, trials: int = 1) -> Path:
    """Another machine goes on with the search, to its end, which comes behind the journal's last line."""
    folder = bring(where, "wave", root)
    with mirrored(Remote(where, "wave", folder), stopping, print):
        if trials:
            life = Life(folder)
            life.number = max(read_journal(folder).trials, default=-1)
            for _ in range(trials):
                life.trial()
            life.close()
        (folder / CHAMPION).mkdir(exist_ok=True)
        (folder / CHAMPION / "champion.json").write_text(root.name)
        (folder / PAGE).write_text(root.name)
    return folder


def failing(monkeypatch: pytest.MonkeyPatch, method: str, call: int) -> None:
    """One call of a storage's method fails, as one that is asked too often."""
    real, calls = getattr(Objects, method), [0]

    def fail_once(*given: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise OSError("SlowDown: please reduce your request rate")
        return real(*given)

    monkeypatch.setattr(Objects, method, fail_once)


@pytest.mark.parametrize(("method", "call"), [("names", 1), ("get", 1), ("get", 2), ("put", 1), ("put", 4)])
def test_a_resume_that_fails_at_its_start_leaves_the_copy(
    method: str, call: int, where: Objects, here: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(where, here, stopping).close()
    before = held(where)
    with monkeypatch.context() as patched:
        failing(patched, method, call)
        with pytest.raises(StorageError, match="SlowDown"):
            mirror_of(where, here, stopping).start()
    after = held(where)
    assert {name: after.get(name) for name in before if name != CUT} == {
        name: content for name, content in before.items() if name != CUT
    }
    assert bring(where, "wave", here.parent) == here


def test_a_resume_leaves_the_copy_of_a_storage_that_showed_nothing_for_a_moment(
    where: Objects, here: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(where, here, stopping).close()
    before, mirror, names = held(where), mirror_of(where, here, stopping), Objects.names
    with monkeypatch.context() as patched:
        failing(patched, "put", 2)
        patched.setattr(Objects, "names", lambda *given: {})  # as a folder that is not mounted yet
        with pytest.raises(StorageError, match="SlowDown"):
            mirror.start()
    assert Objects.names is names and held(where) == before


@pytest.mark.parametrize(("method", "call"), [("names", 1), ("names", 2), ("put", 1), ("put", 2), ("put", 5)])
def test_a_new_search_that_cannot_be_copied_leaves_nothing(
    method: str, call: int, where: Objects, here: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    Life(made(here)).close()
    with monkeypatch.context() as patched:
        failing(patched, method, call)
        with pytest.raises(StorageError, match=r"cannot be copied to .* mend that"):
            mirror_of(where, here, stopping).start()
    assert not held(where)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_driver_that_slept_through_a_takeover_leaves_what_the_other_has_done(
    earlier: bool, where: Objects, here: Path, tmp_path: Path, stopping: Stopping
) -> None:
    """earlier: the other one is of a program that removed its name in the end, and wrote no generation."""
    life, asleep = fallen_asleep(where, here, stopping)
    gone_on(where, tmp_path / "other", stopping)
    objects = where / "wave"
    if earlier:
        objects.remove([OWNER])
        objects.put(CUT, json.dumps({"version": 1, "cut": cut_of(objects)}).encode())
    after = held(where)
    life.trial()
    with pytest.raises(TakenOver, match="has been taken over by"):
        asleep._copy()
    asleep._thread.start()
    assert "has been taken over by" in (asleep.finish() or "")
    assert held(where) == after
    life.close()


def test_a_driver_that_falls_asleep_while_it_looks_at_its_folder_asks_again(
    where: Objects, here: Path, tmp_path: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    life, asleep = fallen_asleep(where, here, stopping)
    life.trial()
    taken, after = asleep._taken, dict[str, bytes]()

    def sleeps(below: str) -> Any:
        if not after:
            gone_on(where, tmp_path / "other", stopping)
            after.update(held(where))
        return taken(below)

    monkeypatch.setattr(asleep, "_taken", sleeps)
    with pytest.raises(TakenOver):
        asleep._copy()
    assert after and held(where) == after
    life.close()


def test_a_name_that_is_written_late_does_not_make_the_copy_its_own(
    where: Objects, here: Path, tmp_path: Path, stopping: Stopping
) -> None:
    """The driver fell asleep after it had asked whose the search is, and wakes where it writes its name."""
    life, asleep = fallen_asleep(where, here, stopping)
    gone_on(where, tmp_path / "other", stopping)
    after = held(where)
    asleep._owner.refresh(0.2)
    life.trial()
    with pytest.raises(TakenOver, match=r"has gone on since .* run the same command again"):
        asleep._copy()
    assert held(where) == after
    life.close()


def test_a_resume_of_a_folder_that_was_fetched_before_the_other_driver_ended_is_refused(
    where: Objects, here: Path, tmp_path: Path, stopping: Stopping
) -> None:
    life = Life(made(here))
    with mirrored(Remote(where, "wave", here), stopping, print):
        early = bring(where, "wave", tmp_path / "other")
        life.trial()
        (here / PAGE).write_text("the end")
    after = held(where)
    assert PAGE in after
    with pytest.raises(StorageError, match=r"has gone on since .*; run the same command again$"):
        mirror_of(where, early, stopping).start()
    assert held(where) == after
    assert bring(where, "wave", tmp_path / "other") == early
    with mirrored(Remote(where, "wave", early), stopping, print):
        pass
    assert {name: content for name, content in held(where).items() if name != CUT} == {
        name: content for name, content in after.items() if name != CUT
    }
    life.close()


def test_what_came_behind_the_journals_last_line_is_fetched_too(
    where: Objects, here: Path, tmp_path: Path, stopping: Stopping
) -> None:
    copied(where, here, stopping).close()
    other = gone_on(where, tmp_path / "other", stopping, trials=0)
    assert (other / SEARCH_JOURNAL).read_bytes() == (here / SEARCH_JOURNAL).read_bytes()
    assert bring(where, "wave", here.parent) == here and (here / PAGE).read_text() == "other"
    for root in ("here", "other"):  # each has what the other did last
        gone_on(where, tmp_path / root, stopping, trials=0)
        assert held(where)[f"{CHAMPION}/champion.json"] == root.encode()
    unchanged = here.stat().st_ino
    assert bring(where, "wave", here.parent) == here and here.stat().st_ino != unchanged
    unchanged = here.stat().st_ino
    assert bring(where, "wave", here.parent) == here and here.stat().st_ino == unchanged, "it has all of it"


def test_a_folder_that_was_fetched_while_a_copy_was_made_does_not_count_as_all_of_it(
    where: Objects, here: Path, tmp_path: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(where, here, stopping).close()
    (here / PAGE).write_text("the end")
    mirror = mirror_of(where, here, stopping)
    mirror._owner.claim()
    put_all = mirror._put_all

    def fetched_before(*given: Any) -> None:
        bring(where, "wave", tmp_path / "other")
        put_all(*given)

    monkeypatch.setattr(mirror, "_put_all", fetched_before)
    mirror._copy()
    folder = bring(where, "wave", tmp_path / "other")
    assert (folder / PAGE).read_text() == "the end"


@pytest.mark.parametrize("fails", range(1, 22))
def test_the_folder_of_a_driver_that_broke_off_at_any_write_is_kept(
    fails: int, where: Objects, here: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(where, here, stopping).close()
    (here / PAGE).write_text("the end, which was not copied")
    put, calls = Objects.put, [0]

    def breaks_off(self: Objects, name: str, content: Any, size: int | None = None) -> None:
        calls[0] += 1
        if calls[0] > fails:
            raise OSError("away")
        put(self, name, content, size)

    with monkeypatch.context() as patched:
        patched.setattr("xlstm_tune.storage.objects._AT_ONCE", 1)
        patched.setattr(Objects, "put", breaks_off)
        mirror = mirror_of(where, here, stopping)
        for _ in range(2):  # one may break off, and be made again from where it did
            try:
                mirror._owner.claim()
                mirror._copy()
            except OSError:
                calls[0] -= 2
        (here / PAGE).write_text("and more of it")
    unchanged = here.stat().st_ino
    assert bring(where, "wave", here.parent) == here and here.stat().st_ino == unchanged
    assert (here / PAGE).read_text() == "and more of it"
    monkeypatch.setattr("xlstm_tune.search.persistence.owner._dead", lambda *who: True)
    with mirrored(Remote(where, "wave", here), stopping, print):
        pass
    assert held(where)[PAGE] == b"and more of it"


def test_a_copy_of_an_earlier_program_is_gone_on_from_as_before(
    where: Objects, here: Path, tmp_path: Path, stopping: Stopping
) -> None:
    copied(where, here, stopping).close()
    objects = where / "wave"
    objects.put(CUT, json.dumps({"version": 1, "cut": cut_of(objects)}).encode())
    objects.remove([OWNER])
    (here / KEPT_AT).write_text(json.dumps({"storage": where.shown}))
    (here / PAGE).write_text("not copied")
    assert bring(where, "wave", here.parent) == here and (here / PAGE).read_text() == "not copied"
    old = {"who": "process 1 on gone", "host": "gone", "process": 1, "period": 0.01, "token": "0"}
    objects.put(OWNER, json.dumps(old).encode())
    time.sleep(0.1)
    with mirrored(Remote(where, "wave", here), stopping, print):
        pass
    assert held(where)[PAGE] == b"not copied"
    assert check_can_be_gone_on_from(where, tmp_path / "other") == 1


def test_other_commands_leave_the_folder_of_a_driver_that_runs_beside_them(
    where: Objects, here: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PERIOD, "0.01")
    monkeypatch.setattr("xlstm_tune.search.persistence.mirror._SHARE", 0)
    life = Life(made(here))
    life.trial()
    with mirrored(Remote(where, "wave", here), stopping, print):
        unchanged = here.stat().st_ino
        for _ in range(200):
            assert bring(where, "wave", here.parent).stat().st_ino == unchanged
    life.close()


def lose_folder(folder: Path) -> None:
    while folder.exists():  # a driver may be writing there
        shutil.rmtree(folder, ignore_errors=True)


def lose_journal(folder: Path) -> None:
    (folder / SEARCH_JOURNAL).unlink()


def lose_study(folder: Path) -> None:
    (folder / OPTUNA_JOURNAL).write_bytes((folder / OPTUNA_JOURNAL).read_bytes()[:20])


@pytest.mark.parametrize("lose", [lose_folder, lose_journal, lose_study])
@pytest.mark.parametrize("error", [None, SpecError("what a folder that is gone leads to")])
def test_a_folder_that_is_lost_while_the_search_runs_is_still_at_the_storage(
    error: SpecError | None,
    lose: Callable[[Path], None],
    where: Objects,
    here: Path,
    tmp_path: Path,
    stopping: Stopping,
) -> None:
    life, said = Life(made(here)), list[str]()
    store = Remote(where, "wave", here)
    with pytest.raises(ValueError), mirrored(store, stopping, said.append):
        life.trial()
        life.results.close()
        life.spool.close()
        deadline = time.monotonic() + 60
        while cut_of(store.objects) != {name: (here / name).stat().st_size for name in cut_of(store.objects)}:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        before, cut = held(where), cut_of(store.objects)
        life.journal.close()
        lose(here)
        deadline = time.monotonic() + 60
        while not said and time.monotonic() < deadline:  # the next copy notices it
            time.sleep(0.05)
        raise error or ValueError
    # One more copy may have been made before the loss.
    assert held(where) | {CUT: b""} == before | {CUT: b""} and cut_of(store.objects) == cut and before[SEARCH_JOURNAL]
    assert any("has lost what was copied to" in one for one in said), said
    assert json.loads(store.objects.get(OWNER))["free"]
    assert check_can_be_gone_on_from(where, tmp_path / "other") == 1


@pytest.mark.parametrize("begun", [False, True])
def test_a_search_that_is_refused_before_its_first_trial_leaves_nothing(
    begun: bool, where: Objects, here: Path, stopping: Stopping
) -> None:
    life = Life(made(here))
    life.results.close()
    life.spool.close()
    with pytest.raises(SpecError), mirrored(Remote(where, "wave", here), stopping, print):
        if begun:
            life.journal.began([0], [{}])
            time.sleep(1.0)
        life.journal.close()
        lose_folder(here)
        here.mkdir()
        (here / KEPT_AT).touch()  # the copy was under way while the folder was removed
        raise SpecError("refused")
    assert bool((where / "wave").names()) == begun and here.exists() == begun


def test_a_resume_that_is_refused_leaves_the_copy(where: Objects, here: Path, stopping: Stopping) -> None:
    Life(made(here)).close()
    with mirrored(Remote(where, "wave", here), stopping, print):
        pass
    with pytest.raises(SpecError), mirrored(Remote(where, "wave", here), stopping, print):
        before = held(where)
        lose_folder(here)
        raise SpecError("refused")
    assert before and held(where) == before


def test_half_a_line_at_the_journals_end_is_not_taken_for_copied(
    where: Objects, here: Path, tmp_path: Path, stopping: Stopping
) -> None:
    life = Life(made(here))
    life.trial()
    life.close()
    with (here / SEARCH_JOURNAL).open("a") as file:
        file.write('{"e": "epoch", "t": 1')
    mirror = mirror_of(where, here, stopping)
    mirror.start()
    cut_torn_line(here / SEARCH_JOURNAL)  # as a driver does that opens it
    assert mirror.finish() is None
    assert cut_of(where / "wave")[SEARCH_JOURNAL] == (here / SEARCH_JOURNAL).stat().st_size
    assert check_can_be_gone_on_from(where, tmp_path / "other") == 1
