"""The searcher over real Optuna studies: every trial ends exactly once, and Optuna is always told how."""

from __future__ import annotations

import logging
import math
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from searcher_bench import METRIC, MIXED, SMALL, STATES, Bench, check_all_told, ended_lines, fate, make_spec

from xlstm_tune.search.sampling.study import JOURNAL


@pytest.mark.parametrize("space", [SMALL, MIXED], ids=["finite", "mixed"])
@pytest.mark.parametrize("algorithm", ["tpe", "random", "gp", "grid"])
def test_every_trial_is_told_whatever_the_algorithm(algorithm: str, space: dict[str, Any], tmp_path: Path) -> None:
    if algorithm == "grid":
        space = {key: value for key, value in space.items() if key != "training.learning_rate"}
    trials = None if algorithm == "grid" else 12
    bench = Bench(make_spec(space, algorithm=algorithm, trials=trials, seed=1), tmp_path)
    bench.run(fate)
    check_all_told(bench)
    ends = Counter(end.status for end in bench.ends)
    assert ends["completed"] and ends["pruned"] and ends["failed"]
    assert bench.searcher.started == 12  # both grids have 12 points
    assert (bench.searcher.exhausted is not None) == (algorithm == "grid")
    if algorithm == "grid":
        assert not ends["duplicate"]
    with (tmp_path / JOURNAL).open() as journal:
        assert sum(1 for _ in journal) > 12


def test_many_can_be_asked_before_any_result(tmp_path: Path) -> None:
    bench = Bench(make_spec(SMALL, trials=10), tmp_path)
    asked = [bench.ask() for _ in range(11)]
    assert None not in asked[:10] and asked[10] is None
    for trial_id in asked[:10]:
        assert trial_id
        bench.end(trial_id, 1, 1.0)
    assert all(end.status in ("pruned", "duplicate") for end in bench.ends)
    assert not [trial for trial in bench.trials() if not trial.state.is_finished()]


def test_a_duplicate_of_a_running_trial_waits_for_its_score(tmp_path: Path) -> None:
    spec = make_spec(SMALL, trials=2, start_with=[{"model.hidden_size": 64, "model.dropout": 0.1}])
    bench = Bench(spec, tmp_path)
    first = bench.ask()
    assert first
    bench.searcher.study.enqueue_trial({"model.hidden_size": 64, "model.dropout": 0.1})
    second = bench.ask()
    assert second and bench.started[second] != bench.started[first]
    assert bench.trials()[1].state == TrialState.RUNNING  # the copy
    bench.epoch(first, 1, 3.0)
    bench.end(first, 2, 2.0, status="completed", finished=True)
    copy = bench.trials()[1]
    assert (copy.state, copy.value) == (TrialState.COMPLETE, 2.0)
    assert [(end.number, end.status, end.duplicate_of) for end in bench.ends] == [
        (0, "completed", None),
        (1, "duplicate", 0),
    ]
    assert bench.searcher.started == 2  # the copy does not count


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"status": "failed", "reason": "out of memory: 3 GiB"}, "failed", "out of memory: 3 GiB"),
        ({"status": "completed", "finished": True, METRIC: math.nan}, "failed", "diverged: val_rmse is nan"),
        ({METRIC: math.inf}, "failed", "diverged: val_rmse is inf"),
        ({"status": "completed", "finished": True}, "completed", None),
        ({}, "pruned", None),
    ],
)
def test_ends_as_ray_reports_them(changes: dict[str, Any], status: str, reason: str | None, tmp_path: Path) -> None:
    bench = Bench(make_spec(SMALL, trials=1), tmp_path)
    trial_id = bench.ask()
    assert trial_id
    bench.epoch(trial_id, 1, 5.0)
    bench.epoch(trial_id, 1, 5.0)  # a restarted worker repeats itself
    bench.end(trial_id, 2, 4.0, **changes)
    (end,) = bench.ends
    assert (end.status, end.reason) == (status, reason)
    assert end.value == (None if status == "failed" else 4.0)
    bench.searcher.on_trial_complete(trial_id, error=True)  # late news change nothing
    assert bench.ask() is None
    assert len(bench.ends) == 1
    check = bench.trials()[0]
    assert check.state == STATES[status]
    assert check.intermediate_values[1] == 5.0


def test_close_reports_every_open_trial_and_leaves_it_open_in_the_study(tmp_path: Path) -> None:
    bench = Bench(make_spec(SMALL, trials=5), tmp_path)
    some, none = bench.ask(), bench.ask()
    assert some and none
    bench.searcher.study.enqueue_trial(dict(bench.started[some]))
    third = bench.ask()  # after a copy of the first, which waits
    assert third
    bench.epoch(some, 1, 2.0)
    bench.searcher.close("time budget")
    ends = {end.trial_id: end for end in bench.ends}
    assert (ends[some].status, ends[some].value, ends[some].reason) == ("pruned", 2.0, "time budget")
    assert (
        (ends[none].status, ends[none].reason)
        == (ends[third].status, ends[third].reason)
        == (
            "failed",
            "time budget",
        )
    )
    assert len(bench.ends) == 3, "the copy has no end before its original has one"
    assert [trial.state for trial in bench.trials()] == [TrialState.RUNNING] * 4
    assert not ended_lines(tmp_path), "a resume goes on with them"

    again = Bench(bench.spec, tmp_path, resume=True)
    first = again.ask()
    assert first and (again.numbers[first], again.known[first]) == (bench.numbers[some], 1)
    again.end(first, 2, 1.0)
    assert [(end.number, end.status, end.value) for end in again.ends] == [(0, "pruned", 1.0), (2, "duplicate", 1.0)]


def test_the_searcher_can_be_pickled_and_saved_as_ray_does(tmp_path: Path) -> None:
    bench = Bench(make_spec(SMALL, trials=3), tmp_path)
    assert bench.ask()
    assert pickle.loads(pickle.dumps(bench.searcher)).metric == METRIC
    before = sorted(tmp_path.iterdir())
    bench.searcher.save_to_dir(str(tmp_path), "x")
    bench.searcher.restore_from_dir(str(tmp_path))
    assert sorted(tmp_path.iterdir()) == before


def test_optuna_is_silent(tmp_path: Path, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Bench(make_spec(MIXED, trials=12), tmp_path).run(fate)
    assert not [str(warning.message) for warning in recwarn if "optuna" in warning.category.__module__]
    assert not caplog.records
