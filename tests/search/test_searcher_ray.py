"""The searcher under Ray itself: failures, early stops and duplicates leave nothing open."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from searcher_bench import EPOCHS, METRIC, SMALL, STATES, ended_lines, make_spec

from xlstm_tune.search.persistence.folder import trial_folder
from xlstm_tune.search.persistence.journal import Journal, read_journal
from xlstm_tune.search.persistence.store import Shared
from xlstm_tune.search.sampling.duplicates import REASON, TrialEnd
from xlstm_tune.search.sampling.searcher import TRIES, OptunaSearcher
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.search.scheduling.losses import Losses
from xlstm_tune.search.scheduling.referee import Referee
from xlstm_tune.search.scheduling.schedulers import make_scheduler
from xlstm_tune.search.stopping import Stopping


@pytest.mark.slow
@pytest.mark.parametrize("most", [100, 2], ids=["a cluster grows", "no worker is there yet"])
def test_out_of_time_running_epochs_are_heard_of_and_no_trial_begins(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six of Ray's trials, two of which have a place; or two whose workers have not come when the time is over."""
    import ray
    from ray import tune

    for name in ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS"):
        monkeypatch.setenv(name, "1" if "DISABLE" in name else "0")

    class Trial(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            (one,) = config["trials"]
            self.number, self.epoch = one["number"], 0

        def step(self) -> dict[str, Any]:
            time.sleep(1.5)
            self.epoch += 1
            row = {"number": self.number, "epoch": self.epoch, METRIC: 1.0, "status": "running"}
            return {"rows": [row | {"finished": False, "done": False}], "numbers": [self.number], METRIC: 1.0}

        def save_checkpoint(self, folder: str) -> None:
            pass

    class BudgetBegins(tune.Callback):  # type: ignore[misc]
        begun = False

        def on_trial_result(self, **info: Any) -> None:
            if not self.begun:
                self.begun = True
                stopping.allow(2.0)

    spec, ends = make_spec(SMALL, algorithm="random", trials=6, scheduler="none"), []
    stopping = Stopping(print)
    journal, losses = Journal(tmp_path), Losses(tmp_path, out_of_time=stopping.out_of_time)
    referee = Referee(make_scheduler(spec.search, EPOCHS), Shared(tmp_path), journal, stopping)
    searcher = OptunaSearcher(
        spec,
        Space.from_spec(spec),
        tmp_path,
        journal,
        on_end=ends.append,
        room=lambda: 6,
        none_begins=stopping.none_begins,
    )
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        callbacks = [BudgetBegins()] if most > 2 else []
        tuner = tune.Tuner(
            Trial,
            tune_config=tune.TuneConfig(
                search_alg=searcher, scheduler=losses, num_samples=-1, max_concurrent_trials=most
            ),
            run_config=tune.RunConfig(
                name="ray", storage_path=str(tmp_path), stop=referee, callbacks=callbacks, verbose=0
            ),
        )
        stopping.allow(0.5 if most == 2 else None)
        tuner.fit()
    finally:
        ray.shutdown()
    searcher.close("time budget")
    journal.close()
    rows = [row for row, _ in read_journal(tmp_path).rows]
    epochs = Counter(row["number"] for row in rows)
    heard = {end.number: end.status for end in ends}
    assert len(heard) == min(most, 6) and len(epochs) <= 2 and bool(epochs) == (most > 2)
    assert all((heard[number] == "pruned") == (number in epochs) for number in heard)
    for number in epochs:  # a row for every epoch that was begun before
        assert [row["epoch"] for row in rows if row["number"] == number] == list(range(1, epochs[number] + 1))


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
            return {key: row[key] for key in ("epoch", METRIC, "done")} | {"rows": [row], "numbers": [self.number]}

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
    journal, losses, stopping = Journal(tmp_path), Losses(tmp_path), Stopping(print)
    for number in range(200):  # what a worker makes first
        trial_folder(tmp_path, number).mkdir(parents=True)
    referee = Referee(make_scheduler(spec.search, EPOCHS), Shared(tmp_path), journal, stopping)
    space = Space.from_spec(spec)
    searcher = OptunaSearcher(spec, space, tmp_path, journal, on_end=ends.append, why_lost=losses.why)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        tuner = tune.Tuner(
            Trial,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=losses,
                num_samples=-1,
                max_concurrent_trials=2,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name="ray", storage_path=str(tmp_path), stop=referee, verbose=0),
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
    assert counts["failed"] + counts["pruned"] + counts["completed"] == 12 == len(grid) - (TRIES - 1)
    for end in ends:
        trial = trials[end.number]
        if end.status != "duplicate":
            assert trial.state == STATES[end.status]
            last = trial.last_step
            assert (last == EPOCHS) == (end.status == "completed")
            assert trial.user_attrs.get(REASON) == end.reason
    reasons = Counter(end.reason for end in ends if end.status == "failed")
    assert reasons == {"diverged: here": 2, f"worker died, {TRIES} times in a row without a new epoch": 1}
    assert not list((tmp_path / "ray").glob("searcher-state*"))
    assert ended_lines(tmp_path) == [trial.number for trial in trials]
