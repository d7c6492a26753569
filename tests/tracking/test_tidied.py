"""Somebody tidies up in MLflow, deletes or renames, while a search still has something to send."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from tracked import check_search, say_search, say_trial, send_all, stored

from xlstm_tune.tracking import Spool, default_uri
from xlstm_tune.tracking.writer import unsent


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("deleted", [None, 0])
def test_a_deleted_run_that_goes_on_is_restored(deleted: int | None, known: bool, folder: Path) -> None:
    """known: the one who sends knows the run's id, or has to find it first."""
    uri = default_uri(folder.parent)
    client = MlflowClient(uri)
    with Spool(folder, uri) as spool:
        spool.search_started("s", {}, {}, [])
        for number in (0, 1):
            spool.trial_started(number, f"trial-{number}", {}, {})
            spool.epoch(number, 1, {"rmse": 2.0})
        spool.trial_ended(1, "completed")
        sender = send_all(folder, uri)
        before = stored(uri, folder)
        for one in {deleted, 1}:  # somebody tidies up in the UI
            client.delete_run(before[one]["id"])
        spool.epoch(0, 2, {"rmse": 1.0})
        spool.search_ended("completed")
    if known:
        while sender.waiting():
            sender.send_next()
    else:
        kept = json.loads((folder / "mlflow" / "state.json").read_text())
        parent = {} if deleted is None else {"parent": kept["runs"]["parent"]}
        (folder / "mlflow" / "state.json").write_text(json.dumps(kept | {"runs": parent}))
        send_all(folder, uri)
    assert unsent(folder) is None
    runs = stored(uri, folder)
    assert set(runs) == {None, 0} and {runs[number]["id"] for number in runs} == {before[n]["id"] for n in (None, 0)}
    assert runs[0]["curves"]["rmse"] == [(1, 2.0), (2, 1.0)] and runs[None]["status"] == "FINISHED"
    assert client.get_run(before[1]["id"]).info.lifecycle_stage == "deleted", "nothing was sent to it"


def test_an_experiment_may_be_renamed(folder: Path) -> None:
    uri = default_uri(folder.parent)
    client = MlflowClient(uri)
    with Spool(folder, uri) as spool:
        say_search(spool, 2)
        send_all(folder, uri)
        client.rename_experiment(client.get_experiment_by_name("xlstm_tune").experiment_id, "my thesis")
        say_trial(spool, 2)
        spool.metrics({"test_rmse": 1.0}, trial=0)
    send_all(folder, uri)
    assert unsent(folder) is None and client.get_experiment_by_name("xlstm_tune") is None
    assert set(stored(uri, folder, "my thesis")) == {None, 0, 1, 2}


def test_deleted_experiment_is_restored(folder: Path) -> None:
    uri = default_uri(folder.parent)
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("mine", artifact_location=(folder / "files").as_uri()))
    with Spool(folder, uri, experiment="mine") as spool:
        say_search(spool, 1)
    send_all(folder, uri)
    check_search(stored(uri, folder, "mine"), 1)


@pytest.mark.parametrize("following", ["an epoch", "a trial"])
def test_experiment_deleted_while_we_are_connected_is_restored_and_nothing_lost(folder: Path, following: str) -> None:
    uri = default_uri(folder.parent)
    client = MlflowClient(uri)
    with Spool(folder, uri) as spool:
        spool.search_started("s", {}, {}, [])
        spool.trial_started(0, "trial-0", {}, {})
        spool.epoch(0, 1, {"rmse": 2.0})
        sender = send_all(folder, uri)
        experiment = client.get_experiment_by_name("xlstm_tune")
        client.delete_experiment(experiment.experiment_id)
        if following == "a trial":
            spool.trial_started(1, "trial-1", {}, {})
        spool.epoch(0, 2, {"rmse": 1.0})
        with pytest.raises(MlflowException, match="must be in the 'active' state") as refusal:
            sender.send_next()
        sender.failed(refusal.value)
        spool.search_ended("completed")
    while sender.waiting():
        sender.send_next()
    assert unsent(folder) is None
    runs = stored(uri, folder)
    assert set(runs) == ({None, 0, 1} if following == "a trial" else {None, 0})
    assert runs[0]["curves"]["rmse"] == [(1, 2.0), (2, 1.0)] and runs[None]["status"] == "FINISHED"


def test_children_of_a_parent_that_is_gone_for_good_go_to_the_new_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        say_search(spool, 2)
    send_all(folder, uri)
    before = stored(uri, folder)
    MlflowClient(uri)._tracking_client.store._hard_delete_run(before[None]["id"])
    with Spool(folder, uri) as spool:
        spool.metrics({"test_rmse": 1.0})
    set_tag, cut = MlflowClient.set_tag, [True]

    def once(client: MlflowClient, run_id: str, key: str, value: Any) -> None:
        if key == "mlflow.parentRunId" and run_id == before[1]["id"] and cut:
            cut.clear()
            raise ConnectionError("away")
        set_tag(client, run_id, key, value)

    with monkeypatch.context() as patch, contextlib.suppress(ConnectionError):
        patch.setattr(MlflowClient, "set_tag", once)
        send_all(folder, uri)
    assert not cut, "it was cut off between the two"
    send_all(folder, uri)
    runs = stored(uri, folder)
    assert set(runs) == {None, 0, 1} and runs[None]["id"] != before[None]["id"]
    assert all(runs[n]["id"] == before[n]["id"] for n in (0, 1))
    assert {runs[n]["tags"]["mlflow.parentRunId"] for n in (0, 1)} == {runs[None]["id"]}
