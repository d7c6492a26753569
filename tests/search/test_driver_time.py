"""The time that a trial took is what workers had it, each configuration of a group its share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from searcher_bench import SMALL, epoch_row, make_spec

from xlstm_tune.results import ResultsWriter
from xlstm_tune.search import driver as driver_module
from xlstm_tune.search.driver import Driver
from xlstm_tune.search.persistence.journal import History
from xlstm_tune.search.persistence.store import Shared
from xlstm_tune.search.progress import Progress
from xlstm_tune.search.sampling.duplicates import TrialEnd
from xlstm_tune.tracking import Spool


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`now`, in seconds."""
    made = SimpleNamespace(now=1_000_000.0)
    monkeypatch.setattr(driver_module.time, "time", lambda: made.now)
    return made


@contextmanager
def driving(folder: Path) -> Iterator[Driver]:
    """A driver of a search in `folder`; closed in the end."""
    with ResultsWriter(folder) as results, Spool(folder, "sqlite:///nowhere") as spool:
        driver = Driver(make_spec(SMALL, trials=4), Shared(folder), results, spool, Progress(4, "val_rmse", None))
        yield driver
        assert driver.close()


def test_a_lost_worker_stops_the_clock_and_a_group_shares_it(tmp_path: Path, clock: SimpleNamespace) -> None:
    grid = [{"model.hidden_size": 32, "model.dropout": rate} for rate in (0.1, 0.2)]
    with driving(tmp_path) as driver:
        one = [{"number": number, "params": params} for number, params in enumerate(grid)]
        group = SimpleNamespace(config={"trials": one}, trial_id="a")
        driver.on_trial_start(0, [], group)
        clock.now += 100
        driver.on_trial_error(0, [], group)
        for number, trial in enumerate(one):
            clock.now += 3600  # nobody has it
            alone = SimpleNamespace(config={"trials": [trial]}, trial_id=f"b{number}")
            driver.on_trial_start(0, [], alone)
            clock.now += 10
            driver.on_end(TrialEnd(number, alone.trial_id, "completed", None, 1.0, trial["params"]))
            driver.on_trial_complete(0, [], alone)
    share = 100 / len(one)
    assert [driver.rows[number]["seconds"] for number in range(len(one))] == pytest.approx([share + 10] * len(one))


def test_a_duplicate_waits_for_a_trial_that_an_earlier_driver_cut_short(tmp_path: Path) -> None:
    """The row of the cut is there, and says what the trial has not come to yet."""
    params = {"model.hidden_size": 32}
    trial = SimpleNamespace(config={"trials": [{"number": 0, "params": params}]}, trial_id="a")
    for reason in ("time budget", None):
        with driving(tmp_path) as driver:
            driver.recall(History())
            driver.on_trial_start(0, [], trial)
            best = 5.0 if reason else 1.0
            driver.on_trial_result(0, [], trial, {"rows": [epoch_row(0, best_val_rmse=best, done=False)]})
            driver.on_end(TrialEnd(0, "a", "pruned" if reason else "completed", reason, best, params))
            if reason is None:
                driver.on_end(TrialEnd(1, None, "duplicate", None, best, params, 0))
            driver.on_trial_complete(0, [], trial)
    assert [driver.rows[number]["val_rmse"] for number in range(2)] == [1.0, 1.0]


def test_who_goes_on_alone_shares_no_longer(tmp_path: Path, clock: SimpleNamespace) -> None:
    with driving(tmp_path) as driver:
        one = [{"number": number, "params": {"model.hidden_size": 32 + 8 * number}} for number in range(2)]
        group = SimpleNamespace(config={"trials": one}, trial_id="a")
        driver.on_trial_start(0, [], group)
        for seconds, done in ((100, (True, False)), (30, (True,)), (4, ())):
            clock.now += seconds
            going = [trial["number"] for trial in one][-len(done) :] if done else []
            rows = [
                epoch_row(number, compile_seconds=40.0 if seconds == 100 else 0.0, done=ended)
                for number, ended in zip(going, done, strict=True)
            ]
            for row in rows:
                if row["done"]:
                    driver.on_end(TrialEnd(row["number"], "a", "completed", None, 1.0, one[row["number"]]["params"]))
            driver.on_trial_result(0, [], group, {"rows": rows})
    assert [driver.rows[number]["seconds"] for number in range(2)] == pytest.approx([30, 30 + 30])


def test_a_group_that_fails_as_a_whole_has_spent_what_it_took(tmp_path: Path, clock: SimpleNamespace) -> None:
    """Its configurations are trained again, each alone; Ray says only that the group is complete."""
    with driving(tmp_path) as driver:
        one = [{"number": number, "params": {"model.hidden_size": 32 + 8 * number}} for number in range(2)]
        group = SimpleNamespace(config={"trials": one}, trial_id="a")
        driver.on_trial_start(0, [], group)
        clock.now += 600
        driver.on_trial_result(0, [], group, {"rows": []})
        driver.on_trial_complete(0, [], group)
        for number in range(2):
            alone = SimpleNamespace(config={"trials": [one[number]]}, trial_id=f"b{number}")
            driver.on_trial_start(0, [], alone)
            clock.now += 10
            driver.on_end(TrialEnd(number, alone.trial_id, "completed", None, 1.0, one[number]["params"]))
            driver.on_trial_complete(0, [], alone)
    assert [driver.rows[number]["seconds"] for number in range(2)] == pytest.approx([310, 310])


def test_compiling_while_epochs_are_repeated_costs_the_trial_nothing(tmp_path: Path, clock: SimpleNamespace) -> None:
    """The referee leaves no row of them, and adds what compiling took to the next."""
    with driving(tmp_path) as driver:
        trial = SimpleNamespace(config={"trials": [{"number": 0, "params": {"model.hidden_size": 32}}]}, trial_id="a")
        driver.on_trial_start(0, [], trial)
        clock.now += 50
        driver.on_trial_result(0, [], trial, {"rows": []})
        clock.now += 7
        driver.on_trial_result(0, [], trial, {"rows": [epoch_row(0, done=False, compile_seconds=40.0)]})
        driver.on_end(TrialEnd(0, "a", "completed", None, 1.0, {"model.hidden_size": 32}))
        driver.on_trial_complete(0, [], trial)
    assert driver.rows[0]["seconds"] == pytest.approx(17)


def test_a_result_with_several_epochs_of_one_configuration_counts_once(tmp_path: Path, clock: SimpleNamespace) -> None:
    """As after a resume, when a worker tells what nobody had heard."""
    with driving(tmp_path) as driver:
        trial = SimpleNamespace(config={"trials": [{"number": 0, "params": {"model.hidden_size": 32}}]}, trial_id="a")
        driver.on_trial_start(0, [], trial)
        clock.now += 40
        rows = [epoch_row(0, epoch=epoch, done=False, compile_seconds=10.0) for epoch in (1, 2, 3)]
        driver.on_trial_result(0, [], trial, {"rows": rows})
        clock.now += 100
        driver.on_trial_error(0, [], trial)
        clock.now += 1000
        driver.on_end(TrialEnd(0, "a", "pruned", None, 1.0, {"model.hidden_size": 32}))
    assert driver.rows[0]["seconds"] == pytest.approx(30 + 100)
