"""The importance of inputs: figures by hand, how sure they are, and what a page says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_tables import forecast_labels, sequence_labels, write_search

from xlstm_tune.report.blocks import Figure, Table
from xlstm_tune.report.inputs import Inputs, Worth, read_inputs
from xlstm_tune.report.record import read_record
from xlstm_tune.report.sections.inputs import _caption, _table, inputs
from xlstm_tune.results import ResultsWriter

RISES = {"rain": 2.0, "sun": 1.0, "wind": 0.999}
"""Times the RMSE with all inputs as they are."""


def write(folder: Path, labels: list[tuple[str, str]], task: str = "forecast", noise: float = 0.2) -> Path:
    write_search(folder, task, labels=labels)
    rng = np.random.default_rng(1)
    plain = np.square(rng.normal(size=len(labels)))
    series, time = zip(*labels, strict=True)
    with ResultsWriter(folder) as writer:
        for name, times in {None: 1.0, **RISES}.items():
            square = plain if name is None else plain * np.square(times + noise * rng.normal(size=len(labels)))
            square *= plain.mean() * times**2 / square.mean()
            columns = {"trial": [0] * len(labels), "input": [name] * len(labels)}
            writer.importance(columns | {"series": series, "time": time, "square": square})
    return folder


def read(folder: Path, trial: int = 0) -> Inputs | None:
    record = read_record(folder)
    return read_inputs(folder, trial, record.data)


def test_rises_are_shares_of_the_rmse_with_all_inputs(tmp_path: Path) -> None:
    found = read(write(tmp_path, forecast_labels(240)))
    assert found is not None and found.samples == 240 and not found.notes
    assert [one.name for one in found.worth] == ["rain", "sun", "wind"]
    assert [one.rise for one in found.worth] == pytest.approx([100.0, 0.0, -0.1], abs=1e-9)
    for one in found.worth:
        assert one.low < one.rise < one.high
    assert [one.sure for one in found.worth] == [True, False, False] and all(one.tells for one in found.worth)


def test_few_years_tell_nothing(tmp_path: Path) -> None:
    found = read(write(tmp_path, sequence_labels(20, 3), "regression"))
    assert found is not None and not any(one.tells or one.sure for one in found.worth)
    assert "3 values of year" in found.notes[0]
    made = inputs(read_record(tmp_path))
    assert made is not None
    figure, table, _ = made.blocks
    assert isinstance(figure, Figure) and isinstance(table, Table)
    assert "another sequence" in made.lead and "too small to tell any of that from chance" in figure.caption
    assert {row.cells[3].text for row in table.rows} == {"too little to tell"}
    assert [trace["name"] for trace in figure.data] == ["too little to tell"]


def test_one_input_with_few_blocks_says_nothing_of_the_others(tmp_path: Path) -> None:
    """Two of the inputs hang together over the whole part, as one whose errors drift does."""
    labels = forecast_labels(40)
    write_search(tmp_path, labels=labels)
    plain = np.square(np.random.default_rng(0).normal(size=40))
    squares = {None: plain, "rain": 9 * plain + 1, "drift": plain + np.linspace(0, 1, 40) ** 3}
    with ResultsWriter(tmp_path) as writer:
        for name, square in squares.items():
            series, time = zip(*labels, strict=True)
            columns = {"trial": [0] * 40, "input": [name] * 40, "series": series, "time": time}
            writer.importance(columns | {"square": square})
    found = read(tmp_path)
    assert found is not None and found.worth[0].name == "rain" and found.worth[0].sure
    assert [one.tells for one in found.worth] == [True, False]
    made = inputs(read_record(tmp_path))
    assert made is not None and isinstance(made.blocks[0], Figure) and isinstance(made.blocks[1], Table)
    words = "too small to tell 1 of 2 inputs from chance; the other one is more than chance explains."
    assert words in made.blocks[0].caption
    assert [row.cells[3].text for row in made.blocks[1].rows] == ["leant on", "too little to tell"]


SURE, MISLEADS, CHANCE, UNTOLD, IDLE = (
    Worth("sure", 9.0, 5.0, 13.0, True, True),
    Worth("misleads", -9.0, -13.0, -5.0, True, True),
    Worth("chance", 3.0, -1.0, 7.0, False, True),
    Worth("untold", 30.0, 20.0, 40.0, False, False),
    Worth("idle", 0.0, 0.0, 0.0, False, False),
)


@pytest.mark.parametrize(
    ("worth", "words"),
    [
        ([SURE, SURE, CHANCE], "2 of 3 inputs are more than chance explains."),
        ([SURE, MISLEADS, IDLE], "2 of 3 inputs are more than chance explains."),
        ([CHANCE], "None of 1 input is more than chance explains."),
        ([UNTOLD, UNTOLD], "The test part is too small to tell any of that from chance."),
        ([UNTOLD, IDLE], "The test part is too small to tell any of that from chance."),
        ([UNTOLD, SURE], "too small to tell 1 of 2 inputs from chance; the other one is more than chance explains."),
        ([UNTOLD, CHANCE], "small to tell 1 of 2 inputs from chance; the other one is not more than chance explains."),
        ([UNTOLD, *3 * [CHANCE]], "tell 1 of 4 inputs from chance; none of the other 3 is more than chance explains."),
        ([UNTOLD, IDLE, SURE], "tell 1 of 3 inputs from chance; 1 of the other 2 is more than chance explains."),
        (
            [*7 * [UNTOLD], SURE, SURE],
            "tell 7 of 9 inputs from chance; 2 of the other 2 are more than chance explains.",
        ),
    ],
)
def test_the_caption_counts_what_cannot_be_told_by_itself(worth: list[Worth], words: str) -> None:
    assert f"{words} Lines are" in _caption(Inputs(0, 1.0, 40, worth, []))


def test_what_matters_is_found_among_hundreds(tmp_path: Path) -> None:
    labels = forecast_labels(240)
    write_search(tmp_path, labels=labels)
    rng = np.random.default_rng(0)
    plain = np.square(rng.normal(size=240))
    series, time = (list(column) for column in zip(*labels, strict=True))
    with ResultsWriter(tmp_path) as writer:
        for number in range(301):
            name = f"x{number}" if number else None
            square = (4.0 if number == 1 else 1.0) * plain * (1 + 0.1 * rng.normal(size=240))
            columns = {"trial": [0] * 240, "input": [name] * 240, "series": series, "time": time}
            writer.importance(columns | {"square": square if number else plain})
    found = read(tmp_path)
    assert found is not None and [one.name for one in found.worth if one.sure] == ["x1"]


def test_an_input_that_gave_no_numbers_is_named_and_left_out(tmp_path: Path) -> None:
    write(tmp_path, forecast_labels(40))
    series, time = zip(*forecast_labels(40), strict=True)
    with ResultsWriter(tmp_path) as writer:
        columns = {"trial": [0] * 40, "input": ["sun"] * 40, "series": series, "time": time}
        writer.importance(columns | {"square": np.full(40, np.inf)})
    found = read(tmp_path)
    assert found is not None and [one.name for one in found.worth] == ["rain", "wind"]
    assert found.notes[0] == "Shuffled, these led to forecasts that are no numbers: sun."


def test_a_section_of_some_samples_says_of_how_many(tmp_path: Path) -> None:
    write(tmp_path, forecast_labels(240))
    record = read_record(tmp_path)
    made = inputs(replace(record, data={**record.data, "samples": {"test": 900}}))
    assert made is not None and "from 240 of 900 windows, drawn evenly." in made.lead
    worth = [Worth("a", -0.04, -1.0, 1.0, sure=False, tells=True), Worth("b", 0.0, 0.0, 0.0, sure=False, tells=True)]
    found = Inputs(0, 1.0, 240, worth, [])
    assert _caption(found).startswith("Shuffled, no input raises the RMSE.")
    assert [row.cells[1].text for row in _table(found).rows] == ["+0.0", "+0.0"]
    assert [row.cells[3].text for row in _table(found).rows] == ["may be chance", "changes nothing"]


def test_the_section_names_the_first_two_and_how_many_are_no_chance(tmp_path: Path) -> None:
    made = inputs(read_record(write(tmp_path, forecast_labels(240))))
    assert made is not None
    figure, table, _ = made.blocks
    assert isinstance(figure, Figure) and isinstance(table, Table)
    assert figure.caption.startswith("Shuffled, rain raises the RMSE most, by 100.0 %. 1 of 3 inputs ")
    assert [row.cells[3].text for row in table.rows] == ["leant on", "may be chance", "may be chance"]


def test_nothing_is_said_where_nothing_was_measured(tmp_path: Path) -> None:
    write_search(tmp_path / "old")
    assert read(tmp_path / "old") is None and inputs(read_record(tmp_path / "old")) is None
    assert read(write(tmp_path / "other", forecast_labels(50)), trial=3) is None, "of another trial"


def test_an_input_written_again_replaces_the_former(tmp_path: Path) -> None:
    labels = forecast_labels(40)
    write(tmp_path, labels)
    series, time = zip(*labels, strict=True)
    with ResultsWriter(tmp_path) as writer:
        columns = {"trial": [0] * 40, "input": ["sun"] * 40, "series": series, "time": time}
        writer.importance(columns | {"square": np.full(40, 100.0)})
    found = read(tmp_path)
    assert found is not None and found.worth[0].name == "sun"


def test_a_caption_speaks_of_lines_only_where_there_are_some(tmp_path: Path) -> None:
    for windows, drawn in ((2, False), (60, True)):  # of three steps each, so that two windows are no block
        write(tmp_path / str(windows), forecast_labels(windows))
        found = read(tmp_path / str(windows))
        assert found is not None
        assert ("Lines are 95 % intervals" in _caption(found)) is drawn
        known = {row.cells[2].text != "not known" for row in _table(found).rows}
        assert known == {drawn}
