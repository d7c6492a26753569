"""What a worker makes of failures around its training: of the timing of forecasts, of the disk, of the storage."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from xlstm_tune.data.windows import Prepared
from xlstm_tune.layout import CHECKPOINTS, SPEC, trial_folder
from xlstm_tune.search.persistence.folder import HUNG
from xlstm_tune.search.persistence.store import PATIENCE, Remote, Shared
from xlstm_tune.search.trials import trainable
from xlstm_tune.search.trials.checkpoints import ROWS
from xlstm_tune.search.trials.single_trial import SingleTrial
from xlstm_tune.search.trials.system import SystemMetrics
from xlstm_tune.search.trials.trainable import SearchTrial
from xlstm_tune.spec import SearchSpec
from xlstm_tune.storage.objects import Objects


def begun(data: Prepared, store: Shared, **sections: dict[str, Any]) -> SearchTrial:
    """A worker that has taken up trial 0, without Ray."""
    raw = {
        "name": "t",
        "data": {"source": "t.csv", "target": "y", "lookback": 5, "horizon": 2},
        "model": {"family": "slstm", "layers": 1, "hidden_size": 4, "heads": 2},
        "training": {"epochs": 5, "batch_size": 32},
        "search": {"costs": ["latency_ms"]},
    }
    trial = SearchTrial.__new__(SearchTrial)
    trial._data, trial._spec, trial._store, trial._folder = data, SearchSpec.parse(raw | sections), store, store.folder
    trial._of_architecture, trial._extra, trial._system, trial._worker = {}, 0.0, SystemMetrics(), "worker"
    trial._begin({"trials": [{"number": 0, "params": {}, "known": 0}]})
    return trial


def kept_at(bucket: Path) -> Remote:
    """A worker's side of a search that is kept there."""
    store = Remote(Objects(bucket.as_uri()), "t", patience=60.0)
    store.objects.put(SPEC, b"")
    return store


def raising(error: BaseException) -> Any:
    """A function that raises it, whatever it is called with."""

    def call(*_: object) -> float:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory: CUDA out of memory."),
        (RuntimeError("no kernel"), "error: RuntimeError: no kernel"),
    ],
)
def test_a_forecast_that_cannot_be_timed_is_an_outcome(
    error: BaseException, reason: str, data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainable, "forecast_latency", raising(error))
    result = begun(data, Shared(tmp_path)).step()
    (row,) = result["rows"]
    assert (row["status"], row["epoch"], row["done"], result["done"]) == ("failed", 1, True, True)
    assert row["reason"].startswith(reason)


def test_a_full_disk_while_forecasts_are_timed_stops_the_search(
    data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(trainable, "forecast_latency", raising(full))
    result = begun(data, Shared(tmp_path)).step()
    assert result["disk"][0] == "disk full" and not result["rows"] and result["done"]


def test_timing_forecasts_is_watched_too(data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note, timed = trial_folder(tmp_path, 0) / HUNG, []
    monkeypatch.setattr(trainable, "forecast_latency", lambda *_: timed.append(note.exists()) or 1.0)
    trial = begun(data, Shared(tmp_path), resources={"trial_timeout": 300})
    assert [row["latency_ms"] for row in trial.step()["rows"]] == [1.0]
    assert timed == [True] and not note.exists()


@pytest.mark.usefixtures("save_every_epoch")
def test_epochs_that_a_lost_worker_left_fail_one_by_one(data: Prepared, tmp_path: Path) -> None:
    """A driver that knows the first of them finds the second, whatever it makes of it."""
    for _ in range(2):
        before = begun(data, Shared(tmp_path))
        before.step()
        before.step()
    slow = begun(data, Shared(tmp_path), search={"constraints": {"max_latency_ms": 1e-9}})
    rows = slow.step()["rows"]
    assert [(row["epoch"], row["status"]) for row in rows] == [(1, "failed"), (2, "failed"), (3, "failed")]


@pytest.mark.parametrize(
    "message", ["Error while serializing: I/O error: No space left on device (os error 28)", "odd"]
)
def test_a_last_save_that_fails_leaves_no_model_and_no_files(
    message: str, data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Safetensors tells of a full disk by an error that is no OSError."""
    store = kept_at(tmp_path / "bucket")
    trial = begun(data, store)
    trial.step()
    assert trial_folder(store.folder, 0).exists()
    monkeypatch.setattr(SingleTrial, "save", raising(SafetensorError(message)))
    if "space" in message:
        trial.cleanup()
    else:
        with pytest.raises(SafetensorError, match="odd"):
            trial.cleanup()
    assert trial._trial is None and not trial_folder(store.folder, 0).exists()


def test_a_worker_that_gave_the_storage_up_hands_nothing_over_later(
    data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trial may be another worker's by then, and the search another driver's."""
    monkeypatch.setenv(PATIENCE, "0")
    bucket, gone = tmp_path / "bucket", tmp_path / "gone"
    trial = begun(data, kept_at(bucket))
    assert trial.step()["rows"]
    bucket.rename(gone)
    bucket.write_text("no folder")
    assert "does not answer" in trial.step()["storage_away"]
    bucket.unlink()
    gone.rename(bucket)
    before = sorted(bucket.rglob("*"))
    trial.cleanup()
    assert trial._trial is None and sorted(bucket.rglob("*")) == before
    assert not list(bucket.rglob(f"{CHECKPOINTS}/epoch-*"))


def test_the_next_trial_of_that_worker_is_saved_again(data: Prepared, tmp_path: Path) -> None:
    trial = begun(data, Shared(tmp_path))
    trial._away = True
    trial.reset_config({"trials": [{"number": 1, "params": {}, "known": 0}]})
    trial.step()
    trial.cleanup()
    places = sorted(path.name for path in (trial_folder(tmp_path, 1) / CHECKPOINTS).iterdir())
    assert places == ["epoch-000001", ROWS]
    assert json.loads((trial_folder(tmp_path, 1) / CHECKPOINTS / ROWS).read_bytes())["epoch"] == 1
