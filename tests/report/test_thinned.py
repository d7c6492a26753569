"""Parts of which the predictions table keeps some samples: captions say so, and differences are made of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from page_tables import figure
from report_tables import forecast_labels, sequence_labels, write_search

from xlstm_tune.report.blocks import Section, Sentences
from xlstm_tune.report.compare import compare
from xlstm_tune.report.evidence import gather
from xlstm_tune.report.record import read_record
from xlstm_tune.report.sections.differences import differences
from xlstm_tune.report.sections.winner import winner
from xlstm_tune.results import ResultsWriter, read

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
    kept = "Predictions of 48 of the 1,234 test samples are kept, drawn evenly."
    assert said == f"{kept} The figures of this section are made of these."
    assert "1 step ahead: the 24 test samples that are kept. RMSE over these" in figure(section, "forecast-0").caption
    assert figure(section, "residuals").caption.endswith(f". {kept}")


def test_of_a_thinned_regression_the_scatter_says_it_too(tmp_path: Path) -> None:
    section, _ = made(tmp_path, 96, "regression")
    for name in ("scatter", "residuals"):
        kept = " Predictions of 48 of the 96 test samples are kept, drawn evenly."
        assert figure(section, name).caption.endswith(kept)


@pytest.mark.parametrize("task", ["forecast", "regression"])
def test_of_a_whole_part_nothing_is_said(task: str, tmp_path: Path) -> None:
    section, said = made(tmp_path, 48, task)
    assert "kept" not in said
    names = ["residuals", "forecast-0" if task == "forecast" else "scatter"]
    assert not any("kept" in figure(section, name).caption for name in names)
    if task == "forecast":
        assert "1 step ahead: all 24 test samples. RMSE" in figure(section, "forecast-0").caption


def thin(folder: Path, every: int, squares: bool = True) -> None:
    """Leave one sample of so many in the predictions of a search that has 3 steps and one target, as searches do."""
    whole = read(folder, "predictions")
    first = whole.filter(pc.equal(whole["step"], 1))
    errors = np.square(whole["predicted"].to_numpy() - whole["actual"].to_numpy()).reshape(-1, 3).mean(1)
    names = ("trial", "model", "part", "series", "time")
    samples = len(first.filter(pc.and_(pc.equal(first["model"], "mean"), pc.equal(first["part"], "test"))))
    kept = np.arange(len(whole)) // 3 % samples % every == 0
    with ResultsWriter(folder) as writer:
        writer.predictions(whole.filter(pa.array(kept)))
        if squares:
            writer.squares({name: first[name].combine_chunks() for name in names} | {"square": errors})


def test_differences_are_made_of_all_samples(tmp_path: Path) -> None:
    """As if nothing had been left out: 20 of 240 windows are too few to tell anything apart."""
    for name in ("whole", "thinned", "earlier"):
        write_search(tmp_path / name, shared=0.2)
    thin(tmp_path / "thinned", 12)
    thin(tmp_path / "earlier", 12, squares=False)
    whole, thinned, earlier = (gather(tmp_path / name) for name in ("whole", "thinned", "earlier"))
    assert whole is not None and thinned is not None and earlier is not None
    assert whole.samples == 240 and thinned.samples == earlier.samples == 20
    for one, other in zip(whole.differences, thinned.differences, strict=True):
        assert (one.a, one.b, one.told_apart) == (other.a, other.b, other.told_apart)
        same = [one.gain, one.low, one.high, one.p_adjusted, one.blocks, one.low_percent]
        assert [other.gain, other.low, other.high, other.p_adjusted, other.blocks, other.low_percent] == pytest.approx(
            same, rel=1e-9
        )
    assert whole.blocks == pytest.approx(thinned.blocks) and whole.blocks > 2 * earlier.blocks
    said = "Other figures than the leaderboard's and the differences' are made of 20 of the 240 samples, drawn evenly."
    assert said in thinned.notes
    assert said.replace(" and the differences'", "") in earlier.notes
    section = differences(read_record(tmp_path / "thinned"))
    assert section is not None and section.lead.startswith("Worked out from 240 samples of the test part, drawn anew")


def test_searches_are_compared_by_all_samples_where_both_have_them(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two", "earlier")):
        write_search(tmp_path / name, families={"lstm": 1 + seed / 2}, name=name, seed=seed)
        thin(tmp_path / name, 12, squares=name != "earlier")
    together = compare([tmp_path / "one", tmp_path / "two"])
    with_earlier = compare([tmp_path / "one", tmp_path / "earlier"])
    assert len(together.differences) == len(with_earlier.differences) == 1
    assert together.blocks > 2 * with_earlier.blocks
    assert not any("other samples" in note for note in with_earlier.notes)
