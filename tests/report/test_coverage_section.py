"""What a page says of how often intervals and quantiles held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from report_tables import write_search

from xlstm_tune.report.blocks import Section, Sentences, Table
from xlstm_tune.report.record import read_record
from xlstm_tune.report.sections.coverage import coverage
from xlstm_tune.results import ResultsWriter

HELD = [("interval", 0.5, 0.44, 2.0), ("interval", 0.9, 0.831, 7.25), ("interval", 0.99, 0.98, 12.0)]


def section(folder: Path, rows: list[tuple[str, float, float, float | None]], trial: int = 0) -> Section | None:
    write_search(folder)
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
    assert isinstance(said, Sentences) and said.texts[0].startswith("They hold less often than promised")


def test_quantiles_stand_below_and_intervals_that_held_need_no_word(tmp_path: Path) -> None:
    made = section(
        tmp_path, [("interval", 0.9, 0.89, 7.0), ("quantile", 0.1, 0.073, None), ("quantile", 0.9, 0.8, None)]
    )
    assert made is not None
    _, quantiles, said = made.blocks
    assert texts(quantiles) == [["0.1", "7.3 %"], ["0.9", "80 %"]]
    assert isinstance(said, Sentences) and [text.partition(",")[0] for text in said.texts] == ["Windows overlap"]
    made = section(tmp_path / "wide", [("interval", 0.5, 0.62, 7.0)])
    assert made is not None and isinstance(made.blocks[-1], Sentences)
    assert made.blocks[-1].texts[0].startswith("They hold more often than promised")


def test_nothing_is_said_where_nothing_was_measured(tmp_path: Path) -> None:
    assert section(tmp_path / "none", []) is None
    assert section(tmp_path / "other", HELD, trial=3) is None, "of another trial"
    made = section(tmp_path / "few", [("quantile", 0.5, 0.4, None)])
    assert made is not None and made.lead and len(made.blocks) == 2
