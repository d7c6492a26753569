"""The winner's figures: of one target where there are several, of few samples, in order of time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_tables import figure
from report_tables import forecast_labels, prediction_table, sequence_labels, write_search

from xlstm_tune.report.blocks import Figure, Figures, Section, Sentences, Table
from xlstm_tune.report.record import read_record
from xlstm_tune.report.sections.winner import winner
from xlstm_tune.results import ResultsWriter

TARGETS = ("cases", "beds", "dollars")
WHICH = "target cases (2 more are not drawn)"


def made(
    folder: Path, task: str, labels: list[tuple[str, str]], error: np.ndarray, targets: tuple[str, ...] = TARGETS,
    time: dict[str, Any] | None = None,
) -> Section:  # fmt: skip
    """The section of a search whose winner is off by `error` [n, H, K] on the test part."""
    spec = {"data": {"task": task, "time": time or {"column": "date"}}}
    write_search(folder, task, labels=labels, targets=targets, horizon=error.shape[1], spec=spec)
    with ResultsWriter(folder) as writer:
        writer.predictions(prediction_table("xlstm", 0, "test", labels, np.zeros_like(error), error, targets))
    found = winner(read_record(folder))
    assert found is not None
    return found


def captions(section: Section) -> dict[str, str]:
    drawn = [one for block in section.blocks for one in (block.figures if isinstance(block, Figures) else [block])]
    return {one.id: one.caption for one in drawn if isinstance(one, Figure)}


def test_a_regression_of_three_targets_is_shown_by_its_groups(tmp_path: Path) -> None:
    """Three rows of a sequence are one sample, which is no series to have an error of its own."""
    labels = sequence_labels(3, 4)
    error = np.tile([1.0, 100.0, -1000.0], (12, 1, 1)) * np.repeat([1.0, 2.0, 3.0], 4)[:, None, None]
    section = made(tmp_path, "regression", labels, error)
    drawn = figure(section, "by-series")
    assert drawn.title == "Error by groups" and list(drawn.data[-1]["x"]) == [1.0, 2.0, 3.0]
    assert drawn.caption.startswith(f"3 groups, test part, {WHICH}. The worst, County 2, has 3.000.")
    said = captions(section)
    assert said["scatter"].startswith(f"{WHICH}: 12 test samples")
    assert said["residuals"].startswith(f"Predicted minus actual, {WHICH}, in order of time: 12 samples. Mean error")
    assert said["histogram"].startswith(f"Errors on the test part, {WHICH}; ")
    assert "between +1 and +3" in said["histogram"]
    assert list(figure(section, "residuals").data[0]["y"]) == [1.0, 2.0, 3.0] * 4


def test_figures_of_a_forecast_are_of_one_target_and_a_table_has_the_others(tmp_path: Path) -> None:
    error = np.tile([[1.0, 100.0, -1000.0], [3.0, 300.0, -3000.0]], (40, 1, 1))
    section = made(tmp_path, "forecast", forecast_labels(20, ("a", "b")), error)
    said = captions(section)
    assert said["residuals"].startswith(f"Predicted minus actual, {WHICH}, averaged over a sample's steps, in order of")
    assert f"{WHICH}, steps apart; " in said["histogram"] and "between +1 and +3" in said["histogram"]
    assert said["by-step"].startswith(f"RMSE of each step of the horizon on the test part, {WHICH}; ")
    assert said["by-series"].startswith(f"2 series, test part, {WHICH}. ")
    assert list(figure(section, "by-step").data[0]["y"]) == [1.0, 3.0]
    assert set(figure(section, "residuals").data[0]["y"]) == {2.0}
    table, told = section.blocks[:2]
    assert isinstance(table, Table) and isinstance(told, Sentences)
    titles = ["Target", "RMSE", "MAE", "RMSE of last_value", "MAE of last_value"]
    assert [column.title for column in table.columns] == titles
    cells = [[cell.text for cell in row.cells[:3]] for row in table.rows]
    assert cells == [["cases", "2.236", "2.000"], ["beds", "223.6", "200.0"], ["dollars", "2,236", "2,000"]]
    assert all(row.cells[3].text for row in table.rows)
    assert told.texts[0].startswith("The figures of this section are of cases alone. RMSE and MAE elsewhere on this ")


def test_one_target_needs_no_word_and_one_sample_no_plural(tmp_path: Path) -> None:
    section = made(tmp_path, "forecast", forecast_labels(1), np.array([[[1.0], [3.0]]]), ("cases",))
    assert not [block for block in section.blocks if isinstance(block, Table | Sentences)]
    said = captions(section)
    assert said["forecast-0"].startswith("1 step ahead: the only test sample. RMSE over it: 1.000 for the model, ")
    assert said["residuals"] == "Predicted minus actual, averaged over a sample's steps, in order of time: 1 sample."
    assert not any("target " in caption for caption in said.values())


@pytest.mark.parametrize(
    ("times", "time"),
    [
        (["2020-01-01T23:30:00-05:00", "2020-01-02T01:00:00+09:00", "2020-01-02T00:30:00+00:00"], {}),
        (["2020-01-02 00:00:00Z", "2020-01-02T00:30+01:00", "2020-01-01 22:59:00-01"], {}),
        (["2020-01-01 00:00:00.5", "2020-01-01 00:00:00.25", "2020-01-01 00:00:00.3"], {}),
        (["200610", "20061", "2006_2"], {"format": "mmwr-week"}),
        (["20061", "200551", "200552"], {"format": "mmwr-week"}),
        (["1577836800", "-86400", "3600"], {"format": "epoch", "unit": "s"}),
    ],
)
def test_errors_are_in_the_order_of_moments_not_of_the_digits_of_times(
    times: list[str], time: dict[str, str], tmp_path: Path
) -> None:
    """The last of the three comes first in the file, then the first."""
    labels = [(f"county={place}", moment) for place, moment in enumerate(times)]
    error = np.array([3.0, 1.0, 2.0]).reshape(-1, 1, 1)
    section = made(tmp_path, "regression", labels, error, ("cases",), {"column": "date"} | time)
    drawn = figure(section, "residuals")
    assert "in order of time: 3 samples" in drawn.caption and list(drawn.data[0]["y"]) == [1.0, 2.0, 3.0]
