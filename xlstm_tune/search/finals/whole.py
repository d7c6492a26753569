"""What the end of a search leaves of its winner, and whether it is all there."""

from __future__ import annotations

import os
from pathlib import Path

from xlstm_tune.errors import CheckpointError, StorageError
from xlstm_tune.layout import ABOUT, CHAMPION, WEIGHTS
from xlstm_tune.predict.champion import DamagedChampion, load_champion
from xlstm_tune.predict.make import find_winner
from xlstm_tune.results import predicted, read
from xlstm_tune.search.finals.finalists import TEST
from xlstm_tune.training.checkpoint import load_metadata


def winner_is_whole(folder: Path, objective: str) -> bool:
    """Whether its test figures are there, and of what its weights could make anew nothing is lacking or damaged: its
    predictions, and the champion, where there is one. True where there is no winner."""
    winner = find_winner(folder, objective)
    if winner is None:
        return True
    number = winner.row["trial"]
    if number not in read(folder, "scores")["trial"].to_pylist():
        return False
    try:
        load_metadata(winner.folder(folder) / WEIGHTS)
    except CheckpointError:
        return True
    if not any(trial == number and part == TEST for trial, _, part in predicted(folder)):
        return False
    try:
        if os.path.exists(folder / CHAMPION / ABOUT):
            load_champion(folder / CHAMPION)
    except DamagedChampion:
        return False
    except StorageError:  # of a newer program, or closed to us: predict says so
        pass
    return True
