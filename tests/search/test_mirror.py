"""The copy of a search at a URI: whatever moment it breaks off at, what is there can be gone on from."""

from __future__ import annotations

import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from xlstm_tune.errors import StorageError
from xlstm_tune.predict.__main__ import app as predict
from xlstm_tune.report.__main__ import main as report
from xlstm_tune.results import ResultsWriter, read
from xlstm_tune.search.persistence.folder import ENVIRONMENT, SPEC, check_folder, find_folder
from xlstm_tune.search.persistence.journal import JOURNAL, Journal, read_journal
from xlstm_tune.search.persistence.mirror import PERIOD, Mirror, mirrored
from xlstm_tune.search.persistence.owner import Owner
from xlstm_tune.search.persistence.store import Remote
from xlstm_tune.search.stopping import TAKEN_OVER, Stopping
from xlstm_tune.storage.copy import CUT, OWNER, bring, read_copy
from xlstm_tune.storage.objects import Objects
from xlstm_tune.tracking import Spool
from xlstm_tune.tracking.__main__ import main as tracking

METRICS = {"val_rmse": 1.0, "val_mae": 1.0, "val_mse_standardised": 1.0, "val_mae_standardised": 1.0}


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    """A storage; the current folder is another one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Objects((tmp_path / "bucket").as_uri())


def made(folder: Path) -> Path:
    """A search's folder, before its first trial."""
    folder.mkdir(parents=True)
    (folder / SPEC).write_text("name: wave\ndata: {source: x.csv, target: y, lookback: 3}\n")
    (folder / ENVIRONMENT).write_text(json.dumps({"data_fingerprint": "abc"}))
    return folder


class Life:
    """A search that writes what a driver writes, without training. folder: of the search."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, -1
        self.journal = Journal(folder)
        self.results = ResultsWriter(folder, rows=3)
        self.spool = Spool(folder, "sqlite:////nowhere/mlflow.db")

    def trial(self, between: Callable[[], None] = lambda: None) -> None:
        """One with two epochs; `between` is called after everything that is written."""
        self.number += 1
        number = self.number
        with (self.folder / "optuna.journal").open("a") as file:
            file.write(json.dumps({"trial": number}) + "\n")
        between()
        self.journal.began([number], [{}])
        between()
        self.spool.trial_started(number, "t", {}, {})
        for epoch in (1, 2):
            row = {"number": number, "epoch": epoch, "status": "running", "done": False}
            self.journal.epoch(row, stop=epoch == 2)
            between()
            self.spool.epoch(number, epoch, {"val_rmse": 1.0})
            between()
            self.results.epoch({"trial": number, "epoch": epoch, "seconds": 1.0, "timestamp": 1.0 * epoch})
            between()
        with (self.folder / "optuna.journal").open("a") as file:
            file.write(json.dumps({"told": number}) + "\n")
        between()
        self.results.members([{"trial": number, "member": 0, "seed": 0, "setting": {}, "status": "completed"}])
        between()
        about = {"name": "t", "status": "completed", "config": {}, "params": {}, "seconds": 1.0, "epochs": 2}
        self.results.trial({"trial": number, "family": "lstm", "started": 1.0, "ended": 2.0, **about})
        between()
        self.spool.trial_ended(number, "completed")
        between()

    def close(self) -> None:
        self.results.close()
        self.journal.close()
        self.spool.close()


def check_can_be_gone_on_from(where: Objects, place: Path) -> int:
    """A folder made from the copy is as one of a driver that was killed. Returns how many trials it knows."""
    folder = bring(where, "wave", place)
    history = read_journal(folder)
    study = (
        [json.loads(line) for line in (folder / "optuna.journal").read_text().splitlines()] if history.trials else []
    )
    asked = {line["trial"] for line in study if "trial" in line}
    assert set(history.trials) <= asked, "what the journal knows, the study knows"
    for line in study:
        if "told" in line:
            assert history.trials[line["told"]].epoch == 2, "no trial has ended for the study alone"
    if not (folder / "results").is_dir():
        return len(history.trials)
    epochs = {(row["trial"], row["epoch"]) for row in read(folder, "epochs").to_pylist()}
    for number, epoch in epochs:
        assert history.trials[number].epoch >= epoch, "no table is ahead of the journal"
    members = {row["trial"] for row in read(folder, "members").to_pylist()}
    trials = {row["trial"] for row in read(folder, "trials").to_pylist()}
    for number in trials:
        assert {(number, 1), (number, 2)} <= epochs and number in members, "a trial's row comes last"
    spool = folder / "mlflow" / "spool.jsonl"
    events = [json.loads(line) for line in spool.read_text().splitlines()] if spool.exists() else []
    assert {event["number"] for event in events if event["e"] == "trial_ended"} <= trials
    return len(history.trials)


@pytest.fixture
def stopping() -> Stopping:
    return Stopping(print)


def test_a_copy_that_breaks_off_anywhere_can_be_gone_on_from(
    where: Objects, tmp_path: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every moment of a search's life its driver makes a copy that ends after so many writes."""
    life = Life(made(tmp_path / "here" / "searches" / "wave"))
    mirror = Mirror(Remote(where, "wave", life.folder), stopping, print)
    mirror._owner.claim()
    mirror._copy()
    put, left = Objects.put, [0]

    def limited(self: Objects, name: str, content: Any, size: int | None = None) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError("away")
        put(self, name, content, size)

    monkeypatch.setattr("xlstm_tune.storage.objects._AT_ONCE", 1)
    monkeypatch.setattr(Objects, "put", limited)
    known, broken = [], [0]

    def between() -> None:
        left[0] = broken[0] % 12
        broken[0] += 5
        try:
            mirror._copy()
        except OSError:
            assert left[0] < 0
        place = tmp_path / "elsewhere"
        known.append(check_can_be_gone_on_from(where, place))
        shutil.rmtree(place)

    for _ in range(6):
        life.trial(between)
    life.close()
    assert len(known) > 60 and known == sorted(known) and known[-1] >= 5
    left[0] = 1000
    mirror._copy()
    assert check_can_be_gone_on_from(where, tmp_path / "elsewhere") == 6
    mine = {path.relative_to(life.folder).as_posix() for path in life.folder.rglob("*.parquet")}
    assert {name for name in (where / "wave").names() if name.endswith(".parquet")} == mine


def test_a_driver_that_writes_all_the_time_is_copied_beside_it(
    where: Objects, tmp_path: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PERIOD, "0.01")
    monkeypatch.setattr("xlstm_tune.search.persistence.mirror._SHARE", 0)
    copying, copy = threading.Lock(), Mirror._copy

    def copy_alone(mirror: Mirror) -> None:
        with copying:
            copy(mirror)

    monkeypatch.setattr(Mirror, "_copy", copy_alone)
    life = Life(made(tmp_path / "here" / "searches" / "wave"))
    store = Remote(where, "wave", life.folder)
    with mirrored(store, stopping, print):
        known: list[int] = []
        while len(known) < 5 or (known[-1] < 4 and len(known) < 50):
            for _ in range(4):
                life.trial()
            with copying:  # nobody takes a copy up that is being written
                known.append(check_can_be_gone_on_from(where, tmp_path / "elsewhere"))
            shutil.rmtree(tmp_path / "elsewhere")
        life.close()
    assert known == sorted(known) and known[-1] >= 4
    assert check_can_be_gone_on_from(where, tmp_path / "elsewhere") == life.number + 1
    assert json.loads((where / "wave").get(OWNER))["free"]


def test_checkpoints_of_an_ended_trial_go_when_the_copy_of_the_journal_says_so(
    where: Objects, tmp_path: Path, stopping: Stopping
) -> None:
    life = Life(made(tmp_path / "here" / "searches" / "wave"))
    store = Remote(where, "wave", life.folder)
    mirror = Mirror(store, stopping, print)
    mirror.start()
    checkpoint = "trials/00000/checkpoints/epoch-000002/state.json"
    store.objects.put(checkpoint, b"{}")
    life.trial()
    store.drop_checkpoints(life.folder / "trials" / "00000")
    assert checkpoint in store.objects.names()
    mirror._copy()
    assert checkpoint not in store.objects.names() and read_journal(life.folder).trials[0].epoch == 2
    store.objects.put(checkpoint, b"{}")  # of a worker that was late
    assert mirror.finish() is None
    assert checkpoint not in store.objects.names()
    life.close()


def test_a_storage_that_goes_away_is_told_once_and_found_again(
    where: Objects, tmp_path: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PERIOD, "0.05")
    life = Life(made(tmp_path / "here" / "searches" / "wave"))
    said: list[str] = []
    with mirrored(Remote(where, "wave", life.folder), stopping, said.append):
        (tmp_path / "bucket").rename(tmp_path / "gone")
        (tmp_path / "bucket").write_text("no folder")
        life.trial()
        wait_for(lambda: said)
        time.sleep(0.5)
        (tmp_path / "bucket").unlink()
        (tmp_path / "gone").rename(tmp_path / "bucket")
        wait_for(lambda: len(said) == 2)
    assert "is away" in said[0] and "tried again" in said[0] and said[1].endswith("is back"), said
    assert len(said) == 2 and check_can_be_gone_on_from(where, tmp_path / "elsewhere") == 1


def test_a_last_copy_that_fails_is_told_and_a_resume_makes_up_for_it(
    where: Objects, tmp_path: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xlstm_tune.search.persistence.mirror._LAST_SECONDS", 0.0)
    monkeypatch.setenv(PERIOD, "0.2")
    life = Life(made(tmp_path / "here" / "searches" / "wave"))
    said: list[str] = []
    with mirrored(Remote(where, "wave", life.folder), stopping, said.append):
        life.trial()
        (tmp_path / "bucket").rename(tmp_path / "gone")
        (tmp_path / "bucket").write_text("no folder")
    assert "is not complete" in said[-1] and str(life.folder) in said[-1]
    (tmp_path / "bucket").unlink()
    (tmp_path / "gone").rename(tmp_path / "bucket")
    assert find_folder(where.uri, "wave") == life.folder and read_journal(life.folder).trials, "the folder here counts"
    time.sleep(1.0)  # the name of the one before, of this process too, has to grow old
    with mirrored(Remote(where, "wave", life.folder), stopping, said.append):
        pass
    assert check_can_be_gone_on_from(where, tmp_path / "elsewhere") == 1


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def copied(where: Objects, folder: Path, stopping: Stopping, trials: int = 1) -> Life:
    """A search of so many trials, and its copy."""
    life = Life(made(folder))
    with mirrored(Remote(where, "wave", folder), stopping, print):
        for _ in range(trials):
            life.trial()
    return life


def test_a_folder_that_is_behind_is_made_anew_and_one_that_went_another_way_is_refused(
    where: Objects, tmp_path: Path, stopping: Stopping
) -> None:
    life = copied(where, tmp_path / "here" / "searches" / "wave", stopping)
    other = tmp_path / "other"
    folder = bring(where, "wave", other)
    assert len(read_journal(folder).trials) == 1
    with mirrored(Remote(where, "wave", life.folder), stopping, print):
        life.trial()
    assert bring(where, "wave", other) == folder and len(read_journal(folder).trials) == 2
    with (folder / JOURNAL).open("a") as file:
        file.write('{"e": "search", "t": 1, "schema": 1, "program": "x"}\n')
    assert bring(where, "wave", other) == folder, "what is ahead counts"
    assert (folder / JOURNAL).read_text().endswith('"x"}\n')
    with mirrored(Remote(where, "wave", life.folder), stopping, print):
        life.trial()
    with pytest.raises(StorageError, match="have gone different ways; rename the folder"):
        bring(where, "wave", other)
    life.close()


def test_a_folder_of_another_search_is_not_taken_for_the_copys(
    where: Objects, tmp_path: Path, stopping: Stopping
) -> None:
    copied(where, tmp_path / "here" / "searches" / "wave", stopping).close()
    made(tmp_path / "other" / "wave")
    with pytest.raises(StorageError, match="different ways"):
        bring(where, "wave", tmp_path / "other")


def test_a_search_of_a_uri_is_not_resumed_without_it(where: Objects, tmp_path: Path, stopping: Stopping) -> None:
    copied(where, tmp_path / "here" / "searches" / "wave", stopping).close()
    with pytest.raises(StorageError, match=r"is kept at file://.*; go on with it there, with --storage file://"):
        find_folder("searches", "wave")


def test_names_are_taken_and_found_as_in_a_folder(where: Objects, tmp_path: Path, stopping: Stopping) -> None:
    assert check_folder(where.uri, "wave") == tmp_path / "here" / "searches" / "wave"
    assert not (where / "wave").names() and not where.names()
    copied(where, tmp_path / "here" / "searches" / "wave", stopping).close()
    shutil.rmtree(tmp_path / "here" / "searches")
    with pytest.raises(StorageError, match="the name 'wave' is already used at file://"):
        check_folder(where.uri, "wave")
    with pytest.raises(StorageError, match="holds no search 'wavy'; did you mean 'wave'"):
        find_folder(where.uri, "wavy")
    for name in ("../wave", "wave/..", ""):
        with pytest.raises(StorageError, match="which is no path"):
            find_folder(where.uri, name)
    assert find_folder(where.uri, "wave") == tmp_path / "here" / "searches" / "wave"


@pytest.mark.parametrize("name", ["../outside", "trials/../../outside", "a//b"])
def test_an_object_that_leads_out_of_the_folder_is_refused(
    name: str, where: Objects, tmp_path: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(where, tmp_path / "here" / "searches" / "wave", stopping).close()
    names = Objects.names
    monkeypatch.setattr(Objects, "names", lambda self, below="": names(self, below) | {name: None})
    with pytest.raises(StorageError, match="no name of a file"):
        bring(where, "wave", tmp_path / "other")
    assert not (tmp_path / "other" / "wave").exists() and not (tmp_path / "outside").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 3, "cut": {}}', b"null"])
def test_a_damaged_or_newer_copy_is_one_sentence(
    content: bytes, where: Objects, tmp_path: Path, stopping: Stopping
) -> None:
    copied(where, tmp_path / "here" / "searches" / "wave", stopping).close()
    (where / "wave").put(CUT, content)
    with pytest.raises(StorageError, match=r"is damaged|newer xlstm_tune") as caught:
        bring(where, "wave", tmp_path / "other")
    assert "\n" not in str(caught.value)
    with pytest.raises(StorageError):
        read_copy(where / "wave")


def test_two_drivers_of_one_search_are_told_apart(where: Objects, stopping: Stopping) -> None:
    objects = where / "wave"
    first = Owner(objects, 20.0)
    first.claim()
    first.claim()
    with pytest.raises(StorageError, match=rf"is being run by process {os.getpid()} on .* try again in [56]\d s"):
        Owner(objects, 20.0).claim()
    assert first.lost() is None
    there = json.loads(objects.get(OWNER))
    objects.put(OWNER, json.dumps(there | {"host": platform.node(), "process": 2**22 + 1}).encode())
    second = Owner(objects, 20.0)
    second.claim()  # the other was a process of this machine, and is gone
    assert first.lost() == f"process {os.getpid()} on {platform.node()}" and second.lost() is None
    first.give_up()
    assert "free" not in json.loads(objects.get(OWNER)), "it is not the first one's"
    second.give_up()
    assert json.loads(objects.get(OWNER))["free"] and first.lost() is not None
    Owner(objects, 20.0).claim()


@pytest.mark.slow
def test_an_owner_that_says_nothing_for_three_periods_is_taken_over_and_hears_of_it(
    where: Objects, tmp_path: Path, stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PERIOD, "0.3")
    life = Life(made(tmp_path / "here" / "searches" / "wave"))
    said: list[str] = []
    mirror = Mirror(Remote(where, "wave", life.folder), stopping, said.append)
    mirror.start()
    other = Owner(where / "wave", 0.3)
    with pytest.raises(StorageError, match="is being run by"):
        other.claim()
    copy, held = Objects.put, threading.Event()
    monkeypatch.setattr(Objects, "put", lambda *given: held.wait(30) if given[1] == OWNER else copy(*given))
    time.sleep(1.5)
    monkeypatch.setattr(Objects, "put", copy)
    other.claim()
    held.set()
    wait_for(lambda: stopping.reason)
    assert stopping.reason == TAKEN_OVER and "has been taken over by process" in said[-1]
    assert "has been taken over by process" in (mirror.finish() or "")
    life.close()


def test_other_commands_fetch_a_search_from_its_uri(
    where: Objects, tmp_path: Path, stopping: Stopping, capsys: pytest.CaptureFixture[str]
) -> None:
    copied(where, tmp_path / "here" / "searches" / "wave", stopping).close()
    shutil.rmtree(tmp_path / "here" / "searches")
    assert report(["nothing", "--storage", where.uri]) == 2
    assert "holds no search 'nothing'" in capsys.readouterr().err
    assert tracking(["sync", "wave", "--storage", where.uri, "--tracking-uri", "nonsense://x"]) == 2
    assert (tmp_path / "here" / "searches" / "wave" / SPEC).exists()
    result = CliRunner().invoke(predict, ["wave", "x.csv", "--storage", where.uri])
    assert result.exit_code == 2 and "has no winner yet" in result.stderr
