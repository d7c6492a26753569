"""Sending to SQLite databases: everything arrives once, whatever happened before."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from tracked import EPOCHS, check_search, say_search, say_trial, send_all, stored

from xlstm_tune.tracking import Spool, default_uri, sync
from xlstm_tune.tracking.sender import Sender, _told
from xlstm_tune.tracking.writer import unsent


def test_search_arrives_with_statuses_curves_and_artifacts(folder: Path) -> None:
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        (folder / "report").mkdir()
        (folder / "report" / "a.html").write_text("<p>")
        spool.search_started("s", {"search.trials": 4}, {}, [])
        for number, status in enumerate(["completed", "pruned", "failed", "duplicate", "interrupted"]):
            say_trial(spool, number, status)
        spool.metrics({"test_rmse": 3.0}, trial=0, tags={"winner": "yes"})
        spool.table("leaderboard", {"model": ["lstm", "naive"], "rmse": [1.0, 2.0]})
        spool.artifact(folder / "report")
        spool.artifact(folder / "report" / "a.html", "plots", trial=0)
        spool.search_ended("completed", {"best_val_rmse": 1.0})
    send_all(folder, uri)
    assert unsent(folder) is None
    runs = stored(uri, folder)
    assert [runs[n]["status"] for n in range(5)] == ["FINISHED", "FINISHED", "FAILED", "FINISHED", "KILLED"]
    assert [runs[n]["tags"]["status"] for n in range(3)] == ["completed", "pruned", "failed"]
    assert runs[2]["tags"]["reason"] == "loss is nan in epoch 3" and "reason" not in runs[0]["tags"]
    assert runs[0]["tags"]["backend"] == "cpu" and runs[0]["tags"]["winner"] == "yes"
    assert runs[0]["curves"]["test_rmse"] == [(0, 3.0)] and runs[0]["files"] == ["plots"]
    assert runs[None]["files"] == ["leaderboard.json", "report"] and runs[None]["params"] == {"search.trials": "4"}
    assert all(run["end"] >= run["start"] > 1.7e12 for run in runs.values())
    files = sorted(str(p.relative_to(folder.parent)) for p in folder.parent.glob("mlflow-artifacts/**/*.html"))
    assert len(files) == 2
    client = MlflowClient(uri)
    table = json.loads(Path(client.download_artifacts(runs[None]["id"], "leaderboard.json")).read_text())
    assert table == {"columns": ["model", "rmse"], "data": [["lstm", 1.0], ["naive", 2.0]]}
    assert json.loads(runs[None]["tags"]["mlflow.loggedArtifacts"]) == [{"path": "leaderboard.json", "type": "table"}]


DAMAGE: dict[str, Any] = {
    "wrong type": {"offset": "7"},
    "in the middle of a line": {"offset": 7},
    "beyond the end": {"offset": 10**9},  # a machine that went down lost the end of the spool
    "runs of another kind": {"runs": {"parent": {"id": "a", "colour": "red"}}},
    "runs of no number": {"runs": {"first": {"id": "a"}}},
}


@pytest.mark.parametrize("remembered", ["nothing", "half", "garbage", "list", *DAMAGE])
def test_sending_again_after_a_crash_changes_nothing(folder: Path, remembered: str) -> None:
    uri = default_uri(folder.parent)
    state = folder / "mlflow" / "state.json"
    with Spool(folder, uri) as spool:
        spool.search_started("s", {"search.trials": 3}, {}, [])
        say_trial(spool, 0, folder=folder)
        spool.trial_started(1, "trial-1", {"model.hidden_size": 64, "training.lr": 1e-3}, {})
        spool.epoch(1, 1, {"val_rmse": 1.0, "train_loss": math.nan})
        send_all(folder, uri)
        half = state.read_text()
        spool.epoch(1, 2, {"val_rmse": math.inf, "train_loss": 0.5})
        spool.trial_ended(1, "completed")
        say_trial(spool, 2, folder=folder)
        spool.search_ended("completed")
    send_all(folder, uri)
    before = stored(uri, folder)
    assert [step for step, _ in before[1]["curves"]["train_loss"]] == [1, 2]
    if remembered == "nothing":
        state.unlink()
    elif remembered in DAMAGE:
        state.write_text(json.dumps(json.loads(state.read_text()) | DAMAGE[remembered]))
        left = unsent(folder)
        assert "offset" not in DAMAGE[remembered] or (left is not None and left.events > 10)
    else:
        state.write_text({"half": half, "garbage": half[: len(half) // 2], "list": "[1]"}[remembered])
    send_all(folder, uri)
    assert repr(stored(uri, folder)) == repr(before)  # by text, because nan is not nan


def test_resumed_search_continues_its_runs(folder: Path) -> None:
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        spool.search_started("s", {"search.trials": 3}, {}, [])
        say_trial(spool, 0, folder=folder)
        spool.trial_started(1, "trial-1", {"p": 1}, {})
        spool.epoch(1, 1, {"val_rmse": 3.0})
        spool.epoch(1, 2, {"val_rmse": 2.0})
    send_all(folder, uri).interrupt_open_runs()
    killed = stored(uri, folder)
    assert [killed[n]["status"] for n in (None, 0, 1)] == ["KILLED", "FINISHED", "KILLED"]
    assert killed[1]["tags"]["status"] == "interrupted"
    with Spool(folder, uri) as spool:
        spool.search_started(
            "s", {"search.trials": 99}, {}, []
        )  # params cannot be changed, and must not refuse the rest
        spool.trial_started(1, "trial-1", {"p": 1}, {})
        spool.epoch(1, 2, {"val_rmse": 2.0})  # again, from the checkpoint after epoch 1
        spool.epoch(1, 3, {"val_rmse": 1.0})
        send_all(folder, uri)
        assert stored(uri, folder)[1]["status"] == "RUNNING"
        spool.trial_ended(1, "completed")
        spool.search_ended("completed", {"best_val_rmse": 1.0})
    send_all(folder, uri)
    assert unsent(folder) is None
    runs = stored(uri, folder)
    assert set(runs) == {None, 0, 1} and {run["status"] for run in runs.values()} == {"FINISHED"}
    assert runs[1]["id"] == killed[1]["id"] and runs[1]["tags"]["status"] == "completed"
    assert runs[1]["curves"]["val_rmse"] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert runs[None]["params"] == {"search.trials": "3"} and runs[None]["curves"]["best_val_rmse"] == [(0, 1.0)]


def test_epochs_that_a_lost_machine_sent_are_on_the_curve_once(folder: Path, tmp_path: Path) -> None:
    """Its folder is made again from a copy that lacks the last epoch, which is trained again."""
    uri = default_uri(folder.parent)
    copied = tmp_path / "copy" / folder.name
    with Spool(folder, uri) as spool:
        spool.search_started("s", {}, {}, [])
        spool.trial_started(0, "trial-0", {"p": 1}, {})
        spool.epoch(0, 1, {"val_rmse": 3.0, "train_loss": 4.0})
        shutil.copytree(folder, copied)
        spool.epoch(0, 2, {"val_rmse": 2.0, "train_loss": 3.0})
        send_all(folder, uri)
    time.sleep(0.01)  # a point of another time is another point to MLflow
    with Spool(copied, uri) as spool:
        spool.search_started("s", {}, {}, [])
        spool.trial_started(0, "trial-0", {"p": 1}, {})
        spool.epoch(0, 2, {"val_rmse": 2.0, "train_loss": 3.0})
        spool.epoch(0, 3, {"val_rmse": 1.0, "train_loss": 2.0})
        spool.trial_ended(0, "completed")
        spool.search_ended("completed")
    send_all(copied, uri)
    runs = stored(uri, copied)
    assert set(runs) == {None, 0} and runs[0]["status"] == "FINISHED"
    assert runs[0]["curves"]["val_rmse"] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert [step for step, _ in runs[0]["curves"]["train_loss"]] == [1, 2, 3]


def test_the_reason_is_what_the_database_says() -> None:
    hint = "(raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block)"
    said = "(sqlite3.OperationalError) attempt to write a readonly database"
    assert _told(f"{hint}\n{said}\n[SQL: INSERT]") == _told(f"{said}\n[SQL: INSERT]") == said
    assert _told(hint) == hint


def test_what_mlflow_never_takes_is_told_and_does_not_hold_up_the_rest(folder: Path) -> None:
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        spool.search_started("s", {"spec": "x" * 20_000} | {f"p{i}": i for i in range(250)}, {}, [])
        spool.trial_started(0, "trial-0", {}, {})
        spool.epoch(0, 1, {"rmse 50 % °C": 1.0, "ok": 2.0})
        spool.trial_ended(0, "completed", artifacts=[folder / "missing.safetensors"])
        spool.epoch(7, 1, {"rmse": 1.0})
        spool.trial_started(1, "trial-1", {}, {})
        send_all(folder, uri)
        spool.epoch(1, 1, {"rmse": 1.0})
        spool.search_ended("completed")
    send_all(folder, uri)
    runs = stored(uri, folder)
    assert len(runs[None]["params"]) == 251 and len(runs[None]["params"]["spec"]) == 6000
    assert runs[0]["curves"] == {"rmse 50 _ _C": [(1, 1.0)], "ok": [(1, 2.0)]}
    assert runs[None]["status"] == runs[0]["status"] == "FINISHED"
    left = unsent(folder)
    assert left is not None and left.events == 0 and left.refused == 2 and "missing.safetensors was gone" in str(left)
    reasons = json.loads((folder / "mlflow" / "state.json").read_text())["reasons"]
    assert [word for word, reason in zip(["gone", "never started"], reasons, strict=True) if word in reason]


def test_removed_database_is_filled_again(folder: Path, empty_database: Path) -> None:
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        spool.search_started("s", {}, {}, [])
        say_trial(spool, 0)
        send_all(folder, uri)
        shutil.copy(empty_database, folder.parent / "mlflow.db")
        say_trial(spool, 1)
    send_all(folder, uri)
    assert set(stored(uri, folder)) == {None, 0, 1}


def test_two_searches_of_one_name_do_not_mix(folder: Path) -> None:
    uri = default_uri(folder.parent)
    other = folder.parent / "elsewhere" / "s"
    for place, trials in ((folder, 2), (other, 1)):
        with Spool(place, uri) as spool:
            say_search(spool, trials)
        send_all(place, uri)
    check_search(stored(uri, folder), 2)
    check_search(stored(uri, other), 1)


def test_sender_killed_before_it_notes_what_it_sent_makes_nothing_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        say_search(spool, 2)

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for place in ("_save", "_upload"):  # after all calls; between create_run and the first file
        with monkeypatch.context() as patch:
            patch.setattr(Sender, place, dies)
            with pytest.raises(KeyboardInterrupt):
                send_all(folder, uri)
    assert not (folder / "mlflow" / "state.json").exists()
    send_all(folder, uri)
    check_search(stored(uri, folder), 2)


def test_damaged_lines_are_told_once_and_do_not_hold_up_the_rest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        say_search(spool, 3)
    lines = spool.path.read_bytes().splitlines(keepends=True)
    lines[0] = lines[0].replace(b'"e"', b'"d"')  # search_started
    lines[3] = lines[3].replace(b"{", b"\xfb", 1)  # the second epoch of trial 0
    lines[6] = b"\0" * (len(lines[6]) - 1) + b"\n"  # trial 1 was started
    spool.path.write_bytes(b"".join(lines) + b'{"e": "epo')
    sender = Sender(folder, uri)
    with monkeypatch.context() as patch:  # what was passed over before the connection broke is counted once
        patch.setattr(sender, "_finish", lambda *_: (_ for _ in ()).throw(ConnectionError("broken")))
        with pytest.raises(ConnectionError) as broken:
            sender.send_next()
    sender.failed(broken.value)
    while sender.waiting():
        sender.send_next()
    runs = stored(uri, folder)
    assert set(runs) == {None, 0, 2} and {run["status"] for run in runs.values()} == {"FINISHED"}
    assert runs[None]["name"] == "s" and runs[2]["tags"]["mlflow.parentRunId"] == runs[None]["id"]
    assert [step for step, _ in runs[0]["curves"]["val_rmse"]] == [1, 3]
    left = unsent(folder)
    assert left is not None and (left.events, left.refused) == (0, 3 + 4)  # 4 of trial 1
    assert "spool.jsonl is damaged in a line after byte 0" in str(left)


@pytest.mark.parametrize("remembered", [True, False])
def test_finished_search_resumed_with_other_params_is_not_refused(folder: Path, remembered: bool) -> None:
    uri = default_uri(folder.parent)
    for trials in (1, 2):
        with Spool(folder, uri) as spool:
            spool.search_started("s", {"trials": trials, f"new-{trials}": 1}, {}, [])
            say_trial(spool, trials - 1)
            spool.search_ended("completed")
        send_all(folder, uri)
        assert unsent(folder) is None
        state = folder / "mlflow" / "state.json"
        if not remembered:
            state.write_text(json.dumps(json.loads(state.read_text()) | {"runs": {}}))
    params = stored(uri, folder)[None]["params"]
    assert params == {"trials": "1", "new-1": "1"} | ({} if remembered else {"new-2": "1"})


def test_an_address_that_was_lost_is_made_anew_for_the_same_search(folder: Path) -> None:
    """As its refusal advises where the file is damaged; the runs that there are stay the search's."""
    uri = default_uri(folder.parent)
    for number in (0, 1):
        with Spool(folder, uri) as spool:
            search = spool.address.search
            spool.search_started("s", {}, {}, [])
            say_trial(spool, number)
        send_all(folder, uri)
        for lost in ("spool.json", "state.json"):
            (folder / "mlflow" / lost).unlink()
    with Spool(folder, uri) as spool:
        assert spool.address.search == search
    send_all(folder, uri)
    assert sorted(stored(uri, folder), key=str) == [0, 1, None]
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'xlstm_tune'")
    assert len(client.search_runs([experiment.experiment_id])) == 3


@pytest.mark.parametrize("after", ["a search that runs", "a search that has ended"])
def test_store_emptied_while_we_are_connected_is_filled_again(folder: Path, after: str) -> None:
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        spool.search_started("s", {}, {}, [])
        say_trial(spool, 0)
        if after == "a search that has ended":
            spool.search_ended("completed")
        sender = send_all(folder, uri)
        client = MlflowClient(uri)
        # As a server whose database was replaced: the runs are gone, not deleted.
        store = client._tracking_client.store
        for run in stored(uri, folder).values():
            store._hard_delete_run(run["id"])
        if after == "a search that has ended":
            sync(folder)
        else:
            say_trial(spool, 1)
            spool.epoch(0, EPOCHS + 1, {"val_rmse": 1.0})
            with pytest.raises(MlflowException, match="not found"):
                sender.send_next()
            sender.failed(Exception("gone"))
            while sender.waiting():
                sender.send_next()
    runs = stored(uri, folder)
    assert set(runs) == {None, 0} if after == "a search that has ended" else {None, 0, 1}
    assert unsent(folder) is None


def test_names_that_are_not_text_are_sent(folder: Path) -> None:
    uri = default_uri(folder.parent)
    with Spool(folder, uri) as spool:
        spool.search_started("s\udcff", {"source": "caf\udce9.csv"}, {"a\udcff": "\0"}, [])
        spool.search_ended("completed")
    send_all(folder, uri)
    run = stored(uri, folder)[None]
    assert (run["name"], run["params"], run["tags"]["a_"]) == ("s?", {"source": "caf?.csv"}, "?")
    assert unsent(folder) is None
