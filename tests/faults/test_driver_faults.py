"""What happens to the driver, its machine and its folder: a resume goes on with every trial where it was."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_search import Search, check_accounted, study_of, trials_of, write_search

from xlstm_tune.search.journal import read_journal

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


def test_a_killed_driver_is_gone_on_with_from_the_last_whole_checkpoints(tmp_path: Path) -> None:
    """SIGKILL, then a flipped bit in what the first trial saved last; SIGTERM; and then to the end."""
    file = str(write_search(tmp_path))
    whole = Search(tmp_path / "whole")
    whole.run(file)

    search = killed_in_the_middle(tmp_path, file)
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
    check_accounted(search.folder, whole.folder)
    assert "is finished" in search.run("--resume", "wave")


@pytest.mark.parametrize("sections", [FUSED, POPULATION], ids=["fused", "population"])
def test_trials_of_many_members_go_on_with_the_same_bits(tmp_path: Path, sections: dict[str, Any]) -> None:
    """The driver is killed in the middle of a group of configurations, and of a population under ASHA."""
    file = str(write_search(tmp_path, **sections, resources={"max_concurrent": 1}))
    whole = Search(tmp_path / "whole")
    whole.run(file)
    search = killed_in_the_middle(tmp_path, file)
    search.run("--resume", "wave")
    check_accounted(search.folder, whole.folder)


def test_ctrl_c_saves_what_runs_and_a_second_one_stops_at_once(tmp_path: Path) -> None:
    """Nothing had been saved before; afterwards no epoch is trained twice."""
    search = Search(tmp_path / "searches", XLSTM_TUNE_CHECKPOINT_SHARE="0")
    search.start(str(write_search(tmp_path, resources={"max_concurrent": 1}, training={"epochs": 4000})))
    search.until(lambda: search.epochs(0) > 3)
    assert not list(search.folder.glob("trials/00000/checkpoints/epoch-*"))
    search.send(signal.SIGINT)
    search.end(128 + signal.SIGINT)
    (saved,) = search.folder.glob("trials/00000/checkpoints/epoch-*")
    known = read_journal(search.folder).trials[0].epoch
    assert int(saved.name.removeprefix("epoch-")) >= known
    (row,) = trials_of(search.folder).values()
    assert (row["status"], row["reason"], row["epochs"]) == ("pruned", "interrupted", known)

    search.start("--resume", "wave")
    search.until(lambda: search.epochs(0) > known)
    search.send(signal.SIGINT)
    search.send(signal.SIGINT)
    output = search.end(128 + signal.SIGINT, seconds=60)
    assert "go on with" in output
    past = read_journal(search.folder).trials[0]
    assert [row["epoch"] for _, row in past.rows] == list(range(1, past.epoch + 1))


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


def test_a_full_disk_stops_the_search_and_room_lets_it_go_on(tmp_path: Path, small_disk: Path) -> None:
    """MLflow's database lies on the small disk too."""
    whole = Search(tmp_path / "whole")
    whole.run(str(write_search(tmp_path)))
    search = Search(small_disk / "searches", **EVERY_EPOCH)
    search.start(str(write_search(tmp_path)))
    search.until(lambda: search.epochs() > 10)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    output = search.end(1)
    assert f"the disk of {search.folder} is full. Nothing is lost; make room, then go on with" in " ".join(
        output.split()
    )
    ballast.unlink()
    assert "won: rmse" in search.run("--resume", "wave")
    check_accounted(search.folder, whole.folder)
