"""Parts of which the predictions table keeps every k-th sample: captions say so, and `all` of none."""

from __future__ import annotations

from pathlib import Path

import pytest
from page_tables import figure
from report_tables import forecast_labels, sequence_labels, write_search

from xlstm_tune.report.blocks import Section, Sentences
from xlstm_tune.report.record import read_record
from xlstm_tune.report.sections.winner import winner

TWO = ("north", "south")


def made(folder: Path, samples: int, task: str = "forecast") -> tuple[Section, str]:
    """The section of 48 test samples of a part that has `samples`, and its sentences."""
    labels = forecast_labels(24, TWO) if task == "forecast" else sequence_labels(24, 2)
    write_search(folder, task, labels=labels, data={"samples": {"train": 1, "validation": samples, "test": samples}})
    section = winner(read_record(folder))
    assert section is not None
    return section, " ".join(text for one in section.blocks if isinstance(one, Sentences) for text in one.texts)


def test_of_a_thinned_part_no_caption_says_all(tmp_path: Path) -> None:
    section, said = made(tmp_path, 1234)
    kept = "Predictions of 48 of the 1,234 test samples are kept, spread evenly."
    assert said == f"{kept} The figures of this section are made of these."
    assert "1 step ahead: the 24 test samples that are kept. RMSE over these" in figure(section, "forecast-0").caption
    assert figure(section, "residuals").caption.endswith(f". {kept}")


def test_of_a_thinned_regression_the_scatter_says_it_too(tmp_path: Path) -> None:
    section, _ = made(tmp_path, 96, "regression")
    for name in ("scatter", "residuals"):
        kept = " Predictions of 48 of the 96 test samples are kept, spread evenly."
        assert figure(section, name).caption.endswith(kept)


@pytest.mark.parametrize("task", ["forecast", "regression"])
def test_of_a_whole_part_nothing_is_said(task: str, tmp_path: Path) -> None:
    section, said = made(tmp_path, 48, task)
    assert "kept" not in said
    names = ["residuals", "forecast-0" if task == "forecast" else "scatter"]
    assert not any("kept" in figure(section, name).caption for name in names)
    if task == "forecast":
        assert "1 step ahead: all 24 test samples. RMSE" in figure(section, "forecast-0").caption
