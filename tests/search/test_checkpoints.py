"""A trial's checkpoints as files: the last two whole ones, whatever happened to the newest."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from trial_data import WAYS, damage, damages, newest

from xlstm_tune.search.trials.checkpoints import KEPT, ROWS, SHARE, SUMS, Checkpoints, worth_saving


def row(epoch: int, seconds: float = 1.0) -> dict[str, Any]:
    return {"epoch": epoch, "epoch_seconds": seconds, "val_rmse": 1 / epoch}


def write(epoch: int, place: Path) -> None:
    """Two files, one of them deeper."""
    (place / "members").mkdir(parents=True)
    (place / "state").write_text(f"state {epoch} " * 20)
    (place / "members" / "weights").write_bytes(bytes(range(256)) + bytes([epoch]))


def trained(folder: Path, epochs: int = 3) -> Checkpoints:
    """A trial that saved every epoch."""
    checkpoints = Checkpoints(folder)
    for epoch in range(1, epochs + 1):
        checkpoints.note(row(epoch))
        checkpoints.save(epoch, lambda place, epoch=epoch: write(epoch, place))  # type: ignore[misc]
    return checkpoints


def found(folder: Path, known: int = 0) -> list[tuple[int, list[int]]]:
    """The epochs that can be gone on from, and those whose rows are told then."""
    whole = []
    for epoch, place, rows in Checkpoints(folder).whole(known):
        assert (place / "state").read_text() == f"state {epoch} " * 20
        assert rows == [row(one["epoch"]) for one in rows]
        whole.append((epoch, [one["epoch"] for one in rows]))
    return whole


def test_the_last_two_are_kept_newest_first(tmp_path: Path) -> None:
    trained(tmp_path, 12)
    assert found(tmp_path) == [(12, list(range(1, 13))), (11, list(range(1, 12)))]
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["epoch-000011", "epoch-000012", ROWS] and KEPT == 2


def test_an_epoch_that_is_saved_is_not_saved_again(tmp_path: Path) -> None:
    checkpoints = trained(tmp_path)
    checkpoints.save(3, lambda place: pytest.fail("it is there already"))


@pytest.mark.parametrize(("known", "told"), [(0, [1, 2, 3]), (1, [2, 3]), (2, [3]), (3, []), (9, [])])
def test_rows_behind_the_last_known_epoch_are_told(known: int, told: list[int], tmp_path: Path) -> None:
    trained(tmp_path)
    assert found(tmp_path, known)[0] == (3, told)


def test_any_damage_to_any_file_of_the_newest_leaves_the_one_before(tmp_path: Path) -> None:
    trained(tmp_path / "t")
    seen = set()
    for what, folder in damages(tmp_path / "t"):
        seen.add(what.split()[0])
        assert found(folder) == [(2, [1, 2])], what
        reason = (folder / "damaged.txt").read_text()
        assert "epoch-000003 is damaged: " in reason and reason.count("\n") == 1, what
        assert what.split()[0] in reason or SUMS in reason
        assert not (folder / "checkpoints" / "epoch-000003").exists()
    assert seen == {SUMS, "state", "members/weights"}


@pytest.mark.parametrize("place", [0, 100, -2])
def test_any_flipped_bit_is_noticed(place: int, tmp_path: Path) -> None:
    trained(tmp_path / "t")
    files = [path.relative_to(tmp_path / "t") for path in newest(tmp_path / "t").rglob("*") if path.is_file()]
    for file in files:
        for bit in range(8):
            folder = tmp_path / f"{file.name}-{bit}"
            shutil.copytree(tmp_path / "t", folder)
            content = bytearray((folder / file).read_bytes())
            content[place] ^= 1 << bit
            (folder / file).write_bytes(content)
            assert [epoch for epoch, _ in found(folder)] == [2], (file, bit)


@pytest.mark.parametrize("way", WAYS)
def test_with_both_damaged_it_begins_again(way: str, tmp_path: Path) -> None:
    trained(tmp_path)
    for place in (tmp_path / "checkpoints").glob("epoch-*"):
        damage(place / "state", way)
    assert found(tmp_path) == []
    assert (tmp_path / "damaged.txt").read_text().count("is damaged") == 2
    Checkpoints(tmp_path).go_on_from(0)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [ROWS]
    assert (tmp_path / "checkpoints" / ROWS).read_text() == ""


def test_a_folder_without_anything_begins_at_the_beginning(tmp_path: Path) -> None:
    assert found(tmp_path / "none") == []
    Checkpoints(tmp_path / "none").go_on_from(0)
    assert not (tmp_path / "none").exists()


def test_what_a_killed_save_left_is_no_checkpoint_and_goes(tmp_path: Path) -> None:
    trained(tmp_path)
    unfinished = tmp_path / "checkpoints" / ".epoch-000004.77.tmp"
    write(4, unfinished)
    assert [epoch for epoch, _ in found(tmp_path)] == [3, 2]
    Checkpoints(tmp_path).go_on_from(3)
    assert not unfinished.exists()


def test_a_save_that_fails_leaves_nothing_and_the_ones_before(tmp_path: Path) -> None:
    checkpoints = trained(tmp_path)

    def fails(place: Path) -> None:
        write(4, place)
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        checkpoints.save(4, fails)
    assert [epoch for epoch, _ in found(tmp_path)] == [3, 2]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["epoch-000002", "epoch-000003", ROWS]
    checkpoints.note(row(4))
    checkpoints.save(4, lambda place: write(4, place))
    assert [epoch for epoch, _ in found(tmp_path)] == [4, 3]


def test_going_on_forgets_what_lies_behind(tmp_path: Path) -> None:
    trained(tmp_path)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.go_on_from(2)
    assert found(tmp_path) == [(2, [1, 2])]
    checkpoints.note(row(3))
    checkpoints.save(3, lambda place: write(3, place))
    assert found(tmp_path) == [(3, [1, 2, 3]), (2, [1, 2])]


def test_a_kill_while_rows_are_forgotten_leaves_them_and_the_checkpoints(tmp_path: Path) -> None:
    """At every line that forgetting runs through, of this package and of what writes its files."""
    trained(tmp_path / "whole")
    lines = 0
    for lines in range(1, 1000):
        place = tmp_path / f"killed-{lines}"
        shutil.copytree(tmp_path / "whole", place)
        child = os.fork()
        if not child:
            killed_at(lines)
            Checkpoints(place).go_on_from(2)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
        assert (2, [1, 2]) in found(place), lines
    assert lines > 20 and found(place) == [(2, [1, 2])]


def killed_at(line: int) -> None:
    """Let this process be killed before it runs the line of this count."""
    run = itertools.count(1)

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        file = frame.f_code.co_filename
        if "xlstm_tune" not in file and not frame.f_code.co_name.startswith("write_"):
            return None
        if event == "line" and next(run) == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def test_a_disk_that_takes_half_a_row_leaves_none_of_it(tmp_path: Path) -> None:
    checkpoints = trained(tmp_path)
    rows = tmp_path / "checkpoints" / ROWS
    before = rows.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            checkpoints.note(row(4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert rows.read_bytes() == before
    checkpoints.note(row(4))
    checkpoints.save(4, lambda place: write(4, place))
    assert found(tmp_path, 3) == [(4, [4]), (3, [])]


@pytest.mark.parametrize("torn", range(1, len(json.dumps(row(3))) + 2, 5))
def test_a_torn_row_is_missed_only_where_it_has_to_be_told(torn: int, tmp_path: Path) -> None:
    trained(tmp_path)
    rows = tmp_path / "checkpoints" / ROWS
    rows.write_bytes(rows.read_bytes()[:-torn])
    whole = torn == 1  # the end of the line alone
    assert found(tmp_path, 2) == ([(3, [3]), (2, [])] if whole else [(2, [])])
    assert found(tmp_path, 3) == [(3, []), (2, [])]
    Checkpoints(tmp_path).go_on_from(3 if whole else 2)
    assert rows.read_bytes().endswith(b"\n"), "the next row begins a line"


@pytest.mark.parametrize(
    "line",
    [b"{\x00}", b"null", b'{"epoch": null}', b'{"epoch": 1e999}', b"\xff\xff", b"[1]", b"[" * 99999, b""],
    ids=range(8),
)
def test_a_damaged_row_is_missed_only_where_it_has_to_be_told(line: bytes, tmp_path: Path) -> None:
    trained(tmp_path)
    rows = tmp_path / "checkpoints" / ROWS
    lines = rows.read_bytes().splitlines()
    rows.write_bytes(b"\n".join([lines[0], line, lines[2]]) + b"\n")
    assert found(tmp_path, 2) == [(3, [3]), (2, [])]
    assert found(tmp_path, 1) == [], "nobody could tell the second epoch without training it again"


def test_the_rows_of_an_epoch_trained_again_are_the_later_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.note(row(1) | {"val_rmse": 7.0})
    checkpoints.note(row(1))
    checkpoints.save(1, lambda place: write(1, place))
    assert found(tmp_path) == [(1, [1])]


@pytest.mark.parametrize(
    ("costs", "trained", "share", "worth"),
    [
        ([0.1], [2.5], None, True),  # 4 % of the training unless told otherwise
        ([0.1], [2.4], None, False),
        ([0.1, 0.1], [2.5, 2.5], None, True),
        ([0.1, 0.3], [2.5, 2.5], None, False),
        ([0.1, 0.3], [2.5, 7.5], None, True),
        ([1.0], [0.001], "1e9", True),
        ([0.1], [1000.0], "0", False),
    ],
)
def test_saving_takes_its_share_of_the_training_and_no_more(
    costs: list[float],
    trained: list[float],
    share: str | None,
    worth: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(SHARE, raising=False)
    if share is not None:
        monkeypatch.setenv(SHARE, share)
    trials = []
    for cost, seconds in zip(costs, trained, strict=True):
        trials.append(Checkpoints(tmp_path))
        trials[-1].cost, trials[-1].trained = cost, seconds
    assert worth_saving(trials) is worth
    assert worth_saving(iter(trials)) is worth


def test_training_counts_since_the_last_save_and_the_cost_is_what_it_took(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.cost > 0 and checkpoints.trained == 0
    for epoch in (1, 2):
        checkpoints.note(row(epoch, 1.5))
    assert checkpoints.trained == 3.0
    before = checkpoints.cost
    checkpoints.save(2, lambda place: write(2, place))
    assert checkpoints.trained == 0.0 and 0 < checkpoints.cost != before
