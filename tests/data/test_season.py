"""Notes on the season of a forecast's series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.season import stride_notes
from xlstm_tune.data.table import load_table


def strided(stride: int) -> DataConfig:
    raw = {"source": "x.csv", "target": "y", "lookback": 8, "horizon": 1, "stride": stride}
    return DataConfig.parse(raw, "data")


@pytest.mark.parametrize(
    ("stride", "season", "where", "remedy"),
    [
        (8, 4, "at the same point of the season of 4 steps", 9),
        (12, 24, "at 2 of the 24 steps of the season", 13),
        (3, 24, "at 8 of the 24 steps of the season", 5),
        (2, 2, "at the same point of the season of 2 steps", 3),
    ],
)
def test_a_stride_that_hides_part_of_the_season_is_told_of(stride: int, season: int, where: str, remedy: int) -> None:
    (note,) = stride_notes(strided(stride), season)
    assert note.startswith(f"with data.stride {stride} every training window of a series begins {where}, while")
    assert note.endswith(f"data.stride {remedy} would show them all")


@pytest.mark.parametrize(("stride", "season"), [(9, 4), (2, 4), (2, 24), (13, 24), (1, 7), (8, 1)])
def test_a_stride_that_shows_the_season_needs_no_word(stride: int, season: int) -> None:
    assert stride_notes(strided(stride), season) == []


def notes(folder: Path, weekly: float, **data: Any) -> list[str]:
    """Of twelve weeks of hours with a daily wave, and on weekends so much less."""
    hours = np.arange(12 * 168)
    rng = np.random.default_rng(0)
    y = 10 + 3 * np.sin(hours * 2 * np.pi / 24) - weekly * (hours // 24 % 7 >= 5) + 0.1 * rng.normal(size=len(hours))
    stamps = np.datetime64("2023-01-02T00:00") + hours.astype("timedelta64[h]")
    text = "at,y\n" + "".join(f"{stamp},{value:.4f}\n" for stamp, value in zip(stamps, y, strict=True))
    path = folder / "load.csv"
    path.write_text(text)
    raw = {"source": str(path), "time": {"column": "at"}, "target": "y", "lookback": 24, "horizon": 6}
    config = DataConfig.parse(raw | data, "data")
    return [note for note in prepare(load_table(config), config).notes if "data.season" in note]


def test_hours_that_follow_the_week_are_told_of(tmp_path: Path) -> None:
    (note,) = notes(tmp_path, weekly=5.0)
    assert "those of a week before more than those of a day before" in note and "data.season: 168 would" in note
    assert notes(tmp_path, weekly=5.0, season=168) == [] == notes(tmp_path, weekly=5.0, season=24), "the user chose"
    assert notes(tmp_path, weekly=0.0) == [], "a day says as much"
    assert notes(tmp_path, weekly=5.0, split={"validation": 1400, "test": 400}) == [], "too little to tell"
