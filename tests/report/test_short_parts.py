"""Parts that are too short for what is asked of them: nothing is told with certainty that they cannot hold."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from page_tables import figure
from report_tables import forecast_labels, write_search

from xlstm_tune.report.blocks import Table
from xlstm_tune.report.evidence import gather
from xlstm_tune.report.leaderboard import build_leaderboard, verdict
from xlstm_tune.report.record import read_record
from xlstm_tune.report.sections.differences import differences

HORIZON = 7


@pytest.mark.parametrize(
    ("windows", "held"),
    [(5, "less than one independent block"), (13, "about 1 independent block")],
)
def test_windows_that_overlap_in_one_block_tell_nothing(windows: int, held: str, tmp_path: Path) -> None:
    """With horizon 7 two windows share six steps, and their errors are all but one."""
    write_search(tmp_path, labels=forecast_labels(windows), horizon=HORIZON, baselines={"mean": 40.0})
    found = gather(tmp_path)
    assert found is not None and found.differences
    for one in found.differences:
        assert math.isnan(one.low) and math.isnan(one.high) and one.p == one.p_adjusted == 1.0 and not one.told_apart
        assert one.blocks == windows / HORIZON
    assert found.blocks == windows / HORIZON and found.block == 1 and found.resampled.startswith("nothing")
    assert any(f"The test part holds {held} of windows" in note for note in found.notes)


def test_two_blocks_as_long_as_the_overlap_are_told_of(tmp_path: Path) -> None:
    write_search(tmp_path, labels=forecast_labels(2 * HORIZON), horizon=HORIZON, baselines={"mean": 40.0})
    found = gather(tmp_path)
    assert found is not None and found.blocks == 2 and found.block == HORIZON
    assert all(one.low < one.gain < one.high for one in found.differences)


def test_models_that_err_alike_do_not_differ_however_short_the_part(tmp_path: Path) -> None:
    alike = {"lstm": 1.0, "xlstm": 1.0}
    write_search(tmp_path, labels=forecast_labels(2), horizon=HORIZON, families=alike, baselines={}, shared=1.0)
    found = gather(tmp_path)
    assert found is not None
    (one,) = found.differences
    assert one.low == one.gain == one.high == 0 and one.p == 1 and not one.told_apart


def test_page_and_terminal_say_that_such_a_part_is_too_small(tmp_path: Path) -> None:
    write_search(tmp_path, labels=forecast_labels(2), horizon=HORIZON, baselines={"mean": 40.0})
    board = build_leaderboard(tmp_path, "val_rmse")
    assert "The test part is too small to tell the two apart" in verdict(board)
    assert "gain_test_percent_low" not in board.summary()
    made = differences(read_record(tmp_path))
    assert made is not None and "in blocks of" not in made.lead
    drawn = figure(made, "intervals")
    assert "too small for intervals, so none is told apart" in drawn.caption and "Lines" not in drawn.caption
    tables = [block for block in made.blocks if isinstance(block, Table)]
    assert len(tables) == 2, "the winner's pairs, and those of the others"
    rows = [row for table in tables for row in table.rows]
    assert {row.cells[3].text for row in rows} == {"not known"}
    assert {row.cells[5].text for row in rows} == {"not told apart"}
