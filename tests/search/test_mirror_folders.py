"""A folder here of the same name as a search at a URI: taken for its own only where it is, and never thrown away."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from test_mirror import Life, check_can_be_gone_on_from, copied, made
from test_mirror_drivers import gone_on, held, mirror_of

from xlstm_tune.errors import StorageError
from xlstm_tune.layout import OPTUNA_JOURNAL, SEARCH_JOURNAL, SPEC
from xlstm_tune.results import read
from xlstm_tune.search.persistence.journal import read_journal
from xlstm_tune.search.persistence.mirror import mirrored
from xlstm_tune.search.persistence.store import Remote
from xlstm_tune.search.sampling.duplicates import TrialEnd
from xlstm_tune.search.stopping import Stopping
from xlstm_tune.storage.copy import KEPT_AT, bring, kept_at
from xlstm_tune.storage.objects import Objects


def just_begun(where: Objects, folder: Path, stopping: Stopping) -> None:
    """A search that has been copied before its first line."""
    mirror = mirror_of(where, made(folder), stopping)
    mirror._owner.claim()
    mirror._copy()
    mirror._owner.give_up()


@pytest.mark.parametrize("of_an_earlier_search", [False, True])
def test_a_folder_of_another_search_is_not_taken_for_that_of_one_just_begun(
    of_an_earlier_search: bool, where: Objects, here: Path, tmp_path: Path, stopping: Stopping
) -> None:
    """of_an_earlier_search: which was kept there under the name, and has been removed."""
    if of_an_earlier_search:
        copied(where, here, stopping).close()
        shutil.rmtree(tmp_path / "bucket" / "wave")
    else:
        life = Life(made(here))
        life.trial()
        life.close()
    just_begun(where, tmp_path / "new" / "wave", stopping)
    before, noted = held(where), kept_at(here)
    with pytest.raises(StorageError, match="have gone different ways; rename the folder"):
        bring(where, "wave", here.parent)
    assert kept_at(here) == noted and held(where) == before and len(read_journal(here).trials) == 1


def test_folders_of_a_search_just_begun_are_its_own(
    where: Objects, here: Path, tmp_path: Path, stopping: Stopping
) -> None:
    just_begun(where, here, stopping)
    assert bring(where, "wave", here.parent) == here
    other = bring(where, "wave", tmp_path / "other")
    with mirrored(Remote(where, "wave", here), stopping, print):
        pass
    for folder in (here, other):
        assert bring(where, "wave", folder.parent) == folder


def test_a_folder_that_is_no_search_is_not_replaced(
    where: Objects, here: Path, tmp_path: Path, stopping: Stopping
) -> None:
    life = copied(where, here, stopping)
    life.trial()
    life.close()
    (here / SPEC).unlink()
    mine = tmp_path / "other" / "wave"
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("mine")
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "wave").write_text("a file")
    for root in (here.parent, tmp_path / "other", tmp_path / "third"):
        with pytest.raises(StorageError, match=r"wave lies where the search at .* rename it and try again$"):
            bring(where, "wave", root)
    assert len(read_journal(here).trials) == 2 and (mine / "notes.txt").read_text() == "mine"
    (mine / "notes.txt").unlink()
    assert bring(where, "wave", tmp_path / "other") == mine, "an empty one is"


def lose_study(folder: Path) -> None:
    (folder / OPTUNA_JOURNAL).unlink()


def lose_half_of_the_study(folder: Path) -> None:
    (folder / OPTUNA_JOURNAL).write_bytes((folder / OPTUNA_JOURNAL).read_bytes()[:20])


def lose_tables(folder: Path) -> None:
    shutil.rmtree(folder / "results")


LOSSES = pytest.mark.parametrize("lose", [lose_study, lose_half_of_the_study, lose_tables])


@LOSSES
def test_what_was_lost_before_a_resume_is_fetched(
    lose: Callable[[Path], None], where: Objects, here: Path, tmp_path: Path, stopping: Stopping
) -> None:
    life = copied(where, here, stopping, trials=4)
    life.close()
    gone_on(where, here.parent, stopping, trials=0)
    before = held(where)
    lose(here)
    assert bring(where, "wave", here.parent) == here
    with mirrored(Remote(where, "wave", here), stopping, print):
        pass
    after = held(where)
    assert {name: after[name] for name in before if name != "copy.json"} == {
        name: content for name, content in before.items() if name != "copy.json"
    }
    assert check_can_be_gone_on_from(where, tmp_path / "other") == 4


def begun_again(where: Objects, folder: Path, stopping: Stopping) -> None:
    """A search of four trials, and what its driver wrote behind its last copy before it was killed."""
    life = copied(where, folder, stopping, trials=4)
    life.journal.closed("interrupted")
    life.close()
    with mirrored(Remote(where, "wave", folder), stopping, print):
        pass
    life = Life(folder)
    life.journal.ended(TrialEnd(3, "x", "completed", None, 1.0, {}))
    life.close()


@pytest.mark.parametrize("noted", [True, False])
@LOSSES
def test_what_a_folder_that_is_ahead_has_lost_is_fetched_and_its_journal_stays(
    lose: Callable[[Path], None], noted: bool, where: Objects, here: Path, tmp_path: Path, stopping: Stopping
) -> None:
    """noted: it says where its copy lies."""
    begun_again(where, here, stopping)
    journal = (here / SEARCH_JOURNAL).read_bytes()
    lose(here)
    if not noted:
        (here / KEPT_AT).unlink()
    assert bring(where, "wave", here.parent) == here
    assert (here / SEARCH_JOURNAL).read_bytes() == journal and read_journal(here).trials[3].end is not None
    assert not [path for path in here.iterdir() if path.name.startswith(".")]
    assert read(here, "trials").num_rows == 4
    with mirrored(Remote(where, "wave", here), stopping, print):
        pass
    assert check_can_be_gone_on_from(where, tmp_path / "other") == 4


@LOSSES
def test_trials_behind_the_copy_are_not_lost_with_what_was_copied(
    lose: Callable[[Path], None], where: Objects, here: Path, tmp_path: Path, stopping: Stopping
) -> None:
    """What the copy never had of a study its driver makes anew from the journal, as of the tables."""
    begun_again(where, here, stopping)
    life = Life(here)
    life.number = 3
    life.trial()
    life.close()
    lose(here)
    journal = (here / SEARCH_JOURNAL).read_bytes()
    assert bring(where, "wave", here.parent) == here
    assert read(here, "trials").num_rows == (4 if lose is lose_tables else 5)
    assert (here / OPTUNA_JOURNAL).exists() and (here / SEARCH_JOURNAL).read_bytes() == journal


@pytest.mark.parametrize("lose", [lose_study, lose_tables])
def test_what_is_lost_at_the_storage_too_is_told(
    lose: Callable[[Path], None], where: Objects, here: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun_again(where, here, stopping)
    lose(here)
    before = sorted(path.relative_to(here) for path in here.rglob("*"))
    if lose is lose_study:
        (where / "wave").remove([OPTUNA_JOURNAL])
    else:
        monkeypatch.setattr(Objects, "fetch", lambda *given: (_ for _ in ()).throw(OSError("away")))
    with pytest.raises(StorageError, match=r"optuna\.journal is shorter than what|cannot be fetched .*away"):
        bring(where, "wave", here.parent)
    assert sorted(path.relative_to(here) for path in here.rglob("*")) == before, "all of it or nothing"


def test_a_study_that_is_lost_after_the_folder_was_found_is_not_copied(
    where: Objects, here: Path, stopping: Stopping
) -> None:
    copied(where, here, stopping).close()
    before = held(where)
    lose_study(here)
    with pytest.raises(StorageError, match=r"has lost what was copied to .* which is left as it is"):
        mirror_of(where, here, stopping).start()
    assert held(where) == before


def test_a_storage_that_has_lost_the_copy_is_not_written_anew(
    where: Objects, here: Path, tmp_path: Path, stopping: Stopping
) -> None:
    copied(where, here, stopping).close()
    gone_on(where, tmp_path / "other", stopping)
    (tmp_path / "bucket").rename(tmp_path / "unmounted")
    (tmp_path / "bucket").mkdir()
    for root in (here.parent, tmp_path / "other"):
        with pytest.raises(StorageError, match=rf"no longer holds the copy of .*; mount it .* remove .*{KEPT_AT} to"):
            bring(where, "wave", root)
    (tmp_path / "bucket").rmdir()
    (tmp_path / "unmounted").rename(tmp_path / "bucket")
    assert len(read_journal(bring(where, "wave", here.parent)).trials) == 2
