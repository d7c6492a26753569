"""The searcher over real Optuna studies: every trial ends exactly once, and Optuna is always told how."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from xlstm_tune.errors import StorageError
from xlstm_tune.search.duplicates import CUT, DUPLICATE_OF, REASON, TrialEnd
from xlstm_tune.search.schedulers import make_scheduler
from xlstm_tune.search.searcher import OptunaSearcher
from xlstm_tune.search.space import Params, Space
from xlstm_tune.search.study import JOURNAL, open_study
from xlstm_tune.spec import SearchSpec

EPOCHS = 4
METRIC = "best_val_rmse"
SMALL = {"model.hidden_size": {"choice": [32, 64, 128]}, "model.dropout": {"choice": [0.0, 0.1, 0.2, 0.3]}}
MIXED = {
    "model.family": {"choice": ["lstm", "xlstm"]},
    "model.pattern": {"choice": ["s", "ms"], "when": {"model.family": "xlstm"}},
    "model.dropout": {"float": [0.0, 0.3], "step": 0.1},
    "training.learning_rate": {"log_float": [1e-4, 1e-2]},
}
STATES = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


def make_spec(space: dict[str, Any], **search: Any) -> SearchSpec:
    data = {"source": "x.csv", "target": "y", "lookback": 10}
    search = {"scheduler": "none", "start_with": "none", "seed": 3} | search
    return SearchSpec.parse({"name": "t", "data": data, "space": space, "search": search})


class Bench:
    """A searcher driven by hand, as Ray drives it."""

    def __init__(self, spec: SearchSpec, folder: Path, resume: bool = False) -> None:
        self.spec = spec
        self.ends: list[TrialEnd] = []
        self.searcher = OptunaSearcher(spec, Space.from_spec(spec), folder, resume=resume, on_end=self.ends.append)
        self.started: dict[str, Params] = {}
        self.numbers: dict[str, int] = {}
        self._next = 0

    def ask(self) -> str | None:
        """Start a trial; None when the searcher has finished."""
        trial_id = f"t{self._next}"
        self._next += 1
        suggestion = self.searcher.suggest(trial_id)
        if suggestion == Searcher.FINISHED:
            return None
        assert isinstance(suggestion, dict)
        (one,) = suggestion["trials"]
        self.started[trial_id], self.numbers[trial_id] = one["params"], one["number"]
        return trial_id

    def epoch(self, trial_id: str, epoch: int, best: float) -> None:
        self.searcher.on_trial_result(trial_id, self.result(trial_id, epoch, best))

    def end(self, trial_id: str, epoch: int, best: float, **changes: Any) -> None:
        self.searcher.on_trial_complete(trial_id, self.result(trial_id, epoch, best, **changes))

    def result(self, trial_id: str, epoch: int, best: float, **changes: Any) -> dict[str, Any]:
        return {"rows": [row(epoch, best) | {"number": self.numbers[trial_id], "done": "status" in changes} | changes]}

    def run(self, outcome: Callable[[Params], str], concurrent: int = 3) -> None:
        """Run to the end, `concurrent` trials side by side, an epoch of each in turn."""
        running: dict[str, int] = {}
        while True:
            while len(running) < concurrent and (trial_id := self.ask()):
                running[trial_id] = 0
            if not running:
                return
            for trial_id in list(running):
                running[trial_id] += 1
                if self.step(trial_id, running[trial_id], outcome(self.started[trial_id])):
                    del running[trial_id]

    def step(self, trial_id: str, epoch: int, outcome: str) -> bool:
        """One epoch of a trial that ends as `outcome`; true when it has ended."""
        best = score(self.started[trial_id]) + 1 / epoch
        if epoch == 2 and outcome == "diverged":
            self.end(trial_id, epoch, math.nan, status="failed", reason="diverged: loss is nan")
        elif epoch == 2 and outcome == "nan":
            self.end(trial_id, epoch, math.nan, status="completed", finished=True)
        elif epoch == 2 and outcome == "died":
            self.searcher.on_trial_complete(trial_id, error=True)
        elif epoch == 3 and outcome == "pruned":
            self.end(trial_id, epoch, best)
        elif epoch == EPOCHS:
            self.end(trial_id, epoch, best, status="completed", finished=True)
        else:
            self.epoch(trial_id, epoch, best)
            return False
        return True

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        trials: list[optuna.trial.FrozenTrial] = self.searcher.study.get_trials(deepcopy=False)
        return trials


def row(epoch: int, best: float) -> dict[str, Any]:
    return {"epoch": epoch, "val_rmse": best + 0.5, METRIC: best, "status": "running", "finished": False}


def score(params: Params) -> float:
    """A fixed number in [0, 1) for each point."""
    return sum(map(ord, json.dumps(params, sort_keys=True))) % 97 / 97


def fate(params: Params) -> str:
    """Every kind of end, decided by the point alone."""
    fates = ["completed", "completed", "pruned", "diverged", "nan", "died"]
    return fates[sum(map(ord, json.dumps(params, sort_keys=True))) % len(fates)]


def check_all_told(bench: Bench) -> None:
    """What must hold after any search: nothing open, one end per trial, ends and study agree, no experiment twice."""
    trials = {trial.number: trial for trial in bench.trials()}
    assert all(trial.state.is_finished() for trial in trials.values())
    assert sorted(end.number for end in bench.ends) == sorted(trials)
    by_number = {end.number: end for end in bench.ends}
    for end in bench.ends:
        trial = trials[end.number]
        if end.status == "duplicate":
            original = by_number[end.duplicate_of or 0]
            assert end.trial_id is None
            assert original.status != "duplicate"
            assert trial.state == STATES[original.status]
            assert (end.value, end.reason) == (original.value, original.reason)
            assert trial.value == original.value
            if original.status == "pruned":
                assert trial.intermediate_values == trials[original.number].intermediate_values
            assert trial.user_attrs[DUPLICATE_OF] == original.number
            assert bench.spec.resolve(end.params).key() == bench.spec.resolve(original.params).key()
            continue
        assert end.trial_id is not None
        assert bench.numbers[end.trial_id] == end.number
        assert bench.started[end.trial_id] == end.params
        assert trial.state == STATES[end.status]
        assert trial.value == end.value
        assert trial.user_attrs.get(REASON) == end.reason
        if end.status == "failed":
            assert end.reason
        else:
            assert end.value == min(trial.intermediate_values.values())
            assert len(trial.intermediate_values) == (EPOCHS if end.status == "completed" else 3)
    keys = [bench.spec.resolve(params).key() for params in bench.started.values()]
    assert len(keys) == len(set(keys)) == bench.searcher.started


@pytest.mark.parametrize("space", [SMALL, MIXED], ids=["finite", "mixed"])
@pytest.mark.parametrize("algorithm", ["tpe", "random", "gp", "grid"])
def test_every_trial_is_told_whatever_the_algorithm(algorithm: str, space: dict[str, Any], tmp_path: Path) -> None:
    if algorithm == "grid":
        space = {key: value for key, value in space.items() if key != "training.learning_rate"}
    trials = None if algorithm == "grid" else 12
    bench = Bench(make_spec(space, algorithm=algorithm, trials=trials), tmp_path)
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


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_a_finite_space_is_tried_completely_and_then_said_to_be_exhausted(algorithm: str, tmp_path: Path) -> None:
    bench = Bench(make_spec(SMALL, algorithm=algorithm, trials=500), tmp_path)
    bench.run(lambda params: "completed")
    check_all_told(bench)
    assert bench.searcher.started == 12
    assert "all 12 distinct configurations" in str(bench.searcher.exhausted)
    assert any(end.status == "duplicate" for end in bench.ends)


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


def test_settings_that_a_family_ignores_make_no_new_experiment(tmp_path: Path) -> None:
    """An infinite space of which only one point is an experiment: found out, not searched for ever."""
    space = {"model.proj_factor": {"float": [1.0, 2.0]}}
    spec = make_spec(space, algorithm="random", trials=5)
    lstm = SearchSpec.parse({**spec.model_dump(by_alias=True, exclude_none=True), "model": {"family": "lstm"}})
    bench = Bench(lstm, tmp_path)
    bench.run(lambda params: "completed")
    assert bench.searcher.started == 1
    assert "in a row" in str(bench.searcher.exhausted)
    check_all_told(bench)


def test_refused_combinations_fail_with_their_reason_and_are_asked_again(tmp_path: Path) -> None:
    # 1 of 400 widths is no model with 2 heads: the 200 samples of the check may miss it, a start point hits it.
    space = {"model.hidden_size": {"choice": [*range(2, 802, 2), 3]}, "model.dropout": {"float": [0.0, 0.5]}}
    spec = make_spec(space, algorithm="random", trials=2, start_with=[{"model.hidden_size": 3}])
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"heads": 2})})
    bench = Bench(spec, tmp_path)
    bench.run(lambda params: "completed")
    assert [end.status for end in bench.ends if end.number == 0] == ["failed"]
    refused = bench.trials()[0]
    assert refused.state == TrialState.FAIL
    assert "invalid: model.heads must divide" in refused.user_attrs[REASON]
    assert bench.searcher.started == 2
    assert Counter(trial.state for trial in bench.trials()) == {TrialState.FAIL: 1, TrialState.COMPLETE: 2}


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
    assert len(bench.ends) == 1
    check = bench.trials()[0]
    assert check.state == STATES[status]
    assert check.intermediate_values[1] == 5.0


def test_close_tells_every_open_trial(tmp_path: Path) -> None:
    bench = Bench(make_spec(SMALL, trials=5), tmp_path)
    some, none = bench.ask(), bench.ask()
    assert some and none
    bench.searcher.study.enqueue_trial(dict(bench.started[some]))
    third = bench.ask()  # after a copy of the first, which waits
    assert third
    bench.epoch(some, 1, 2.0)
    bench.searcher.close("time budget")
    ends = {end.trial_id or "copy": end for end in bench.ends}
    assert (ends[some].status, ends[some].value, ends[some].reason) == ("pruned", 2.0, "time budget")
    assert (ends[none].status, ends[none].reason) == ("failed", "time budget")
    assert ends["copy"].status == "duplicate"
    assert len(bench.ends) == len(bench.trials()) == 4
    assert all(trial.state.is_finished() for trial in bench.trials())
    bench.end(some, 2, 1.0)
    bench.searcher.close("again")
    assert len(bench.ends) == 4


def test_start_points_come_first_the_family_defaults_unless_told_otherwise(tmp_path: Path) -> None:
    bench = Bench(make_spec(MIXED, trials=4, start_with="defaults"), tmp_path)
    first, second = bench.ask(), bench.ask()
    assert first and second
    rate = {"training.learning_rate": 1e-3, "model.dropout": 0.0}
    assert bench.started[first] == {"model.family": "lstm", **rate}
    assert bench.started[second] == {"model.family": "xlstm", "model.pattern": "ms", **rate}


def test_a_grid_keeps_the_order_of_the_file_and_stops_at_the_number_of_trials(tmp_path: Path) -> None:
    bench = Bench(make_spec(SMALL, algorithm="grid", trials=5), tmp_path)
    bench.run(fate, concurrent=1)
    assert list(bench.started.values()) == Space.from_spec(bench.spec).grid().points[:5]
    assert bench.searcher.exhausted is None


@pytest.mark.parametrize("algorithm", ["tpe", "random", "gp"])
def test_the_seed_decides_the_proposals(algorithm: str, tmp_path: Path) -> None:
    def proposals(folder: str, seed: int) -> list[Params]:
        (tmp_path / folder).mkdir()
        bench = Bench(make_spec(MIXED, algorithm=algorithm, trials=13, seed=seed), tmp_path / folder)
        bench.run(lambda params: "completed", concurrent=1)
        return list(bench.started.values())

    assert proposals("a", 1) == proposals("b", 1)
    assert proposals("c", 2) != proposals("d", 1)


def test_resume_knows_what_is_done_and_first_repeats_what_was_interrupted(tmp_path: Path) -> None:
    spec = make_spec(SMALL, trials=8)
    dead = Bench(spec, tmp_path)
    done, failed, lost, silent = (dead.ask() for _ in range(4))
    assert done and failed and lost and silent
    dead.end(done, 4, 1.5, status="completed", finished=True)
    dead.searcher.on_trial_complete(failed, error=True)
    dead.epoch(lost, 1, 2.0)
    dead.searcher.study.enqueue_trial({"model.hidden_size": 32})  # and it died before it asked

    bench = Bench(spec, tmp_path, resume=True)
    before = bench.trials()
    assert all(trial.state.is_finished() for trial in before)
    assert [t.user_attrs.get(REASON) for t in before] == [None, "worker died", *["interrupted"] * 3]
    assert bench.searcher.started == 2
    first, second = bench.ask(), bench.ask()
    assert first and second
    assert [bench.started[first], bench.started[second]] == [dead.started[lost], dead.started[silent]]
    bench.searcher.study.enqueue_trial(dict(dead.started[done]))
    third = bench.ask()
    assert third
    copy = next(end for end in bench.ends if end.status == "duplicate")
    assert (copy.value, copy.duplicate_of) == (1.5, dead.numbers[done])
    bench.searcher.close("interrupted")

    again = Bench(spec, tmp_path, resume=True)
    again.run(lambda params: "completed")
    assert again.searcher.started == 8
    assert list(again.started.values())[:3] == [bench.started[key] for key in (first, second, third)]
    states = Counter(t.state for t in again.trials() if not {CUT, DUPLICATE_OF} & set(t.user_attrs))
    assert states == {TrialState.COMPLETE: 7, TrialState.FAIL: 1}


def test_resume_draws_new_numbers(tmp_path: Path) -> None:
    space = {"training.learning_rate": {"log_float": [1e-4, 1e-2]}}
    first = Bench(make_spec(space, algorithm="random", trials=4), tmp_path)
    first.run(lambda params: "completed")
    second = Bench(make_spec(space, algorithm="random", trials=8), tmp_path, resume=True)
    second.run(lambda params: "completed")
    assert len(second.started) == 4
    assert not any(end.status == "duplicate" for end in second.ends)


def test_resume_continues_grid_and_start_points_where_they_stopped(tmp_path: Path) -> None:
    spec = make_spec(SMALL, algorithm="grid")
    Bench(spec, tmp_path).ask()
    bench = Bench(spec, tmp_path, resume=True)
    bench.run(lambda params: "completed")
    assert bench.searcher.started == 12 == len(bench.started)
    assert not any(end.status == "duplicate" for end in bench.ends)

    (tmp_path / "starts").mkdir()
    starts = [{"model.hidden_size": size} for size in (128, 64, 32)]
    spec = make_spec(SMALL, trials=6, start_with=starts)
    first = Bench(spec, tmp_path / "starts")
    trial_id = first.ask()
    assert trial_id
    first.end(trial_id, 1, 1.0)
    second = Bench(spec, tmp_path / "starts", resume=True)
    asked = [second.ask(), second.ask()]
    assert [second.started[key]["model.hidden_size"] for key in asked if key] == [64, 32]


def test_resume_survives_a_half_written_line(tmp_path: Path) -> None:
    spec = make_spec(SMALL, trials=3)
    bench = Bench(spec, tmp_path)
    trial_id = bench.ask()
    assert trial_id
    bench.end(trial_id, 1, 1.0)
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code": 4, "worker_id": "' + b"x" * 9000)
    for _ in range(2):
        again = Bench(spec, tmp_path, resume=True)
        assert again.searcher.started == 1
        assert again.ask()


def test_a_name_already_used_is_refused_and_offers_resume(tmp_path: Path) -> None:
    spec = make_spec(SMALL, trials=3)
    Bench(spec, tmp_path)
    with pytest.raises(StorageError, match="already holds a search named 't'; resume it"):
        Bench(spec, tmp_path)


def test_storage_can_be_any_optuna_url(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    bench = Bench(make_spec(SMALL, trials=4, storage=url), tmp_path)
    bench.run(fate)
    check_all_told(bench)
    assert not (tmp_path / JOURNAL).exists()
    assert len(optuna.load_study(study_name="t", storage=url).trials) == len(bench.trials())


@pytest.mark.parametrize("url", ["sqlite:////nowhere/x.db", "nonsense://me:secret@x", "not a url"])
def test_a_storage_that_cannot_be_opened_is_one_sentence_without_passwords(url: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        open_study("t", make_spec(SMALL, storage=url).search, tmp_path)
    message = str(caught.value)
    assert url[:8] in message and "\n" not in message and "secret" not in message


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


@pytest.mark.slow
def test_a_real_ray_run_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray import tune

    for name in ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS"):
        monkeypatch.setenv(name, "1" if "DISABLE" in name else "0")

    class Trial(tune.Trainable):  # type: ignore[misc]  # local, so that it travels to the workers by value
        def setup(self, config: dict[str, Any]) -> None:
            self.reset_config(config)

        def reset_config(self, config: dict[str, Any]) -> bool:
            # Worse and worse, so that ASHA has something to stop.
            (one,) = config["trials"]
            self.point, self.number, self.epoch = one["params"], one["number"], 0
            return True

        def step(self) -> dict[str, Any]:
            self.epoch += 1
            row = self.row()
            return {key: row[key] for key in ("epoch", METRIC, "done")} | {"rows": [row]}

        def row(self) -> dict[str, Any]:
            value = self.number + 1 / self.epoch
            result = {"number": self.number, "epoch": self.epoch, METRIC: value, "status": "running"}
            result |= {"finished": False, "done": False}
            if self.point == {"model.hidden_size": 32, "model.dropout": 0.1}:
                os._exit(1)
            if self.point["model.hidden_size"] == 64 and self.point["model.dropout"] < 0.2:
                return result | {METRIC: math.nan, "status": "failed", "reason": "diverged: here", "done": True}
            if self.epoch == EPOCHS:
                return result | {"status": "completed", "finished": True, "done": True}
            return result

        def save_checkpoint(self, folder: str) -> None:
            pass

    spec = make_spec(SMALL, algorithm="random", trials=50, scheduler="asha", grace_epochs=1, reduction_factor=2)
    ends: list[TrialEnd] = []
    searcher = OptunaSearcher(spec, Space.from_spec(spec), tmp_path, on_end=ends.append)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        tuner = tune.Tuner(
            Trial,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=make_scheduler(spec.search, EPOCHS),
                num_samples=-1,
                max_concurrent_trials=2,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name="ray", storage_path=str(tmp_path), verbose=0),
        )
        grid = tuner.fit()
    finally:
        ray.shutdown()
    assert "all 12 distinct configurations" in str(searcher.exhausted)
    trials = searcher.study.get_trials(deepcopy=False)
    assert all(trial.state.is_finished() for trial in trials)
    assert sorted(end.number for end in ends) == [trial.number for trial in trials]
    counts = Counter(end.status for end in ends)
    assert counts["failed"] == 3
    assert counts["pruned"] and counts["completed"] and counts["duplicate"]
    assert counts["failed"] + counts["pruned"] + counts["completed"] == 12 == len(grid)
    for end in ends:
        trial = trials[end.number]
        if end.status != "duplicate":
            assert trial.state == STATES[end.status]
            last = trial.last_step
            assert (last == EPOCHS) == (end.status == "completed")
            assert trial.user_attrs.get(REASON) == end.reason
    reasons = Counter(end.reason for end in ends if end.status == "failed")
    assert reasons == {"diverged: here": 2, "worker died": 1}
    assert not list((tmp_path / "ray").glob("searcher-state*"))
