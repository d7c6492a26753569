"""Test figures of a finalist hold as long as it is the same model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from report_tables import forecast_labels, prediction_table
from searcher_bench import SMALL, epoch_row, make_spec

from xlstm_tune.report.leaderboard import build_leaderboard
from xlstm_tune.results import ResultsWriter, predicted, read, read_predictions
from xlstm_tune.search.driver import Driver
from xlstm_tune.search.persistence.journal import History, Past
from xlstm_tune.search.persistence.store import Shared
from xlstm_tune.search.progress import Progress
from xlstm_tune.search.sampling.duplicates import TrialEnd
from xlstm_tune.search.stopping import TIME_BUDGET
from xlstm_tune.tracking import Spool

FIGURES = ("rmse", "mae", "mse_standardised", "mae_standardised")


@pytest.mark.parametrize(("after", "judged"), [(2.0, True), (1.5, False)], ids=["no better", "better"])
def test_resume_of_a_judged_trial_keeps_its_scores_only_where_it_got_no_better(
    tmp_path: Path, after: float, judged: bool
) -> None:
    spec = make_spec(SMALL, trials=4)
    params = {"model.hidden_size": 32}
    past = Past(0, params, 100.0, together=[0])
    labels, actual = forecast_labels(5), np.ones((5, 1, 1))
    for epoch, best in enumerate((2.0, after), 1):
        row = epoch_row(0, epoch=epoch, done=False) | {f"best_val_{name}": best for name in FIGURES}
        past.rows.append((100.0 + epoch, row))
        past.end = TrialEnd(0, None, "pruned", TIME_BUDGET if epoch == 1 else None, best, params)
        past.ended = 110.0
        with ResultsWriter(tmp_path) as results, Spool(tmp_path, "sqlite:///nowhere") as spool:
            driver = Driver(spec, Shared(tmp_path), results, spool, Progress(4, "val_rmse", None))
            driver.recall(History({0: past}))
            assert driver.close()
            if epoch == 1:
                for part in ("validation", "test"):
                    results.scores([{"model": "lstm", "trial": 0, "part": part, **dict.fromkeys(FIGURES, 3.0)}])
                results.coverage([{"trial": 0, "kind": "interval", "level": 0.9, "share": 0.8, "samples": 5}])
                results.predictions(prediction_table("lstm", 0, "test", labels, actual, actual + 3, ("y",)))
                results.predictions(prediction_table("naive", None, "test", labels, actual, actual + 4, ("y",)))
    (entry,) = build_leaderboard(tmp_path, "val_rmse").trials
    assert entry.validation["rmse"] == after
    assert entry.test.get("rmse") == (3.0 if judged else None)
    rows = {name: read(tmp_path, name).num_rows for name in ("scores", "coverage", "predictions")}
    assert rows == {"scores": 2 * judged, "coverage": judged, "predictions": 5 + 5 * judged}
    mine, other = (0, "lstm", "test"), (None, "naive", "test")
    assert predicted(tmp_path) == ([mine, other] if judged else [other])
    assert [read_predictions(tmp_path, one, ["predicted"]).num_rows for one in (mine, other)] == [5 * judged, 5]
    with ResultsWriter(tmp_path) as results:  # judged again; how often intervals hold is not measured
        results.scores([{"model": "lstm", "trial": 0, "part": "test", **dict.fromkeys(FIGURES, 2.5)}])
    assert read(tmp_path, "coverage").num_rows == judged


def measured(writer: ResultsWriter, trial: int, share: float, inputs: list[str | None]) -> None:
    """What is told of a winner."""
    rows = [{"trial": trial, "kind": "interval", "level": level, "share": share} for level in (0.8, 0.9)]
    writer.coverage(rows)
    columns = {"trial": [trial] * len(inputs), "input": inputs, "series": [""] * len(inputs)}
    writer.importance(columns | {"time": ["1"] * len(inputs), "square": [math.nan] + [share] * (len(inputs) - 1)})


def test_what_was_measured_of_a_winner_that_goes_on_does_not_come_back(tmp_path: Path) -> None:
    """It is judged again, wins, and nothing is measured: the figures of the model that it was are not told as its."""
    with ResultsWriter(tmp_path) as writer:
        for trial in (0, 1):
            measured(writer, trial, 0.85, [None, "rain", "sun"])
    with ResultsWriter(tmp_path) as writer:
        writer.forget(0)
        assert [read(tmp_path, name)["trial"].unique().to_pylist() for name in ("coverage", "importance")] == [[1], [1]]
        writer.forget(0)
        writer.forget(7)
    for _ in range(2):
        with ResultsWriter(tmp_path) as writer:  # its parts are put together
            writer.scores([{"model": "lstm", "trial": 0, "part": "test", "rmse": 1.0}])
        assert [read(tmp_path, name).num_rows for name in ("coverage", "importance")] == [2, 3]
    with ResultsWriter(tmp_path) as writer:
        measured(writer, 0, 0.9, [None, "rain"])
    again = {name: read(tmp_path, name).to_pandas().query("trial == 0") for name in ("coverage", "importance")}
    assert again["coverage"]["share"].tolist() == [0.9, 0.9] and len(again["importance"]) == 2
