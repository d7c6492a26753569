"""What is said of a winner that was trained again."""

from __future__ import annotations

from pathlib import Path

from xlstm_tune.search.finals.champion import _against


def test_a_winner_that_is_worse_when_trained_again_is_called_worse_with_the_way_back() -> None:
    said = _against(71.06, 72.36, Path("searches/cases/champion"))
    assert said.startswith("That is worse by 1.8 % than the 71.06 that it has as it was searched.")
    assert "remove searches/cases/champion: the next python -m xlstm_tune.predict makes it anew" in said


def test_a_winner_that_is_better_when_trained_again_has_the_former_figure_beside_it() -> None:
    assert _against(2.0, 1.0, Path("champion")) == "As it was searched it has 2.000."


def test_a_winner_that_had_no_error_at_all_is_told_without_a_share_of_it() -> None:
    assert _against(0.0, 0.1, Path("champion")).startswith(
        "That is worse than the 0.000 that it has as it was searched."
    )
