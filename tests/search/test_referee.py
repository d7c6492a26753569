"""Early stopping as the search's own record: the same decisions together, apart, and after a driver was killed."""

from __future__ import annotations

import math
import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import TrialScheduler

from xlstm_tune.search.persistence.folder import STOPPED, trial_folder
from xlstm_tune.search.persistence.journal import JOURNAL, Journal, read_journal
from xlstm_tune.search.persistence.store import Shared
from xlstm_tune.search.scheduling.referee import Referee
from xlstm_tune.search.scheduling.schedulers import make_scheduler
from xlstm_tune.search.stopping import DISK_FAILED, DISK_FULL, GRACE, Stopping
from xlstm_tune.spec import SearchConfig

STOP = TrialScheduler.STOP
EPOCHS = 10


@dataclass(frozen=True)
class Trial:
    """What schedulers look at of a Ray trial."""

    trial_id: str
    config: dict[str, Any] = field(compare=False, default_factory=dict)


def row(number: int, epoch: int, value: float, **changes: Any) -> dict[str, Any]:
    figures = {"number": number, "epoch": epoch, "best_val_rmse": value, "val_rmse": value}
    return figures | {"status": "running", "finished": False, "done": False} | changes


def last(number: int, epoch: int, value: float) -> dict[str, Any]:
    return row(number, epoch, value, status="completed", finished=True, done=True)


def lost(number: int, epoch: int) -> dict[str, Any]:
    return row(number, epoch, math.nan, status="failed", reason="diverged: loss is nan", done=True)


def result(*rows: dict[str, Any], numbers: list[int] | None = None) -> dict[str, Any]:
    return {"rows": list(rows), "numbers": numbers or sorted({one["number"] for one in rows})}


def make(name: str) -> TrialScheduler:
    return make_scheduler(SearchConfig.parse({"scheduler": name, "grace_epochs": 2, "reduction_factor": 2}), EPOCHS)


class Game:
    """A referee in a search folder; opening it again is what a resume does."""

    def __init__(self, folder: Path, name: str = "asha", numbers: int = 6) -> None:
        self.folder = folder
        for number in range(numbers):
            trial_folder(folder, number).mkdir(parents=True, exist_ok=True)
        self.journal = Journal(folder)
        if not self.journal.history.trials:
            self.journal.began(list(range(numbers)), [{}] * numbers)
        self.stopping = Stopping(lambda words: None)
        self.referee = Referee(make(name), Shared(folder), self.journal, self.stopping)

    def show(self, *rows: dict[str, Any]) -> tuple[bool, list[dict[str, Any]]]:
        """What the referee says, and the rows that it leaves."""
        shown = result(*rows)
        return self.referee("t", shown), shown["rows"]

    def marked(self) -> set[int]:
        """Configurations that are marked as stopped in their folders."""
        return {int(path.parent.name) for path in (self.folder / "trials").glob(f"*/{STOPPED}")}


@pytest.mark.parametrize("name", ["asha", "median"])
def test_decisions_are_those_of_separate_trials(name: str, tmp_path: Path) -> None:
    scores = np.random.default_rng(0).random((6, EPOCHS)).cumsum(axis=1)[:, ::-1]
    apart, alive, stopped_apart = make(name), set(range(6)), {}
    for number in alive:
        apart.on_trial_add(None, Trial(str(number)))
    for epoch in range(1, EPOCHS):
        for number in sorted(alive):
            one = Trial(str(number))
            told = row(number, epoch, scores[number, epoch - 1])
            if apart.on_trial_result(None, one, told) == STOP:
                apart.on_trial_complete(None, one, told)
                stopped_apart[number] = epoch
                alive.remove(number)

    game = Game(tmp_path, name)
    running, stopped = set(range(6)), {}
    for epoch in range(1, EPOCHS):
        shown = result(
            *(row(number, epoch, scores[number, epoch - 1]) for number in sorted(running)), numbers=list(range(6))
        )
        assert game.referee("t", shown) == (not running - {one["number"] for one in shown["rows"] if one["done"]})
        for one in shown["rows"]:
            if one["done"]:
                stopped[one["number"]] = epoch
        running -= game.marked()
    assert stopped == stopped_apart and stopped
    assert game.marked() == set(stopped), "the trial reads from the folders what it has to leave out"


def test_a_ray_trial_stops_with_its_last_configuration(tmp_path: Path) -> None:
    game = Game(tmp_path)
    assert game.show(row(0, 2, 1.1), row(1, 2, 1.0))[0] is False
    over, (bad,) = game.show(row(2, 2, 9.0))
    assert over and bad["done"] and not game.marked(), "Ray ends it, so that nobody has to be told"
    assert game.show(last(0, 3, 1.0), lost(1, 3))[0] is True
    assert not game.marked(), "what ended by itself needs no mark"


def test_failures_leave_no_mark_in_the_rungs_and_a_second_try_is_the_same_trial(tmp_path: Path) -> None:
    game = Game(tmp_path)
    over, rows = game.show(row(0, 2, 1.0), lost(1, 1))
    assert not over and [one["number"] for one in rows] == [0, 1]
    # Another worker begins it again: it would be stopped if it were compared with its own first try.
    over, rows = game.show(row(0, 3, 1.5))
    assert not over and not rows[0]["done"]
    game.show(last(0, 4, 1.5))
    assert "nan" not in game.referee._scheduler.debug_string()


def test_of_several_new_epochs_only_the_last_can_end_a_trial(tmp_path: Path) -> None:
    """As a worker tells them that trained on while the journal lost its end: it had been let go on."""
    game = Game(tmp_path)
    game.show(row(0, 2, 1.0), row(1, 2, 1.1))
    over, rows = game.show(row(2, 1, 9.0), row(2, 2, 9.0), row(2, 3, 0.5))
    assert not over and [one["done"] for one in rows] == [False] * 3 and 2 not in game.marked()
    again = Game(tmp_path)
    over, rows = again.show(row(2, 4, 0.5), row(3, 1, 9.0), row(3, 2, 9.0))
    assert [(one["number"], one["epoch"], one["done"]) for one in rows] == [(2, 4, False), (3, 1, False), (3, 2, True)]


def test_a_kill_within_a_result_of_several_epochs_stops_nothing_that_went_on(tmp_path: Path) -> None:
    """The last line of the journal is of an epoch that was not the newest when the scheduler would have stopped it."""
    game = Game(tmp_path)
    game.show(row(0, 2, 1.0), row(1, 2, 1.1))
    assert game.show(row(2, 1, 9.0), row(2, 2, 9.0), row(2, 3, 0.5))[0] is False
    game.journal.close()
    lines = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"".join(lines[:-1]))
    assert read_journal(tmp_path).trials[2].decided is None
    assert Game(tmp_path).show(row(2, 3, 0.5)) == (False, [row(2, 3, 0.5)])


def test_out_of_time_every_trial_ends_with_the_epoch_that_it_tells(tmp_path: Path) -> None:
    game = Game(tmp_path)
    game.stopping.allow(3600.0)
    assert game.show(row(0, 1, 1.0))[0] is False and not game.referee.stop_all()
    game.stopping.allow(0.0)
    over, rows = game.show(row(0, 2, 1.0))
    assert over and rows == [row(0, 2, 1.0)] and not game.referee.stop_all(), "the others finish theirs"
    over, rows = game.show(row(0, 2, 1.0))
    assert not over and not rows, "a worker that repeats epochs has not come to what was lost with another"
    game.stopping.allow(-GRACE)
    assert game.referee.stop_all()


def test_known_rows_are_shown_to_nobody_again(tmp_path: Path) -> None:
    game = Game(tmp_path)
    assert game.show(row(0, 1, 1.0), row(1, 1, 2.0))[1] == [row(0, 1, 1.0), row(1, 1, 2.0)]
    before = game.referee._scheduler.debug_string()
    assert game.show(row(0, 1, 1.0), row(1, 1, 2.0)) == (False, [])
    assert game.show(row(0, 1, 1.0), row(1, 2, 2.0))[1] == [row(1, 2, 2.0)]
    again = Game(tmp_path)
    assert again.show(row(0, 1, 1.0), row(1, 2, 2.0)) == (False, [])
    assert [(one["number"], one["epoch"]) for one, _ in read_journal(tmp_path).rows] == [(0, 1), (1, 1), (1, 2)]
    assert before


def test_what_compiling_took_in_repeated_epochs_is_told_with_the_next(tmp_path: Path) -> None:
    """No row of a repeated epoch is written, and the cost of a trial leaves out what its worker compiled."""
    game = Game(tmp_path)
    game.show(row(0, 1, 1.0), row(1, 1, 1.0))
    assert game.show(row(0, 1, 1.0, compile_seconds=40.0), row(1, 1, 1.0, compile_seconds=40.0)) == (False, [])
    _, new = game.show(row(0, 2, 1.0, compile_seconds=2.0), row(1, 2, 1.0, compile_seconds=2.0))
    assert [one["compile_seconds"] for one in new] == [42.0, 42.0]
    assert [one["compile_seconds"] for one, _ in read_journal(tmp_path).rows[2:]] == [42.0, 42.0]
    assert game.show(row(0, 3, 1.0, compile_seconds=0.0))[1][0]["compile_seconds"] == 0.0, "told once"


def test_what_is_over_stays_over(tmp_path: Path) -> None:
    game = Game(tmp_path)
    game.show(row(0, 2, 1.0))
    game.show(last(1, 1, 1.0))
    game.show(lost(2, 1))
    game.show(row(3, 2, 9.0))
    count = len(read_journal(tmp_path).rows)
    for each in (game, Game(tmp_path)):
        for number in (1, 2, 3):
            assert each.show(row(number, 5, 0.1)) == (True, [])
            assert each.show(lost(number, 5)) == (True, [])
        assert each.show(row(0, 2, 1.0), row(3, 6, 0.1)) == (False, [])
    assert len(read_journal(tmp_path).rows) == count


def test_a_stop_is_on_record_before_anyone_acts_on_it(tmp_path: Path) -> None:
    game = Game(tmp_path)
    game.show(row(0, 2, 1.0))
    _, (told,) = game.show(row(1, 2, 9.0))
    past = read_journal(tmp_path).trials[1]
    assert past.decided == told == row(1, 2, 9.0, done=True)
    assert read_journal(tmp_path).rows[-1] == (row(1, 2, 9.0), True), "the scheduler is shown what it was shown"


def test_a_failure_after_known_epochs_is_new(tmp_path: Path) -> None:
    game = Game(tmp_path)
    game.show(row(0, 1, 1.0), row(0, 2, 1.0))
    again = Game(tmp_path)
    assert again.show(lost(0, 1))[0] is True, "in an epoch that another worker trained again"


@st.composite
def games(draw: st.DrawFn) -> tuple[list[dict[str, Any]], int]:
    """Rows of several configurations in some order, with ends of every kind, and where the driver is killed."""
    count = draw(st.integers(2, 6))
    scores = st.floats(0, 10, allow_subnormal=False)
    rows = {
        number: [row(number, epoch, draw(scores)) for epoch in range(1, draw(st.integers(2, EPOCHS + 1)))]
        for number in range(count)
    }
    for number, mine in rows.items():
        best = math.inf
        for one in mine:
            best = one["best_val_rmse"] = min(best, one["val_rmse"])
        end = draw(st.sampled_from(["finishes", "fails", "runs"]))
        if end == "fails" or len(mine) == EPOCHS:
            mine[-1] = lost(number, mine[-1]["epoch"]) if end == "fails" else last(number, EPOCHS, best)
    order = draw(st.permutations([number for number, mine in rows.items() for _ in mine]))
    played = [rows[number].pop(0) for number in order]
    return played, draw(st.integers(0, len(played)))


@pytest.mark.parametrize("name", ["asha", "median"])
@settings(max_examples=60, deadline=None)
@given(game=games())
def test_a_killed_driver_changes_no_decision(
    name: str, game: tuple[list[dict[str, Any]], int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    played, cut = game
    whole, folder = Game(tmp_path_factory.mktemp("whole"), name), tmp_path_factory.mktemp("cut")
    expected = [whole.show(dict(one)) for one in played]
    first = Game(folder, name)
    decisions = [first.show(dict(one)) for one in played[:cut]]
    first.journal.close()
    second = Game(folder, name)
    for one in played[:cut]:  # its workers tell again what the dead driver knew
        assert second.show(dict(one))[1] == []
    decisions += [second.show(dict(one)) for one in played[cut:]]
    assert repr(decisions) == repr(expected)
    assert repr(read_journal(folder).rows) == repr(read_journal(whole.folder).rows)
    assert second.referee._scheduler.debug_string() == whole.referee._scheduler.debug_string()
    for each in (whole, second):
        each.journal.close()


def test_a_full_disk_asks_for_a_stop_and_tells_nobody_what_is_not_on_record(tmp_path: Path) -> None:
    game = Game(tmp_path)
    game.show(row(0, 1, 1.0))
    full = os.open("/dev/full", os.O_WRONLY)
    kept = os.dup(game.journal._file)
    os.dup2(full, game.journal._file)  # the device whose disk is always full
    assert not game.referee.stop_all()
    over, rows = game.show(row(0, 2, 1.0), row(1, 1, 1.0))
    assert (over, rows) == (False, [])
    assert game.referee.stop_all() and game.stopping.reason == DISK_FULL
    os.dup2(kept, game.journal._file)
    assert [(one["number"], one["epoch"]) for one, _ in read_journal(tmp_path).rows] == [(0, 1)]
    assert Game(tmp_path).show(row(0, 2, 1.0))[1] == [row(0, 2, 1.0)]
    for number in (full, kept):
        os.close(number)


@pytest.mark.parametrize("why", [DISK_FULL, DISK_FAILED])
def test_a_worker_whose_disk_takes_nothing_asks_for_a_stop(why: str, tmp_path: Path) -> None:
    game = Game(tmp_path)
    shown = result(numbers=[0]) | {"disk": (why, "process 7 on vm: [Errno 30] Read-only file system")}
    assert game.referee("t", shown) is False
    assert (game.stopping.reason, game.stopping.detail) == (why, "process 7 on vm: [Errno 30] Read-only file system")


def test_another_error_of_the_record_is_not_swallowed(tmp_path: Path) -> None:
    game = Game(tmp_path)
    read_only = os.open(tmp_path / JOURNAL, os.O_RDONLY)
    os.dup2(read_only, game.journal._file)
    with pytest.raises(OSError, match="Bad file descriptor"):
        game.show(row(0, 1, 1.0))
    os.close(read_only)


def test_ray_may_pickle_it(tmp_path: Path) -> None:
    assert isinstance(pickle.loads(pickle.dumps(Game(tmp_path).referee)), Referee)
