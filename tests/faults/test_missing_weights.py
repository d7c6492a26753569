"""Weights of a finalist that somebody removed or the disk damaged: all else of the search stands, and it can end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fault_search import NAME, Search, write_search

from xlstm_tune.layout import ABOUT, CHAMPION, WEIGHTS, trial_folder
from xlstm_tune.report.leaderboard import build_leaderboard
from xlstm_tune.results import read

pytestmark = pytest.mark.slow


def scored(folder: Path) -> set[int]:
    return set(read(folder, "scores")["trial"].to_pylist())


def test_a_search_ends_without_the_weights_of_its_winner_and_judges_it_when_they_are_back(tmp_path: Path) -> None:
    search = Search(tmp_path / "searches")
    search.run(
        str(write_search(tmp_path, training={"epochs": 2}, space={"model.family": {"choice": ["lstm", "slstm"]}}))
    )
    winner = build_leaderboard(search.folder, "val_rmse").winner
    assert winner is not None and winner.trial is not None
    weights, kept = trial_folder(search.folder, winner.trial) / WEIGHTS, tmp_path / "kept"
    shutil.copy(weights, kept)
    weights.write_bytes(kept.read_bytes()[:50])
    again = search.run("--resume", NAME, "--refit")
    assert "is finished" in again and "note: the champion stays that of before: " in again
    for place in ("results", CHAMPION):
        shutil.rmtree(search.folder / place)  # all of it is made anew, but what takes these weights
    for gone in (False, True):
        if gone:
            weights.unlink()
        said = " ".join(search.run("--resume", NAME).split())
        assert f"note: trial {winner.trial} has no test figures: " in said and "bring it back and resume" in said
        assert f"(trial {winner.trial}) won" in said and "is finished" not in said
        assert scored(search.folder) == {0, 1} - {winner.trial} and not (search.folder / CHAMPION).exists()
    shutil.copy(kept, weights)
    said = search.run("--resume", NAME)
    assert "no test figures" not in said and scored(search.folder) == {0, 1}
    assert (search.folder / CHAMPION / ABOUT).exists()
    assert "is finished" in search.run("--resume", NAME)
