"""What happens to the driver, its machine and its folder: a resume goes on with every trial where it was."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fault_search import Search, check_accounted, study_of, trials_of, write_search

from xlstm_tune.layout import CHAMPION, PAGE, REFIT_WISH, SPEC
from xlstm_tune.predict.champion import read_about
from xlstm_tune.report.__main__ import main as report
from xlstm_tune.report.leaderboard import build_leaderboard
from xlstm_tune.results import read
from xlstm_tune.search.endings import what_there_is
from xlstm_tune.search.finals.refit import WANTED
from xlstm_tune.search.persistence.journal import JOURNAL, read_journal
from xlstm_tune.search_file import load_spec
from xlstm_tune.tracking.spool import spool_path

pytestmark = pytest.mark.slow
EVERY_EPOCH = {"XLSTM_TUNE_CHECKPOINT_SHARE": "1000"}
FUSED: dict[str, Any] = {"search": {"fuse": "auto"}, "space": {"training.learning_rate": {"choice": [0.001, 0.01]}}}
POPULATION: dict[str, Any] = {
    "search": {"scheduler": "asha", "grace_epochs": 10, "reduction_factor": 2},
    "space": {"model.family": {"choice": ["lstm", "slstm"]}},
    "population": {"seeds": 2, "training.learning_rate": [0.003, 0.01]},
    "training": {"epochs": 25, "patience": 5},
}


def damage(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def killed_in_the_middle(folder: Path, file: str) -> Search:
    """A search whose driver was killed when its first trial had two checkpoints."""
    search = Search(folder / "searches", **EVERY_EPOCH)
    search.start(file)
    search.until(lambda: len(list(search.folder.glob("trials/00000/checkpoints/epoch-*"))) == 2)
    search.kill()
    return search


def test_a_killed_driver_is_gone_on_with_from_the_last_whole_checkpoints(
    tmp_path: Path, undisturbed: Callable[..., Path]
) -> None:
    """SIGKILL, then a flipped bit in what the first trial saved last; SIGTERM; and then to the end."""
    search = killed_in_the_middle(tmp_path, str(write_search(tmp_path)))
    newest = max(search.folder.glob("trials/00000/checkpoints/epoch-*"))
    damage(next(newest.rglob("*.safetensors")))

    known = search.epochs()
    search.start("--resume", "wave")
    search.until(lambda: search.epochs() > known + 4)
    search.send(signal.SIGTERM)
    output = search.end(128 + signal.SIGTERM)
    assert re.search(r"Stopped early \(interrupted\); go on with: \S+ -m xlstm_tune.search --resume wave", output)
    assert (search.folder / "trials/00000/damaged.txt").read_text().count("is not what was written") == 1
    assert "RUNNING" in {trial.state.name for trial in study_of(search.folder).values()}

    assert "won: rmse" in search.run("--resume", "wave")
    check_accounted(search.folder, undisturbed())
    assert "is finished" in search.run("--resume", "wave")


def test_a_signal_to_every_process_stops_the_search_in_order(tmp_path: Path, undisturbed: Callable[..., Path]) -> None:
    """SIGTERM to Ray's processes and MLflow's writer too, as timeout, Slurm and systemd send it at the end."""
    search = Search(tmp_path / "searches")
    search.start(str(write_search(tmp_path)))
    search.until(lambda: search.epochs() > 10)
    known = search.epochs()
    search.send_to_all(signal.SIGTERM)
    output = search.end(128 + signal.SIGTERM, seconds=30)
    assert "Stopped early (interrupted); go on with" in output
    cut = [row for row in trials_of(search.folder).values() if row["reason"] == "interrupted"]
    assert cut
    for row in cut:  # what was under way was saved
        saved = max(search.folder.glob(f"trials/{row['trial']:05}/checkpoints/epoch-*"))
        assert int(saved.name.removeprefix("epoch-")) >= row["epochs"]
    assert search.epochs() >= known

    assert "won: rmse" in search.run("--resume", "wave")
    check_accounted(search.folder, undisturbed())


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_search_whose_ray_was_killed_says_so_and_goes_on(
    tmp_path: Path, undisturbed: Callable[..., Path], name: str
) -> None:
    """As by a machine that runs out of memory: Ray by itself would wait for a minute, and name no way on."""
    search = Search(tmp_path / "searches")
    search.start(str(write_search(tmp_path)))
    search.until(lambda: search.epochs() > 10)
    search.send_to_all(signal.SIGKILL, of=name)
    output = search.end(1, seconds=20)
    assert f"Stopped early (Ray's process {name} has ended by itself: signal 9); go on with: " in output

    assert "won: rmse" in search.run("--resume", "wave")
    check_accounted(search.folder, undisturbed())


@pytest.mark.parametrize("sections", [FUSED, POPULATION], ids=["fused", "population"])
def test_trials_of_many_members_go_on_with_the_same_bits(
    tmp_path: Path, undisturbed: Callable[..., Path], sections: dict[str, Any]
) -> None:
    """The driver is killed in the middle of a group of configurations, and of a population under ASHA."""
    sections = sections | {"resources": {"max_concurrent": 1}}
    search = killed_in_the_middle(tmp_path, str(write_search(tmp_path, **sections)))
    search.run("--resume", "wave")
    check_accounted(search.folder, undisturbed(**sections))


def test_ctrl_c_in_the_last_trials_of_a_space_is_no_end_of_the_search(tmp_path: Path) -> None:
    """A free worker has asked for one more configuration and there was none, while the last still trains."""
    sections: dict[str, Any] = {
        "space": {"training.epochs": {"choice": [1, 300]}}, "resources": {"max_concurrent": 2, "cpus_per_trial": 1},
    }  # fmt: skip
    search = Search(tmp_path / "searches")
    search.start(str(write_search(tmp_path, **sections)))
    search.until(lambda: search.epochs(1) > 20)
    search.send(signal.SIGINT)
    output = search.end(128 + signal.SIGINT)
    assert "Stopped early (interrupted); go on with" in output and "have been tried" not in output
    assert {number: row["reason"] for number, row in trials_of(search.folder).items()} == {0: None, 1: "interrupted"}
    assert not read(search.folder, "scores").num_rows and not (search.folder / "champion").exists()
    assert read(search.folder, "search").to_pylist()[-1]["status"] == "interrupted"
    assert "won: rmse" in search.run("--resume", "wave")
    assert {row["reason"] for row in trials_of(search.folder).values()} == {None}


def test_ctrl_c_saves_what_runs_and_a_second_one_stops_at_once(
    tmp_path: Path, undisturbed: Callable[..., Path]
) -> None:
    """Nothing had been saved before. Three configurations are one group, and stay one: under other drivers, and with
    another worker after the last one was killed."""
    sections = {
        "search": {"fuse": "auto"},
        "space": {"training.learning_rate": {"choice": [0.001, 0.003, 0.01]}},
        "model": {"family": "slstm"},
        "training": {"epochs": 150},
        "resources": {"max_concurrent": 1},
    }
    search = Search(tmp_path / "searches", XLSTM_TUNE_CHECKPOINT_SHARE="0")
    search.start(str(write_search(tmp_path, **sections)))
    search.until(lambda: search.epochs(0) > 3)
    assert not list(search.folder.glob("trials/*/checkpoints/epoch-*"))
    search.send(signal.SIGINT)
    output = search.end(128 + signal.SIGINT)
    assert "Stopping: running trials finish their epoch" in output
    assert "Stopped early (interrupted)" in output and "--resume wave" in output
    past = read_journal(search.folder).trials
    for number, row in trials_of(search.folder).items():
        (saved,) = search.folder.glob(f"trials/{number:05d}/checkpoints/epoch-*")
        assert int(saved.name.removeprefix("epoch-")) >= past[number].epoch == row["epochs"]
        assert (row["status"], row["reason"], row["fused"]) == ("pruned", "interrupted", 3)
    assert [trial.state.name for trial in study_of(search.folder).values()] == ["RUNNING"] * 3
    assert not read(search.folder, "scores").num_rows, "the test part is looked at when the search is over"

    known = past[0].epoch
    search.start("--resume", "wave")
    search.until(lambda: search.epochs(0) > known)
    search.send(signal.SIGINT)
    search.send(signal.SIGINT)
    output = search.end(128 + signal.SIGINT, seconds=60)
    assert "go on with" in output
    rows = read_journal(search.folder).trials[0].rows
    assert [row["epoch"] for _, row in rows] == list(range(1, len(rows) + 1))

    search.start("--resume", "wave")
    os.kill(search.worker(0, after=len(rows)), signal.SIGKILL)
    assert "trained together failed as a whole" not in search.end()
    check_accounted(search.folder, undisturbed(**sections))
    assert {row["fused"] for row in trials_of(search.folder).values()} == {3}
    events = [json.loads(line) for line in (search.folder / JOURNAL).read_text().splitlines()]
    assert {tuple(event["numbers"]) for event in events if event["e"] == "began"} == {(0, 1, 2)}
    assert [event["why"] for event in events if event["e"] == "died"] == ["worker died"]
    assert not list(search.folder.glob("trials/*/checkpoints")), "what has ended needs none"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 12 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)]
    if os.name != "posix" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes rights that this user has not")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_stops_the_search_and_room_lets_it_go_on(
    tmp_path: Path, small_disk: Path, undisturbed: Callable[..., Path]
) -> None:
    """MLflow's database lies on the small disk too."""
    search = Search(small_disk / "searches", **EVERY_EPOCH)
    search.start(str(write_search(tmp_path)))
    search.until(lambda: search.epochs() > 10)
    ballast = fill_up(small_disk)
    output = search.end(1)
    assert f"the disk of {search.folder} is full. Nothing is lost; make room, then go on with" in " ".join(
        output.split()
    )
    ballast.unlink()
    assert "won: rmse" in search.run("--resume", "wave")
    check_accounted(search.folder, undisturbed())


def fill_up(place: Path) -> Path:
    """A file that takes all room that the disk has."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return ballast


def test_a_disk_that_is_full_at_the_start_is_told_in_a_sentence(tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "searches").symlink_to(small_disk)  # what is printed lies beside it, where there is room
    search = Search(tmp_path / "searches", **EVERY_EPOCH)
    file = str(write_search(tmp_path))
    full = r"error: the search folder \S+ cannot be {} \(No space left on device\); make room"
    ballast = fill_up(small_disk)
    search.start(file)
    assert re.search(full.format("made"), search.end(2))
    assert not search.folder.exists()
    ballast.unlink()
    search.start(file)
    search.until(lambda: search.epochs() > 2)
    search.send(signal.SIGTERM)
    search.end(128 + signal.SIGTERM)
    fill_up(small_disk)
    search.start("--resume", "wave")
    assert re.search(full.format("written"), search.end(2))


def test_a_search_that_has_moved_with_its_data_goes_on_where_it_is(
    tmp_path: Path, undisturbed: Callable[..., Path]
) -> None:
    """Storage folder and table have other places when the search goes on, and the old ones are not made again."""
    search = Search(tmp_path / "old" / "searches")
    file = write_search(tmp_path / "old")
    search.start(str(file))
    search.until(lambda: search.epochs() > 40)
    search.send(signal.SIGTERM)
    search.end(128 + signal.SIGTERM)
    (tmp_path / "old").rename(tmp_path / "new")
    moved = Search(tmp_path / "new" / "searches")
    moved.start("--resume", "wave")
    assert "wave.csv' does not exist" in moved.end(2)
    moved.run("--resume", "wave", "--set", f"data.source={tmp_path / 'new' / 'wave.csv'}")
    check_accounted(moved.folder, undisturbed())
    assert not (tmp_path / "old" / "searches" / "mlflow.db").exists()


def test_a_driver_killed_before_its_refit_has_the_winner_trained_again_by_a_resume(tmp_path: Path) -> None:
    search = Search(tmp_path / "searches")
    search.start(str(write_search(tmp_path)), "--refit")
    search.until(lambda: (search.folder / CHAMPION).is_dir())
    search.kill()
    output = search.run("--resume", "wave")
    about = read_about(search.folder / CHAMPION)
    assert about["refit"] and "Trained again on training and validation part" in output
    assert "--refit asked for before" in output
    assert not list(search.folder.glob(f".{CHAMPION}.*")), "what the killed driver left is gone"
    assert "Trained again" not in search.run("--resume", "wave"), "once is enough"


def test_a_winner_that_is_chosen_anew_is_trained_again_too(tmp_path: Path) -> None:
    search = Search(tmp_path / "searches")
    search.start(str(write_search(tmp_path)), "--trials", "3", "--refit")
    wish = search.folder / REFIT_WISH
    search.until(lambda: wish.is_file() and wish.read_bytes() != WANTED)
    search.kill()
    before = read_about(search.folder / CHAMPION)
    assert before["refit"]
    for more, asked in ((), True), (("--refit",), False), (("--trials", "4"), True):
        output = search.run("--resume", "wave", *more)
        assert ("note: a winner that is chosen anew is trained again at the end" in output) == asked
        after = read_about(search.folder / CHAMPION)
        assert after["refit"] and (after == before) == (after["trial"] == before["trial"])
        assert ("has been trained again on training and validation part already" in output) == (after == before)
        assert ("Trained again on training and validation part" in output) == (after != before)
        trained = sum("refit_test_rmse" in line for line in spool_path(search.folder).read_text().splitlines())
        assert trained == 1 + (after != before), "a training for each winner, and no other"


def test_a_report_and_a_winner_of_before_are_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(tmp_path / "searches")
    monkeypatch.setenv("XLSTM_TUNE_REPORT", "on")
    assert f"Report: {search.folder / PAGE}" in search.run(str(write_search(tmp_path)), "--trials", "3")
    monkeypatch.setenv("XLSTM_TUNE_REPORT", "off")
    output = search.run("--resume", "wave", "--trials", "4")
    again = re.search(r"The report is of before; with the trials since then: .* -m (xlstm_tune\.report .*)", output)
    assert again and "Report: " not in output and "Forecast with the winner: " in output
    assert report(again[1].split()[1:]) == 0
    plan = cast(Any, SimpleNamespace(folder=search.folder, spec=load_spec(str(search.folder / SPEC))))
    board = build_leaderboard(search.folder, "val_rmse")
    assert not any("of before" in words for words in what_there_is(plan, board, True))
    later = replace(board, trials=board.trials[1:])  # as where a trial is better that began since then
    *_, words = what_there_is(plan, later, True)
    assert words.startswith(f"Forecast with trial {board.trials[0].trial}, the winner of before: ")


def test_sigterm_while_the_winner_is_trained_again_keeps_the_wish(tmp_path: Path) -> None:
    """The search has ended by then; Ray would abort at the signal, without a word."""
    search = Search(tmp_path / "searches")
    search.run(str(write_search(tmp_path)))
    search.start("--resume", "wave", "--refit")
    search.until(lambda: b"ray::_refit_task" in b"".join(map(read_or_nothing, Path("/proc").glob("[0-9]*/cmdline"))))
    search.send(signal.SIGTERM)
    output = search.end(128 + signal.SIGTERM, seconds=30)
    told = re.search(r"go on with: .* --resume wave .*", output)
    assert told and "--refit" not in told[0], "the folder remembers it"
    assert "Trained again on training and validation part" in search.run("--resume", "wave")


def read_or_nothing(path: Path) -> bytes:
    """What a file holds, nothing where it is gone."""
    with suppress(OSError):
        return path.read_bytes()
    return b""


def test_a_disk_that_fails_leaves_its_trials_open(tmp_path: Path, undisturbed: Callable[..., Path]) -> None:
    """Read-only all at once, as Linux makes a broken one: each of its trials would fail within a second."""
    search = Search(tmp_path / "searches")
    search.start(str(write_search(tmp_path)))
    search.until(search.folder.exists)
    place = search.folder / "trials" / "00002"
    place.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a disk takes rights that this user has not")
    try:
        output = search.end(1)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
    told = rf"Stopped: a disk failed \(process \d+ on \S+: .*Read-only file system: '{place}\S+'\)\. What was saved is"
    assert re.search(told, output), output
    reasons = {row["reason"] for row in trials_of(search.folder).values()}
    assert "disk failed" in reasons and not any(str(reason).startswith("error") for reason in reasons)
    assert "won: rmse" in search.run("--resume", "wave")
    check_accounted(search.folder, undisturbed())


def test_a_driver_killed_while_it_judges_the_finalists_has_them_judged_by_a_resume(
    tmp_path: Path, undisturbed: Callable[..., Path]
) -> None:
    """All trials have ended by then, but the search has not."""
    search = Search(tmp_path / "searches")
    search.start(str(write_search(tmp_path)))
    journal = search.folder / JOURNAL
    search.until(lambda: journal.exists() and '"e": "closed"' in journal.read_text())
    search.kill()
    judged = read(search.folder, "scores").num_rows
    assert "won: rmse" in search.run("--resume", "wave")
    check_accounted(search.folder, undisturbed())

    def scores(folder: Path) -> dict[tuple[int, str], float]:
        return {(row["trial"], row["part"]): row["rmse"] for row in read(folder, "scores").to_pylist()}

    assert scores(search.folder) == pytest.approx(scores(undisturbed())), f"{judged} rows were there at the kill"
    assert "is finished" in search.run("--resume", "wave")
