"""What the end of a search leaves of its winner, and whether it is all there."""

from __future__ import annotations

from pathlib import Path

from xlstm_tune.errors import StorageError
from xlstm_tune.layout import ABOUT, CHAMPION, WEIGHTS
from xlstm_tune.predict.champion import load_champion
from xlstm_tune.predict.make import find_winner
from xlstm_tune.results import predicted, read
from xlstm_tune.search.finals.finalists import TEST


def winner_is_whole(folder: Path, objective: str) -> bool:
    """Whether nothing of the winner is lacking or damaged that could be made anew: test figures, predictions, and the
    champion, where there is one. True where there is no winner."""
    winner = find_winner(folder, objective)
    if winner is None:
        return True
    number = winner.row["trial"]
    if number not in read(folder, "scores")["trial"].to_pylist():
        return False
    if not (winner.folder(folder) / WEIGHTS).exists():
        return True  # nothing else can be made anew
    if not any(trial == number and part == TEST for trial, _, part in predicted(folder)):
        return False
    try:
        if (folder / CHAMPION / ABOUT).exists():
            load_champion(folder / CHAMPION)
    except StorageError:
        return False
    return True
