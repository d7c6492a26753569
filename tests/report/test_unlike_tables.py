"""Sections of a page whose tables are unlike most: refused configurations, several targets, many points."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import report_tables
from page_tables import SPEC, few, figure, trial_row, write_search

from xlstm_tune.report.blocks import Sentences, Table, Tiles
from xlstm_tune.report.record import read_record
from xlstm_tune.report.sections.curves import learning_curves
from xlstm_tune.report.sections.excluded import excluded
from xlstm_tune.report.sections.progress import progress
from xlstm_tune.report.sections.settings import settings
from xlstm_tune.report.sections.standing import summary
from xlstm_tune.report.sections.winner import winner
from xlstm_tune.results import ResultsWriter


def test_a_slice_asks_plotly_once_for_its_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time takes plotly as long as the whole figure does otherwise."""
    asked: Counter[str] = Counter()

    class Points:
        def __init__(self, trace: Any) -> None:
            self._trace = trace

        def __getattr__(self, name: str) -> Any:
            asked[name] += 1
            return getattr(self._trace, name)

    plot = optuna.visualization.plot_slice
    monkeypatch.setattr(
        optuna.visualization, "plot_slice", lambda *a, **k: SimpleNamespace(data=[Points(plot(*a, **k).data[0])])
    )
    made = few(tmp_path, [trial_row(n, {"model.pattern": "ms" if n % 2 else "sm"}, 3.0 + n) for n in range(20)])
    assert len(figure(settings(made), "slice-0").data[0]["y"]) == 20
    assert asked == {"x": 1, "y": 1, "marker": 1}


def test_the_study_is_rebuilt_once_for_all_sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = few(tmp_path, [trial_row(n, {"a": n}, 3.0 + n) for n in range(6)])
    create, studies = optuna.create_study, []
    monkeypatch.setattr(optuna, "create_study", lambda **k: studies.append(create(**k)) or studies[-1])
    assert figure(progress(made), "history") and figure(settings(made), "slice-0")
    assert len(studies) == 1


def test_scatter_of_several_targets_draws_the_first_alone(tmp_path: Path) -> None:
    targets = ("yield", "price")
    report_tables.write_search(tmp_path, "regression", families={"lstm": 1.0}, baselines={}, targets=targets)
    made = read_record(tmp_path)
    drawn = figure(winner(made), "scatter")
    rows = [
        row for row in made.predictions.to_pylist()
        if row["part"] == "test" and row["target"] == "yield" and row["trial"] == 0
    ]  # fmt: skip
    assert sorted(drawn.data[1]["x"]) == pytest.approx(sorted(row["actual"] for row in rows))
    assert drawn.caption.startswith("target yield (1 more is not drawn): 240 test samples; ")
    assert drawn.layout["xaxis"]["title"]["text"] == "Actual yield"


def test_refused_configurations_are_no_trials_that_ended_or_failed(tmp_path: Path) -> None:
    write_search(tmp_path, 5, ended=False)  # of which one failed
    with ResultsWriter(tmp_path) as writer:
        for number in range(5, 12):
            reason = "invalid: model.heads must divide" if number % 2 else "too large: 9 parameters"
            writer.trial(trial_row(number, {"model.family": "lstm"}, None, status="failed", reason=reason))
    with ResultsWriter(tmp_path) as writer:
        writer.search({"name": "made", "status": "running", "spec": SPEC})
    made = read_record(tmp_path)
    assert made.counts["failed"] == made.board.counts["failed"] == 1
    assert made.counts["refused"] == made.board.counts["refused"] == 7
    said, tiles = summary(made).blocks
    assert isinstance(said, Sentences) and "2 completed, 2 pruned, 1 failed, 7 refused." in said.texts[0]
    assert "5 of 300 trials have" in said.texts[1]
    assert isinstance(tiles, Tiles) and any("1 failed, 7 refused" in tile.note for tile in tiles.tiles)
    left_out = excluded(made)
    assert left_out is not None and isinstance(left_out.blocks[-1], Table)
    assert left_out.blocks[-1].caption == "1 failed trial and 7 refused configurations by reason"
    assert "failed trial" not in figure(learning_curves(made), "curves").caption  # that none of theirs is drawn
