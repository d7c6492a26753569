"""What is fetched from a copy is on the disk before it takes its place, and what a power cut has emptied is told of."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_mirror import copied
from test_mirror_folders import LOSSES, begun_again

from xlstm_tune.errors import StorageError
from xlstm_tune.layout import OPTUNA_JOURNAL, SEARCH_JOURNAL, SPEC
from xlstm_tune.search.persistence.folder import WEIGHTS, find_folder, trial_folder
from xlstm_tune.search.persistence.store import Remote
from xlstm_tune.search.stopping import Stopping
from xlstm_tune.storage.copy import CUT, KEPT_AT, bring
from xlstm_tune.storage.objects import Objects


class Moves:
    """Of files and folders to a name that is not hidden. early: what was not on the disk then, as long as it was."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.placed: list[str] = []
        self.early: list[str] = []
        self._root, self._synced = root, dict[str, int]()
        self._fsync = os.fsync
        patch.setattr(os, "fsync", self._sync)
        for name in ("rename", "replace"):
            patch.setattr(Path, name, self._checked(getattr(Path, name)))

    def _sync(self, handle: int) -> None:
        self._fsync(handle)
        self._synced[os.readlink(f"/proc/self/fd/{handle}")] = os.fstat(handle).st_size

    def _checked(self, move: Callable[[Path, Any], Path]) -> Callable[[Path, Any], Path]:
        def checked(source: Path, target: Path) -> Path:
            parts = target.relative_to(self._root).parts
            if not any(part.startswith(".") for part in parts):
                self.placed.append("/".join(parts))
                whole = [source, *source.rglob("*")]
                self.early += [str(one) for one in whole if self._synced.get(str(one)) != one.stat().st_size]
            return move(source, target)

        return checked


def test_a_folder_that_is_fetched_is_on_the_disk_before_it_is_there(
    where: Objects, here: Path, tmp_path: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(where, here, stopping, trials=4).close()
    objects = where / "wave"
    objects.put(f"trials/00001/{WEIGHTS}", b"best")
    objects.put(SEARCH_JOURNAL, objects.get(SEARCH_JOURNAL) + b"behind what counts")
    moves = Moves(tmp_path, monkeypatch)
    folder = bring(where, "wave", tmp_path / "other")
    assert moves.placed == ["other/wave"] and not moves.early
    assert moves._synced.keys() >= {str(folder.parent)}, "its name too"
    (trial_folder(folder, 1) / WEIGHTS).unlink()
    bring(where, "wave", folder.parent)
    Remote(where, "wave", here).pull(trial_folder(here, 1))
    assert moves.placed[1:] == [f"other/wave/trials/00001/{WEIGHTS}", f"here/wave/trials/00001/{WEIGHTS}"]
    assert not moves.early


@LOSSES
def test_what_is_brought_back_is_on_the_disk_before_it_is_there(
    lose: Callable[[Path], None],
    where: Objects,
    here: Path,
    tmp_path: Path,
    stopping: Stopping,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun_again(where, here, stopping)
    lose(here)
    moves = Moves(tmp_path, monkeypatch)
    (here / KEPT_AT).unlink()
    bring(where, "wave", here.parent)
    assert len(moves.placed) == 2 and moves.placed[1] == f"here/wave/{KEPT_AT}" and not moves.early
    assert moves.placed[0] in (f"here/wave/{OPTUNA_JOURNAL}", "here/wave/results")


def test_a_search_whose_copy_is_damaged_goes_on_from_its_folder_as_it_is_told(
    where: Objects, here: Path, stopping: Stopping
) -> None:
    copied(where, here, stopping).close()
    (where / "wave").put(CUT, b"")
    with pytest.raises(StorageError, match=rf"{CUT} is damaged .* by removing {KEPT_AT} from the folder"):
        bring(where, "wave", here.parent)
    (here / KEPT_AT).unlink()
    assert find_folder(str(here.parent), "wave") == here and (here / SPEC).is_file()
