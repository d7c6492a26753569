"""What workers hand each other through a URI: a folder by its file:// address, and a bucket of a real S3 server."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from buckets import CREDENTIALS, S3
from trial_data import drain, steady

from xlstm_tune.data.windows import Prepared
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.search.persistence.folder import CHECKPOINTS, HUNG, SPEC, STOPPED, WEIGHTS, trial_folder
from xlstm_tune.search.persistence.owner import Owner
from xlstm_tune.search.persistence.store import HERE, PATIENCE, Remote, Shared, StorageAway
from xlstm_tune.search.trials.checkpoints import KEPT, SUMS, Checkpoints
from xlstm_tune.search.trials.fused_trial import Fused, FusedTrial
from xlstm_tune.search.trials.scratch import scratch_folder
from xlstm_tune.search.trials.single_trial import SingleTrial
from xlstm_tune.storage.copy import OWNER
from xlstm_tune.storage.objects import Objects
from xlstm_tune.tracking import VALIDATION_END
from xlstm_tune.training.checkpoint import load_weights
from xlstm_tune.training.config import TrainingConfig, TrialConfig

CONFIG = TrialConfig(
    ModelConfig(family="slstm", layers=1, hidden_size=4, heads=2), TrainingConfig(epochs=5, batch_size=32), 5
)

pytestmark = pytest.mark.usefixtures("save_every_epoch")


@pytest.fixture(params=["file", "s3"])
def where(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    """Where searches are kept."""
    if request.param == "file":
        return Objects((tmp_path / "bucket").as_uri())
    server: S3 = request.getfixturevalue("s3")
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return Objects(server.uri("searches", tmp_path.name))


@pytest.fixture
def here(tmp_path: Path) -> Objects:
    """The same without a server."""
    return Objects((tmp_path / "bucket").as_uri())


def worker(store: Remote) -> Remote:
    """What a worker gets of the driver's, with a folder of its own."""
    copy: Remote = pickle.loads(pickle.dumps(store))
    return copy


def driver(where: Objects, folder: Path) -> Remote:
    (folder / "wave").mkdir(parents=True, exist_ok=True)
    (where / "wave").put(SPEC, b"")
    return Remote(where, "wave", folder / "wave")


def begun(store: Remote, data: Prepared, number: int = 3, known: int = 0) -> tuple[SingleTrial, Path]:
    """A trial that a worker takes up."""
    place = trial_folder(store.folder, number)
    store.begin([place])
    return SingleTrial(CONFIG, data, place, "rmse", known, store), place


def undisturbed(data: Prepared, place: Path) -> list[dict[str, Any]]:
    """The rows of the trial by itself."""
    place.mkdir()
    return drain(SingleTrial(CONFIG, data, place, "rmse"))


def step(trial: SingleTrial, place: Path, store: Remote) -> dict[str, Any]:
    (row,) = trial.step()
    store.push(place)
    return steady(row)


def test_an_object_that_is_written_anew_is_read_as_it_was_at_one_moment(where: Objects, tmp_path: Path) -> None:
    done, writing = threading.Event(), threading.Event()

    def write() -> None:
        for lines in range(1, 10_000):
            where.put("growing", f"{lines:04d}\n".encode() * lines)
            writing.set()
            if done.wait(0.05):
                return

    def check(content: bytes) -> None:
        assert content == content[:5] * int(content[:4])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert writing.wait(60)
        for _ in range(60):
            check(where.get("growing"))
            where.fetch("growing", tmp_path / "fetched")
            check((tmp_path / "fetched").read_bytes())
    finally:
        done.set()
        writer.join()


def test_a_trial_goes_on_elsewhere_when_its_worker_and_its_disk_are_gone(
    where: Objects, tmp_path: Path, data: Prepared
) -> None:
    alone = undisturbed(data, tmp_path / "alone")
    store = driver(where, tmp_path)
    first = worker(store)
    trial, place = begun(first, data)
    rows = [step(trial, place, first) for _ in range(3)]
    saved = sorted(first.objects.names(f"trials/00003/{CHECKPOINTS}"))
    assert [name.split("/")[3] for name in saved if name.endswith(SUMS)] == ["epoch-000002", "epoch-000003"]
    assert {WEIGHTS, VALIDATION_END} <= {name.rpartition("/")[2] for name in first.objects.names("trials/00003")}
    shutil.rmtree(first.folder)

    second = worker(store)
    assert second.folder != first.folder
    trial, place = begun(second, data, known=3)
    rows += [step(trial, place, second) for _ in range(2)]
    assert rows == alone
    store.pull(trial_folder(store.folder, 3))
    mine = trial_folder(store.folder, 3)
    assert not (mine / CHECKPOINTS).exists()
    for name in (WEIGHTS, VALIDATION_END):
        here, there = load_weights(mine / name), load_weights(tmp_path / "alone" / name)
        assert here.keys() == there.keys() and all(torch.equal(here[key], there[key]) for key in here)


def test_rows_that_the_driver_has_not_heard_are_told_by_the_next_worker(
    here: Objects, tmp_path: Path, data: Prepared
) -> None:
    alone = undisturbed(data, tmp_path / "alone")
    store = driver(here, tmp_path)
    trial, _ = begun(worker(store), data)
    for _ in range(3):
        trial.step()
    trial, _ = begun(worker(store), data, known=1)
    assert [steady(row) for row in trial.step()] == alone[1:3]


@pytest.mark.parametrize("lost", [SUMS, "state.json"])
def test_a_torn_upload_is_a_damaged_checkpoint_and_the_one_before_counts(
    lost: str, where: Objects, tmp_path: Path, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies while it hands over what it saved after its third epoch."""
    alone = undisturbed(data, tmp_path / "alone")
    store = driver(where, tmp_path)
    first = worker(store)
    trial, place = begun(first, data)
    for _ in range(2):
        step(trial, place, first)
    put = Objects.put

    def dies(self: Objects, name: str, content: Any, size: int | None = None) -> None:
        if name.endswith(lost):
            raise KeyboardInterrupt
        put(self, name, content, size)

    monkeypatch.setattr(Objects, "put", dies)
    with pytest.raises(KeyboardInterrupt):
        trial.step()
    monkeypatch.setattr(Objects, "put", put)
    assert f"trials/00003/{CHECKPOINTS}/epoch-000003/{SUMS}" not in first.objects.names()

    second = worker(store)
    trial, place = begun(second, data, known=2)
    assert "epoch-000003" in (place / "damaged.txt").read_text()
    assert [step(trial, place, second) for _ in range(3)] == alone[2:]
    assert "trials/00003/damaged.txt" in second.objects.names()


def test_a_checkpoint_that_was_damaged_at_the_storage_is_passed_over(
    where: Objects, tmp_path: Path, data: Prepared
) -> None:
    store = driver(where, tmp_path)
    first = worker(store)
    trial, place = begun(first, data)
    for _ in range(3):
        step(trial, place, first)
    tensors = next(name for name in first.objects.names() if "epoch-000003/" in name and name.endswith(".safetensors"))
    content = bytearray(first.objects.get(tensors))
    content[len(content) // 2] ^= 1
    first.objects.put(tensors, bytes(content))
    trial, place = begun(worker(store), data, known=3)
    assert trial.state is not None and trial.state.epoch == 2


def test_older_checkpoints_go_and_a_worker_keeps_only_what_it_trains(
    here: Objects, tmp_path: Path, data: Prepared
) -> None:
    store = worker(driver(here, tmp_path))
    for number in (3, 4):
        trial, place = begun(store, data, number)
        for _ in range(4):
            step(trial, place, store)
    kept = {name.split("/")[3] for name in store.objects.names("trials/00003/checkpoints") if name.endswith(SUMS)}
    assert kept == {"epoch-000003", "epoch-000004"} and KEPT == 2
    assert [path.name for path in (store.folder / "trials").iterdir()] == ["00004"]


def test_a_stop_reaches_configurations_that_are_trained_with_others(
    where: Objects, tmp_path: Path, data: Prepared
) -> None:
    store = driver(where, tmp_path)
    mine = worker(store)
    runs = [Fused(number, CONFIG, trial_folder(mine.folder, number)) for number in (1, 2)]
    mine.begin([run.folder for run in runs])
    trial = FusedTrial(runs, data, "rmse", mine)
    assert [row["number"] for row in trial.step()] == [1, 2]
    store.mark([trial_folder(store.folder, 1)])
    assert [row["number"] for row in trial.step()] == [2]
    again = worker(store)
    places = [trial_folder(again.folder, number) for number in (1, 2)]
    assert again.marked(places) == {places[0]}
    again.begin(places)
    assert not again.marked(places), "who takes them up has not been stopped"


@pytest.fixture
def away(here: Objects, tmp_path: Path) -> Remote:
    """A driver whose storage is away."""
    store = driver(here, tmp_path)
    (tmp_path / "bucket").rename(tmp_path / "elsewhere")
    (tmp_path / "bucket").write_text("no folder")
    return store


def back(tmp_path: Path) -> None:
    """It is here again."""
    (tmp_path / "bucket").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "bucket")


def test_a_worker_waits_for_a_storage_that_is_away(tmp_path: Path, away: Remote) -> None:
    store = worker(away)
    place = trial_folder(store.folder, 1)
    place.mkdir(parents=True)
    (place / WEIGHTS).write_bytes(b"best")
    done = threading.Event()
    thread = threading.Thread(target=lambda: (store.push(place), done.set()))
    thread.start()
    assert not done.wait(1.0)
    back(tmp_path)
    thread.join(60)
    assert done.is_set() and store.objects.get(f"trials/00001/{WEIGHTS}") == b"best"


def test_a_worker_does_not_wait_for_ever(tmp_path: Path, away: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "0.1")
    store = worker(away)
    place = trial_folder(store.folder, 1)
    place.mkdir(parents=True)
    (place / WEIGHTS).write_bytes(b"best")
    with pytest.raises(StorageAway, match="does not answer"):
        store.push(place)


def test_a_server_that_takes_connections_and_says_nothing_is_waited_for_and_found_again(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    store = worker(driver(Objects(s3.uri("searches", tmp_path.name)), tmp_path))
    place = trial_folder(store.folder, 1)
    place.mkdir(parents=True)
    (place / WEIGHTS).write_bytes(b"best")
    s3.hold()
    try:
        thread = threading.Thread(target=store.push, args=(place,))
        thread.start()
        time.sleep(1.0)
        assert thread.is_alive()
    finally:
        s3.go_on()
    thread.join(120)
    assert store.objects.get(f"trials/00001/{WEIGHTS}") == b"best"


def owned(store: Remote) -> Owner:
    """The driver's name on the copy."""
    owner = Owner(store.objects, 20.0)
    owner.claim()
    store.token = owner.token
    return owner


def other(store: Remote) -> Owner:
    """Of a driver that finds a name which counts no more."""
    owner = Owner(store.objects, 20.0)
    owner.refresh(20.0)
    return owner


def test_a_worker_hands_nothing_over_once_another_driver_has_the_search(where: Objects, tmp_path: Path) -> None:
    store = driver(where, tmp_path)
    first = owned(store)
    slept = worker(store)
    place = trial_folder(slept.folder, 1)
    slept.begin([place])
    (place / WEIGHTS).write_bytes(b"epoch 2")
    slept.push(place)
    second = other(store)
    store.objects.put(f"trials/00001/{WEIGHTS}", b"epoch 9 by the other")
    store.objects.put(f"{STOPPED}/00001", b"")
    (place / WEIGHTS).write_bytes(b"epoch 3")
    for refused in (lambda: slept.push(place, checkpoints=True), lambda: slept.begin([place])):
        with pytest.raises(StorageAway, match=r"taken over by process \d+ on .*; go on with it there"):
            refused()
    store.mark([trial_folder(store.folder, 2)])
    assert store.objects.get(f"trials/00001/{WEIGHTS}") == b"epoch 9 by the other"
    assert list(store.objects.names(STOPPED)) == [f"{STOPPED}/00001"]
    second.give_up()
    with pytest.raises(StorageAway, match="taken over"):
        slept.push(place)
    assert first.lost() is not None


@pytest.mark.parametrize("name", [None, b"", b"[]", b"{}"])
def test_a_name_on_the_copy_that_cannot_be_read_stops_no_worker(
    name: bytes | None, here: Objects, tmp_path: Path
) -> None:
    store = driver(here, tmp_path)
    owned(store)
    store.objects.remove([OWNER])
    if name is not None:
        store.objects.put(OWNER, name)
    mine = worker(store)
    place = trial_folder(mine.folder, 1)
    mine.begin([place])
    (place / WEIGHTS).write_bytes(b"best")
    mine.push(place)
    store.mark([trial_folder(store.folder, 1)])
    assert store.objects.get(f"trials/00001/{WEIGHTS}") == b"best" and mine.marked([place]) == {place}


def test_a_search_that_was_taken_over_while_the_storage_was_away_is_left_alone(
    here: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = driver(here, tmp_path)
    owned(store)
    mine = worker(store)
    place = trial_folder(mine.folder, 1)
    mine.begin([place])
    (place / WEIGHTS).write_bytes(b"best")
    put = Objects.put

    def cut_off(self: Objects, name: str, content: Any, size: int | None = None) -> None:
        monkeypatch.setattr(Objects, "put", put)
        other(store)
        raise OSError("no route to host")

    monkeypatch.setattr(Objects, "put", cut_off)
    with pytest.raises(StorageAway, match="taken over"):
        mine.push(place)
    assert not store.objects.names("trials")


def test_the_driver_has_a_trials_files_before_its_end_is_told(where: Objects, tmp_path: Path) -> None:
    store = driver(where, tmp_path)
    mine = worker(store)
    for number in (1, 2):
        place = trial_folder(mine.folder, number)
        mine.begin([place])
        (place / WEIGHTS).write_bytes(bytes([number]))
        mine.push(place)
    told: list[bytes] = []
    for number in (1, 2):
        own = trial_folder(store.folder, number)
        store.ended(own, lambda own=own: told.append((own / WEIGHTS).read_bytes()))  # type: ignore[misc]
    assert store.settle(60.0) and told == [b"\1", b"\2"]
    assert store.settle()


def test_the_driver_does_not_tell_what_it_could_not_fetch(tmp_path: Path, away: Remote) -> None:
    store = away
    told: list[int] = []
    store.ended(trial_folder(store.folder, 1), lambda: told.append(1))
    assert not store.settle(0.2) and not told
    back(tmp_path)
    deadline = time.monotonic() + 60
    while not store.settle(1.0):
        assert time.monotonic() < deadline
    assert told == [1]


def test_a_shared_folder_is_copied_nowhere(tmp_path: Path, data: Prepared) -> None:
    store = Shared(tmp_path)
    place = trial_folder(tmp_path, 1)
    store.begin([place])
    trial = SingleTrial(CONFIG, data, place, "rmse", 0, store)
    trial.step()
    before = sorted(tmp_path.rglob("*"))
    store.push(place, checkpoints=True)
    store.pull(place)
    assert store.settle() and sorted(tmp_path.rglob("*")) == before
    store.mark([place])
    assert (place / STOPPED).exists() and store.marked([place]) == {place}
    assert isinstance(Checkpoints(tmp_path)._store, Shared) and Checkpoints(tmp_path)._store is HERE


LEAVES = """
import os, signal, sys
from pathlib import Path
from xlstm_tune.search.trials.scratch import scratch_folder
place = scratch_folder(sys.argv[1]) / "trials" / "00007"
place.mkdir(parents=True)
(place / "hung.txt").write_text("in the fourth line")
print(place.parents[1], flush=True)
os.kill(os.getpid(), getattr(signal, sys.argv[2]))
"""


@pytest.mark.parametrize("end", ["SIGKILL", "SIGCONT"])
def test_a_killed_workers_folder_is_cleared_by_the_next_which_hands_in_where_it_hung(
    end: str, here: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    store = worker(driver(here, tmp_path))
    command = [sys.executable, "-c", LEAVES, store.objects.shown, end]
    left = Path(subprocess.run(command, capture_output=True, text=True, timeout=120).stdout.strip())
    assert left.parent == tmp_path and left.exists() == (end == "SIGKILL")
    other = scratch_folder("another search, of a process that lives")
    assert store.folder.parent == tmp_path and not left.exists() and other.exists()
    told = f"trials/00007/{HUNG}" in store.objects.names()
    if end == "SIGKILL":
        # `other` came first and is of another search, so that nobody was there to hand it in to.
        assert not told
        left = Path(subprocess.run(command, capture_output=True, text=True, timeout=120).stdout.strip())
        again = worker(store)
        assert again.folder.exists() and not left.exists()
        assert again.objects.get(f"trials/00007/{HUNG}") == b"in the fourth line"
    else:
        assert not told
