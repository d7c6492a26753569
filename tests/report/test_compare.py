"""Searches side by side, and the reasons why some cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_tables import forecast_labels, write_search

from xlstm_tune.errors import StorageError
from xlstm_tune.report.blocks import Figure, Sentences, Table
from xlstm_tune.report.compare import Comparison, comparable, compare
from xlstm_tune.report.comparison import sections
from xlstm_tune.results import ResultsWriter, read


def two(folder: Path, one: dict[str, Any], other: dict[str, Any]) -> list[Path]:
    """Two searches, `first` and `second`, written with these arguments."""
    folders = [folder / "first", folder / "second"]
    for place, arguments in zip(folders, (one, other), strict=True):
        write_search(place, name=place.name, labels=forecast_labels(150), horizon=1, **arguments)
    return folders


def test_searches_of_the_same_data_are_compared_in_pairs(tmp_path: Path) -> None:
    folders = two(tmp_path, {"families": {"lstm": 2.0}, "shared": 0.0}, {"families": {"xlstm": 1.0}, "shared": 0.0})
    assert comparable(folders) == []
    found = compare(folders)
    assert [one.name for one in found.searches] == ["second", "first"]
    best = found.searches[0]
    assert best.winner is not None and best.winner.name == "xlstm d32"
    assert (best.validation["rmse"], best.test["rmse"], best.trials, best.seconds) == (1.0, 1.0, 5, 3600.0)
    (lead,) = found.differences
    assert (lead.a.name, lead.b.name) == ("second: xlstm d32", "first: lstm d32")
    assert lead.told_apart and 0 < lead.low < lead.gain < lead.high and found.blocks > 10 and found.notes == []


def test_means_over_seeds_come_with_their_standard_errors(tmp_path: Path) -> None:
    folders = two(tmp_path, {"families": {"lstm": 2.0}}, {"families": {"xlstm": 1.0}})
    rows = [row for row in read(folders[0], "trials").to_pylist() if row["trial"] == 0]
    with ResultsWriter(folders[0]) as writer:
        writer.trial(rows[0] | {"members": 3, "std_error": 0.25})
        score = {"model": "lstm", "trial": 0, "part": "test", "rmse": 2.0, "seeds": 3, "rmse_std_error": 123.4}
        writer.scores([score])
    found = compare(folders)
    assert [one.errors for one in found.searches] == [(None, None), (0.25, 123.4)]
    table = sections(found)[0].blocks[1]
    assert isinstance(table, Table) and "± is the standard error of the mean over seeds" in table.caption
    assert [cell.text for cell in table.rows[1].cells[2:4]] == ["2.000 ± 0.25", "2.000 ± 123"]
    assert [cell.text for cell in table.rows[0].cells[2:4]] == ["1.000", "1.000"]


def test_searches_that_are_equally_good_are_not_told_apart(tmp_path: Path) -> None:
    folders = two(tmp_path, {"families": {"lstm": 1.0}}, {"families": {"xlstm": 1.0}, "seed": 0, "shared": 0.6})
    (lead,) = compare(folders).differences
    assert not lead.told_apart


def test_search_without_test_predictions_is_listed_alone(tmp_path: Path) -> None:
    folders = two(tmp_path, {}, {"parts": ("validation",)})
    found = compare(folders)
    assert found.differences == [] and found.blocks == 0
    assert found.notes == ["second has no test predictions of its best trial yet."]


def lead(found: Comparison) -> str:
    """What the page says first."""
    block = sections(found)[0].blocks[0]
    assert isinstance(block, Sentences)
    return block.texts[0]


def test_a_verdict_on_test_is_said_only_of_the_search_that_it_is_about(tmp_path: Path) -> None:
    """The best on validation has no test predictions, so the differences are those of the second."""
    first, second = two(tmp_path, {"families": {"lstm": 2.0}}, {"families": {"lstm": 3.0}})
    best = tmp_path / "best"
    write_search(best, name="best", labels=forecast_labels(150), horizon=1, families={"lstm": 1.0}, parts=())
    found = compare([first, second, best])
    assert [one.name for one in found.searches] == ["best", "first", "second"]
    assert [(one.a.name, one.told_apart) for one in found.differences] == [("first: lstm d32", True)]
    assert lead(found).endswith(
        "It has no test predictions, so the differences on test are those of first: lstm d32, trial 0."
    )
    assert "better than" in lead(compare([first, second]))


def test_a_search_that_is_worse_on_test_than_on_validation_is_told_so(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("lucky", "close", "worse", "better")]
    rmses = {"lucky": 2.0, "close": 2.0, "worse": 4.0, "better": 1.0}
    for place in folders:
        families = {"lstm": rmses[place.name]}
        # One seed, so that the actual values are the same; `close` shares most of its errors with `lucky`.
        write_search(place, name=place.name, labels=forecast_labels(150), horizon=1, families=families, shared=0.1)
    row = next(row for row in read(folders[0], "trials").to_pylist() if row["trial"] == 0)
    with ResultsWriter(folders[0]) as writer:
        writer.trial(row | {"val_rmse": 0.5})
    found = compare(folders)
    assert found.searches[0].name == "lucky"
    assert "On test, by RMSE, it is better than 1 of 3 others, worse than 1, not told apart from 1. " in lead(found)
    assert "On test, by RMSE, it is worse than 1 of 1 other. " in lead(compare([folders[0], folders[3]]))
    assert lead(compare(folders[:2])).endswith("On test, it is told apart from no other.")


@pytest.mark.parametrize("long", ["", "a-long-name-for-a-search-" * 3])
def test_models_that_differ_in_nothing_but_their_search_have_a_row_each(tmp_path: Path, long: str) -> None:
    folders = [tmp_path / f"{long}{name}" for name in ("one", "two", "three")]
    for rmse, place in enumerate(folders, start=1):
        families = {"lstm": float(rmse)}
        write_search(place, name=place.name, labels=forecast_labels(150), horizon=1, families=families)
    figure = sections(compare(folders))[1].blocks[0]
    assert isinstance(figure, Figure)
    rows = figure.layout["yaxis"]["categoryarray"]
    assert len(set(rows)) == 2 and {row for trace in figure.data for row in trace["y"]} == set(rows)
    if not long:
        assert rows == ["one: lstm 0 against three: lstm 0", "one: lstm 0 against two: lstm 0"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"task": "regression"}, "differ in task (forecast in first, regression in second)"),
        ({"targets": ["deaths"]}, "differ in targets (cases in first, deaths in second)"),
        ({"horizon": 2}, "differ in horizon (1 in first, 2 in second)"),
        (
            {"fingerprint": "other", "lookback": 56, "max_lookback": 56},
            "the same data were cut for another lookback, which leaves other windows: the largest is 28 in first",
        ),
        ({"fingerprint": "other", "table_fingerprint": "other"}, "the values in their tables differ"),
        ({"fingerprint": None}, "nothing in second says which data it was given"),
    ],
)
def test_what_differs_is_named(tmp_path: Path, data: dict[str, Any], reason: str) -> None:
    folders = two(tmp_path, {}, {"data": data})
    (found,) = comparable(folders)
    assert reason in found and "first and second cannot be compared" in found
    with pytest.raises(StorageError, match="cannot be compared"):
        compare(folders)


def test_sequences_are_the_same_whatever_a_model_looks_at_of_them(tmp_path: Path) -> None:
    for name, lookback in (("whole", 365), ("end", 40), ("other", 365)):
        data = {"fingerprint": name, "lookback": lookback, "max_lookback": lookback}
        table = {"table_fingerprint": "another"} if name == "other" else {}
        write_search(tmp_path / name, "regression", name=name, data=data | table)
    assert comparable([tmp_path / "whole", tmp_path / "end"]) == []
    assert compare([tmp_path / "whole", tmp_path / "end"]).differences
    assert "the values in their tables differ" in comparable([tmp_path / "whole", tmp_path / "other"])[0]


def test_objectives_that_differ_are_named(tmp_path: Path) -> None:
    folders = two(tmp_path, {}, {"objective": "val_mae"})
    assert "objective (val_rmse in first, val_mae in second)" in comparable(folders)[0]


def test_searches_without_a_row_are_known_by_their_environment(tmp_path: Path) -> None:
    folders = two(tmp_path, {"row": False}, {"row": False})
    assert "nothing in first says" in comparable(folders)[0]
    for folder in folders:
        (folder / "environment.json").write_text(json.dumps({"data_fingerprint": "f" * 64}))
    assert comparable(folders) == []
    assert any("taken for such" in note for note in compare(folders).notes)
    (folders[1] / "environment.json").write_text(json.dumps({"data_fingerprint": "other"}))
    assert "the data, or how they are cut, differ" in comparable(folders)[0]


def test_compare_takes_two(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="two or more searches, got 1"):
        compare([tmp_path])
