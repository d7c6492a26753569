"""What a page says of trials that were not finished, of errors of 0, of one thing alone, and of long names."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from page_tables import BASELINES, few, figure, figures, trial_row
from report_tables import forecast_labels, prediction_table, sequence_labels, write_search
from rich.console import Console

from xlstm_tune.report.blocks import Section, Sentences, Table, Tiles, labels
from xlstm_tune.report.compare import compare
from xlstm_tune.report.evidence import gather
from xlstm_tune.report.inputs import Inputs, Worth
from xlstm_tune.report.leaderboard import print_front, print_leaderboard, verdict
from xlstm_tune.report.record import Record, read_record
from xlstm_tune.report.sections.cost import cost
from xlstm_tune.report.sections.curves import learning_curves
from xlstm_tune.report.sections.differences import differences, metrics
from xlstm_tune.report.sections.excluded import excluded
from xlstm_tune.report.sections.inputs import _figure
from xlstm_tune.report.sections.progress import progress
from xlstm_tune.report.sections.settings import settings
from xlstm_tune.report.sections.standing import leaderboard, summary
from xlstm_tune.report.sections.winner import winner
from xlstm_tune.results import ResultsWriter, read


def block(section: Section | None, kind: type) -> object:
    assert section is not None
    return next(one for one in section.blocks if isinstance(one, kind))


def test_long_names_that_are_alike_once_cut_have_rows_of_their_own(tmp_path: Path) -> None:
    names = [f"store_id=CA_1, dept_id=FOODS_1, item_id=FOODS_1_{number:03d}" for number in range(6)]
    write_search(tmp_path, labels=forecast_labels(30, names))
    drawn = figure(winner(read_record(tmp_path)), "by-series")
    rows = list(drawn.data[-1]["y"])
    assert len(set(rows)) == 6 and [row.partition(".")[0] for row in rows] == list("654321")
    assert sorted(drawn.data[-1]["text"]) == names and f"The worst, {drawn.data[-1]['text'][-1]}, has" in drawn.caption
    worth = [Worth(f"{'a very long name of a column ' * 3}{place}", 2.0, 1.0, 3.0, True, True) for place in range(3)]
    chart = _figure(Inputs(0, 1.0, 240, worth, []))
    assert len(set(chart.data[0]["y"])) == 3 and set(chart.layout["yaxis"]["categoryarray"]) == set(chart.data[0]["y"])
    assert labels(["a", "b"]) == ["a", "b"]


def test_a_champion_that_was_trained_again_is_not_the_winner_of_the_page(tmp_path: Path) -> None:
    write_search(tmp_path)
    record = read_record(tmp_path)
    assert record.board.winner is not None
    about = {"refit": True, "trial": record.board.winner.trial, "refit_epochs": 3, "refit_scores": {"test": {}}}
    about["refit_scores"]["test"] = {"rmse": 0.5, "mae": 0.4}
    place = tmp_path / "champion" / "champion.json"
    place.parent.mkdir()
    for changes in ({}, {"refit": False}, {"trial": 99}, {"refit_epochs": None}):
        told = not changes
        place.write_text(json.dumps(about | changes))
        section = winner(record)
        assert section is not None
        assert ("was trained again" in section.lead) is told
        assert ("for 3 epochs, and has a test RMSE of 0.500" in section.lead) is told
    place.write_text("{")
    assert "trained again" not in (winner(record) or section).lead


@pytest.fixture
def cut(tmp_path: Path) -> Record:
    """One trial that came to its end, two that were stopped early, two with and one without a figure at the end."""
    with ResultsWriter(tmp_path) as writer:
        for name, rmse in BASELINES.items():
            writer.baselines([{"name": name, "part": "validation", "settings": {}, **figures(rmse)}])
        for number in range(6):
            score = None if number == 5 else 3.5 + number / 10
            status = ("completed", "pruned", "pruned", "pruned", "pruned", "failed")[number]
            reason = "time budget" if number > 2 else None
            writer.trial(trial_row(number, {"model.hidden_size": 8 + number}, score, status=status, reason=reason))
            for epoch in range(1, 3 + number if score else 1):
                writer.epoch({"trial": number, "epoch": epoch, **figures((score or 0.0) + 1 / epoch, "val_")})
    return read_record(tmp_path)


def test_what_the_end_of_the_search_cut_short_is_unfinished_in_every_section(cut: Record) -> None:
    said = block(excluded(cut), Sentences)
    assert isinstance(said, Sentences) and said.texts[1] == (
        "3 trials had not ended when the search did (3, 4, 5: time budget); --resume goes on with what they saved. "
        "Scores of such trials are of their best epoch so far."
    )
    curves = figure(learning_curves(cut), "curves")
    assert curves.caption == (
        "5 trials, up to 6 epochs. 2 were stopped early (dotted, ended by a bar), at least half of them by epoch 3. "
        "2 were not finished (dotted, ended by a ring). "
        "The winner, trial 0, reached its best, 4.000, in epoch 2."
    )
    marks = {trace["name"]: list(trace["x"]) for trace in curves.data if trace["mode"] == "markers"}
    assert marks == {"stopped early": [3, 4], "not finished": [5, 6]}
    table = block(leaderboard(cut), Table)
    assert isinstance(table, Table) and [row.cells[1].note for row in table.rows[:5]] == [
        "trial 0", "trial 1, stopped early", "trial 2, stopped early", "trial 3, not finished", "trial 4, not finished",
    ]  # fmt: skip
    history = figure(progress(cut), "history")
    assert "; hollow marks were stopped early or not finished. " in history.caption
    assert [text.partition(", ")[2] for text in history.data[0]["text"]] == [
        "", "stopped early", "stopped early", "not finished", "not finished",
    ]  # fmt: skip
    leads = [section.lead for section in (cost(cut), settings(cut)) if section]
    assert "Trials stopped early or not finished (hollow) cost less" in leads[0]
    assert "Trials that were stopped early or not finished count with their best epoch." in leads[1]
    output = io.StringIO()
    print_leaderboard(cut.board, Console(file=output, width=120))
    assert "* stopped early or not finished; its best epoch counts" in output.getvalue()


def test_a_finalist_that_was_not_finished_is_marked_as_that(tmp_path: Path) -> None:
    write_search(tmp_path / "one", name="one")
    rows = {row["trial"]: row for row in read(tmp_path / "one", "trials").to_pylist()}
    with ResultsWriter(tmp_path / "one") as writer:
        writer.trial({**rows[0], "status": "pruned", "reason": "time budget"})
    record = read_record(tmp_path / "one")
    for section in (differences(record), metrics(record)):
        assert section is not None
        notes = [text for one in section.blocks if isinstance(one, Sentences) for text in one.texts]
        assert "* not finished; its best epoch counts." in notes
    write_search(tmp_path / "two", name="two", seed=1)
    trials = {one.name: one.trials for one in compare([tmp_path / "one", tmp_path / "two"]).searches}
    assert trials == {"one": 14, "two": 15}, "what was cut short has not ended"


def test_a_baseline_without_any_error_is_told_apart_without_shares_of_it(tmp_path: Path) -> None:
    write_search(tmp_path, families={"lstm": 1.0}, baselines={"last_value": 0.0, "mean": 3.0})
    record = read_record(tmp_path)
    said = verdict(record.board)
    assert "last_value: its error is 0. On test the two are told apart. This speaks of these trained models" in said
    tiles = block(summary(record), Tiles)
    assert isinstance(tiles, Tiles)
    tile = next(one for one in tiles.tiles if one.title == "Against the best baseline")
    assert (tile.value, tile.note) == (
        "its error is 0",
        "on test, its error is 0 on validation, baseline: last_value",
    )


@pytest.mark.parametrize(("windows", "share"), [(5, ""), (1000, "the outermost 0.4 % are not drawn; ")])
def test_only_errors_that_are_not_drawn_are_said_not_to_be(windows: int, share: str, tmp_path: Path) -> None:
    labels_ = forecast_labels(windows)
    write_search(tmp_path, labels=labels_, horizon=1, families={"lstm": 1.0}, baselines={})
    error = np.arange(windows, dtype=np.float64).reshape(-1, 1, 1)
    with ResultsWriter(tmp_path) as writer:
        writer.predictions(prediction_table("lstm", 0, "test", labels_, np.zeros_like(error), error))
    drawn = figure(winner(read_record(tmp_path)), "histogram")
    assert drawn.caption.startswith(f"Errors on the test part; {share}half of the model's errors")
    assert sum(drawn.data[0]["y"]) == pytest.approx(0.996 if share else 1.0)


@pytest.mark.parametrize(
    ("actual", "predicted", "said"),
    [
        (
            [1.0, 2.0, 3.0],
            [1.0, 2.0, 3.0],
            "explains 100 % of the variance, and forecasts neither too high nor too low on",
        ),
        (
            [1.0, 2.0, 3.0],
            [5.0, 6.0, 7.0],
            "The model errs more than the part's own mean would (R² -23.00), and forecasts ",
        ),
        ([0.1, 0.1, 0.1], [1.1, 1.1, 1.1], "The model forecasts 1.000 too high on average."),
        ([0.1, 0.1, 0.2], [0.1, 0.1, 0.1], ", and forecasts 0.03333 too low on average."),
    ],
)
def test_what_explains_nothing_is_not_said_to_explain_less(
    actual: list[float], predicted: list[float], said: str, tmp_path: Path
) -> None:
    labels_ = sequence_labels(3, 1)
    write_search(tmp_path, "regression", labels=labels_, families={"lstm": 1.0}, baselines={})
    true, made = (np.array(values).reshape(-1, 1, 1) for values in (actual, predicted))
    with ResultsWriter(tmp_path) as writer:
        writer.predictions(prediction_table("lstm", 0, "test", labels_, true, made))
    assert said in figure(winner(read_record(tmp_path)), "scatter").caption


def test_one_trial_is_no_best_of_several(tmp_path: Path) -> None:
    made = few(tmp_path, [trial_row(0, {"model.hidden_size": 32}, 3.0)])
    assert figure(settings(made), "slice-0").caption == "model.hidden_size: the only trial with it had 32."
    assert "hollow" not in figure(progress(made), "history").caption
    failed = trial_row(2, {}, None, status="failed", reason="out of memory")
    rows = [trial_row(0, {"model.hidden_size": 8}, 3.0), trial_row(1, {"model.hidden_size": 4}, 4.0), failed]
    said = []
    for chosen in (rows[:1], rows[:2], rows[2:]):
        output = io.StringIO()
        print_front(chosen, ["val_rmse", "parameters"], Console(file=output, width=120))
        said.append(output.getvalue().strip().partition("\n")[0].rstrip().partition(": ")[2])
    assert said == ["no trial beats this one in all", "no trial beats one of these 2 in all", "no trial was scored"]


def test_series_whose_numbers_are_larger_are_said_to_weigh_more(tmp_path: Path) -> None:
    notes = {}
    for name, task, labels_ in (
        ("two", "forecast", forecast_labels(60, ("a", "b"))),
        ("one", "forecast", forecast_labels(60)),
        ("sequences", "regression", sequence_labels(20, 6)),
    ):
        write_search(tmp_path / name, task, labels=labels_)
        found = gather(tmp_path / name)
        assert found is not None
        notes[name] = [note for note in found.notes if "pool all series" in note]
    assert notes["two"] == [
        "Figures pool all series as they are, so one with larger numbers than the others weighs more."
    ]
    assert not notes["one"] and not notes["sequences"]
