"""What a page says of how often intervals and quantiles held."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_tables import forecast_labels, sequence_labels, write_search

from xlstm_tune.predict.champion import LEVELS
from xlstm_tune.predict.intervals import conformal
from xlstm_tune.report.blocks import Section, Sentences, Table
from xlstm_tune.report.record import read_record
from xlstm_tune.report.sections.coverage import _judged_on, beyond_chance, coverage
from xlstm_tune.results import ResultsWriter

HELD = [("interval", 0.5, 0.44, 2.0), ("interval", 0.9, 0.831, 7.25), ("interval", 0.99, 0.98, 12.0)]


def section(
    folder: Path, rows: list[tuple[str, float, float, float | None]], trial: int = 0, **more: Any
) -> Section | None:
    """Of a search with 240 validation windows of 3 steps."""
    write_search(folder, **more)
    with ResultsWriter(folder) as writer:
        names = ("kind", "level", "share", "width")
        writer.coverage([{"trial": trial, "samples": 279} | dict(zip(names, row, strict=True)) for row in rows])
    return coverage(read_record(folder))


def texts(block: Any) -> list[list[str]]:
    assert isinstance(block, Table)
    return [[cell.text for cell in row.cells] for row in block.rows]


def test_the_section_says_what_was_promised_and_what_held(tmp_path: Path) -> None:
    made = section(tmp_path, HELD)
    assert made is not None
    assert made.lead.startswith("83.1 % of the test part's values, of 279 windows, lie inside the 90 % intervals that ")
    table, said = made.blocks
    assert texts(table) == [["50 %", "44 %", "2.000"], ["90 %", "83.1 %", "7.250"], ["99 %", "98 %", "12.00"]]
    assert isinstance(said, Sentences)
    assert [text.partition(",")[0] for text in said.texts] == ["Windows overlap"], "no level is off beyond chance"


def test_quantiles_stand_below_and_intervals_that_held_need_no_word(tmp_path: Path) -> None:
    made = section(
        tmp_path, [("interval", 0.9, 0.89, 7.0), ("quantile", 0.1, 0.073, None), ("quantile", 0.9, 0.8, None)]
    )
    assert made is not None
    _, quantiles, said = made.blocks
    assert texts(quantiles) == [["0.1", "7.3 %"], ["0.9", "80 %"]]
    assert isinstance(said, Sentences) and [text.partition(",")[0] for text in said.texts] == ["Windows overlap"]


def test_levels_that_are_off_beyond_chance_are_named_and_no_cause_is_given(tmp_path: Path) -> None:
    rows = [("interval", 0.5, 0.7, 2.0), ("interval", 0.8, 0.79, 3.0), ("interval", 0.9, 0.75, 4.0)]
    made = section(tmp_path, [*rows, ("interval", 0.95, 0.8, 5.0)])
    assert made is not None and isinstance(made.blocks[-1], Sentences)
    assert made.blocks[-1].texts[:2] == [
        "Intervals of 90 % and 95 % held less often than promised, by more than chance explains in so many windows. "
        "Ask predict for a higher level where that matters.",
        "Intervals of 50 % held more often than promised, by more than chance explains in so many windows.",
    ]


@pytest.mark.parametrize(
    ("validation", "test", "horizon"),
    [(43, 43, 1), (9, 9, 1), (200, 43, 1), (1000, 12, 1), (100, 30, 1), (12, 1000, 1), (120, 120, 12)],
)
def test_levels_of_errors_that_are_alike_are_rarely_off_beyond_chance(validation: int, test: int, horizon: int) -> None:
    """Errors of random walks, each step's the sum of what came until then."""
    named = np.zeros(2)
    for seed in range(300):
        generator = np.random.default_rng(seed)

        def errors(count: int, draw: np.random.Generator = generator) -> np.ndarray:
            steps = np.lib.stride_tricks.sliding_window_view(draw.normal(size=count + horizon - 1), horizon)
            return np.abs(steps.cumsum(axis=1))

        known, new = errors(validation), errors(test)
        rows = []
        for level in LEVELS:
            half = conformal(np.sort(known, axis=0)[..., None], level)[:, 0]
            if not np.isnan(half).any():
                rows.append({"level": level, "share": float((new <= half).mean())})
        named += [bool(levels) for levels in beyond_chance(rows, validation, test, horizon)]
    assert (named < 0.05 * 300).all()


@pytest.mark.parametrize(
    ("series", "times", "horizon", "shared"),
    [(50, 20, 1, 0.7), (50, 20, 1, 1.0), (200, 12, 1, 0.5), (10, 60, 6, 0.5), (3, 100, 1, 0.8)],
)
def test_series_that_shocks_meet_together_are_rarely_off_beyond_chance(
    tmp_path: Path, series: int, times: int, horizon: int, shared: float
) -> None:
    """Of each error's variance a share is common to all series at one time."""
    labels = forecast_labels(times, [f"place={number}" for number in range(series)])
    write_search(tmp_path, labels=labels, horizon=horizon, parts=("validation", "test"))
    record = read_record(tmp_path)
    judged = _judged_on(replace(record, spec={"data": {"time": {"column": "day"}}}), 0)
    assert (judged.validation, judged.test, judged.alike) == (times, times, True)
    assert _judged_on(record, 0) == judged, "without times, series go side by side"
    named = np.zeros(2)
    for seed in range(200):
        generator = np.random.default_rng(seed)
        common = generator.normal(size=(2, times + horizon, 1)) * np.sqrt(shared)
        own = generator.normal(size=(2, times + horizon, series)) * np.sqrt(1 - shared)
        known, new = np.abs(common + own)[:, :times].reshape(2, -1)
        rows = []
        for level in LEVELS:
            half = conformal(np.sort(known)[:, None, None], level).item()
            if not np.isnan(half):
                rows.append({"level": level, "share": float((new <= half).mean())})
        named += [bool(levels) for levels in beyond_chance(rows, judged.validation, judged.test, horizon)]
    assert (named < 0.1 * 200).all()


def test_years_of_counties_are_the_periods_that_chance_counts(tmp_path: Path) -> None:
    rows = [("interval", 0.5, 0.5, 2.0), ("interval", 0.8, 0.55, 4.0)]
    ends = [(name, f"{time[:8]}{int(name.partition(',')[0][-1]) + 1:02d}") for name, time in sequence_labels(9, 12)]
    made = section(tmp_path / "years", rows, task="regression", labels=ends, data={"groups": ["county"]})
    assert made is not None and isinstance(made.blocks[-1], Sentences)
    assert len(made.blocks[-1].texts) == 1, "12 years, however many days they end on"
    made = section(tmp_path / "apart", rows, task="regression", labels=ends)
    assert made is not None and isinstance(made.blocks[-1], Sentences)
    assert "by more than chance explains in so many independent sequences." in made.blocks[-1].texts[0]


@pytest.mark.parametrize(
    ("split", "moments"),
    [({"by": ["time"], "order": "year"}, 12), ({"by": ["time"]}, 1), ({"by": ["county"]}, 108), ({}, 1)],
)
def test_a_day_of_the_year_is_no_moment_where_the_split_goes_by_something_else(
    split: dict[str, Any], moments: int, tmp_path: Path
) -> None:
    ends = [(name, "365") for name, _ in sequence_labels(9, 12)]
    write_search(tmp_path, task="regression", labels=ends, data={"groups": ["county"]})
    spec = {"data": {"time": {"column": "day"}, "split": split}}
    assert _judged_on(replace(read_record(tmp_path), spec=spec), 0).test == moments


def test_a_level_that_shocks_do_not_explain_is_named_with_its_moments(tmp_path: Path) -> None:
    labels = forecast_labels(60, [f"place={number}" for number in range(8)])
    made = section(tmp_path, [("interval", 0.9, 0.6, 2.0)], labels=labels, horizon=1)
    assert made is not None and isinstance(made.blocks[-1], Sentences)
    assert made.blocks[-1].texts == [
        "Intervals of 90 % held less often than promised, by more than chance explains in windows of 60 moments, even "
        "if those of one err alike. Ask predict for a higher level where that matters.",
        "Windows overlap and those of one moment resemble each other, so that these shares scatter more than so many "
        "values suggest.",
    ]


def test_widths_of_targets_that_have_units_of_their_own_are_not_told_together(tmp_path: Path) -> None:
    made = section(tmp_path, HELD, targets=("cases", "beds"))  # a table with widths, as older versions wrote it
    assert made is not None
    table, said = made.blocks
    assert texts(table) == [["50 %", "44 %"], ["90 %", "83.1 %"], ["99 %", "98 %"]]
    assert isinstance(said, Sentences) and "widths are not told, since targets have units of their own" in said.texts[0]


def test_nothing_is_said_where_nothing_was_measured(tmp_path: Path) -> None:
    assert section(tmp_path / "none", []) is None
    assert section(tmp_path / "other", HELD, trial=3) is None, "of another trial"
    made = section(tmp_path / "few", [("quantile", 0.5, 0.4, None)])
    assert made is not None and made.lead and len(made.blocks) == 2
