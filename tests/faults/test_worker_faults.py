"""What happens to workers inside one search: nothing is lost, nothing is doubled, and the reason is on record."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_search import Search, check_accounted, runs_of, study_of, trials_of, write_search

from xlstm_tune.search.persistence.journal import JOURNAL

pytestmark = pytest.mark.slow
EVERY_EPOCH = {"XLSTM_TUNE_CHECKPOINT_SHARE": "1000"}


def test_killed_and_hanging_workers_are_replaced_and_a_failed_trial_fails_alone(
    tmp_path: Path, undisturbed: Callable[..., Path]
) -> None:
    """SIGKILL to one, SIGSTOP to another: both go on where they were, with the same bits. A third one cannot write."""
    search = Search(tmp_path / "searches", **EVERY_EPOCH)
    search.start(str(write_search(tmp_path, resources={"trial_timeout": "5s"})))
    search.until(search.folder.exists)
    (search.folder / "trials").mkdir()
    (search.folder / "trials" / "00002").write_text("a file where the trial's folder should be")
    search.send_to_workers({0: signal.SIGKILL, 1: signal.SIGSTOP, 3: signal.SIGKILL})
    search.end()
    check_accounted(search.folder, undisturbed(), but=2)
    told = [json.loads(line) for line in (search.folder / JOURNAL).read_text().splitlines()]
    died = {(event["numbers"][0], event["why"]) for event in told if event["e"] == "died"}
    assert {(0, "worker died"), (3, "worker died")} <= died
    assert (1, "hung: no epoch within resources.trial_timeout") in died
    assert not list(search.folder.glob("trials/*/checkpoints")) and not list(search.folder.glob("ray-*"))
    row, run = trials_of(search.folder)[2], runs_of(search.folder)[2][0]
    assert row["status"] == "failed" and row["reason"].startswith("error: FileExistsError"), row
    assert study_of(search.folder)[2].user_attrs["reason"] == run.data.tags["reason"] == row["reason"]
