"""A driver that goes on makes up for what the one before it was killed before it could write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from searcher_bench import SMALL, epoch_row, make_spec

from xlstm_tune.results import ResultsWriter, read
from xlstm_tune.search.driver import Driver
from xlstm_tune.search.persistence.journal import Journal
from xlstm_tune.search.persistence.store import Shared
from xlstm_tune.search.progress import Progress
from xlstm_tune.search.sampling.duplicates import TrialEnd
from xlstm_tune.spec import SearchSpec
from xlstm_tune.tracking import Spool

PARAMS = {"model.hidden_size": 32}
TRIAL = SimpleNamespace(config={"trials": [{"number": 0, "params": PARAMS}]}, trial_id="a")
TRAINED = TrialEnd(0, "a", "completed", None, 1.0, PARAMS)
COPY = TrialEnd(1, None, "duplicate", None, 1.0, PARAMS, 0)
REFUSED = TrialEnd(2, None, "failed", "too large: 9 parameters", None, {"model.hidden_size": 64})
LOST = "worker died, 4 times in a row without a new epoch"


@contextmanager
def driving(folder: Path, spec: SearchSpec) -> Iterator[tuple[Driver, Journal]]:
    """A driver that goes on with what the folder holds; closed in the end."""
    journal = Journal(folder)
    with ResultsWriter(folder) as results, Spool(folder, "sqlite:///nowhere") as spool:
        driver = Driver(spec, Shared(folder), results, spool, Progress(4, "val_rmse", None))
        driver.recall(journal.history)
        yield driver, journal
    journal.close()


def told(folder: Path, number: int) -> list[str]:
    """What the spool says of a trial."""
    events = [json.loads(line) for line in (folder / "mlflow" / "spool.jsonl").read_bytes().splitlines()]
    return [event["e"] for event in events if event.get("number") == number]


def test_recall_begins_the_runs_of_trials_that_no_worker_was_given(tmp_path: Path) -> None:
    spec = make_spec(SMALL, trials=4)
    with driving(tmp_path, spec) as (driver, journal):
        journal.began([0], [PARAMS])
        driver.on_trial_start(0, [], TRIAL)
        driver.on_trial_result(0, [], TRIAL, {"rows": [_noted(journal, epoch_row(0, done=True))]})
        for end in (TRAINED, COPY, REFUSED):
            journal.ended(end)  # and it is killed before it says so to MLflow
    for _ in range(2):
        with driving(tmp_path, spec):
            pass
        assert told(tmp_path, 0) == ["trial_started", "epoch", "trial_ended"]
        assert told(tmp_path, 1) == told(tmp_path, 2) == ["trial_started", "trial_ended"]
    assert read(tmp_path, "trials")["status"].to_pylist() == ["completed", "duplicate", "failed"]


def test_recall_begins_the_run_of_a_trial_that_failed_without_an_epoch(tmp_path: Path) -> None:
    """Its run began in a spool that is lost."""
    spec = make_spec(SMALL, trials=4)
    with driving(tmp_path, spec) as (_, journal):
        journal.began([0], [PARAMS])
        journal.ended(TrialEnd(0, "a", "failed", LOST, None, PARAMS))
    with driving(tmp_path, spec):
        pass
    assert told(tmp_path, 0) == ["trial_started", "trial_ended"]


def test_recall_heals_a_run_that_ended_without_having_begun(tmp_path: Path) -> None:
    spec = make_spec(SMALL, trials=4)
    with driving(tmp_path, spec) as (driver, journal):
        journal.ended(REFUSED)
        driver.on_end(REFUSED)
    spool = tmp_path / "mlflow" / "spool.jsonl"
    lines = [line for line in spool.read_bytes().splitlines(keepends=True) if json.loads(line)["e"] != "trial_started"]
    spool.write_bytes(b"".join(lines))
    assert told(tmp_path, 2) == ["trial_ended"]
    for _ in range(2):
        with driving(tmp_path, spec):
            pass
        assert told(tmp_path, 2) == ["trial_ended", "trial_started", "trial_ended"]
    assert read(tmp_path, "trials").num_rows == 1


def test_recall_knows_the_members_of_a_trial_that_failed(tmp_path: Path) -> None:
    spec = SearchSpec.parse(
        make_spec(SMALL, trials=4).model_dump(by_alias=True, exclude_none=True) | {"population": {"seeds": 2}}
    )
    best = dict.fromkeys(("rmse", "mae", "mse_standardised", "mae_standardised"), 1.0)
    member: dict[str, Any] = {"status": "running", "reason": None, "value": 1.0, "epochs": 1, "best_epoch": 1}
    first = [member | {"best": best}] * 2
    diverged, dropped = "diverged: loss is nan", "its setting is out: seed 0 failed"
    then = [
        member | {"best": best, "status": "failed", "reason": diverged},
        member | {"best": best | {"rmse": 0.5}, "status": "dropped", "reason": dropped, "epochs": 2, "best_epoch": 2},
    ]
    good = epoch_row(0, done=False, members=first, trained=[0, 1], winner=0, std_error=0.1)
    bad = epoch_row(0, epoch=2, done=True, status="failed", reason="diverged: no setting is left", members=then)
    tables = []
    for killed in (False, True):
        folder = tmp_path / str(killed)
        folder.mkdir()
        with driving(folder, spec) as (driver, journal):
            journal.began([0], [PARAMS])
            driver.on_trial_start(0, [], TRIAL)
            driver.on_trial_result(0, [], TRIAL, {"rows": [_noted(journal, good)]})
            _noted(journal, bad)
            end = TrialEnd(0, "a", "failed", bad["reason"], None, PARAMS)
            journal.ended(end)
            if not killed:
                driver.on_end(end)
                driver.on_trial_result(0, [], TRIAL, {"rows": [bad]})
        if killed:
            with driving(folder, spec):
                pass
        tables.append(read(folder, "members").to_pylist())
    assert tables[0] == tables[1]
    assert [row["reason"] for row in tables[1]] == [diverged, dropped]


def _noted(journal: Journal, row: dict[str, Any]) -> dict[str, Any]:
    """A row that the journal holds."""
    journal.epoch(row, stop=False)
    return row
