"""What a person sees while a search runs."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from xlstm_tune.search.progress import Progress, ProgressView, clock


@pytest.fixture
def progress() -> Progress:
    return Progress(10, "val_rmse", ("last_value", 4.0))


def test_progress_counts_ends_and_names_the_best_against_the_baseline(progress: Progress) -> None:
    for number in range(3):
        progress.started(number, f"lstm {number}", 5)
    progress.epoch(0, 5, 3.0)
    progress.epoch(1, 1, 3.5)
    progress.ended_trial(0, "completed")
    progress.ended_trial(1, "pruned")
    progress.ended_trial(3, "duplicate")
    assert progress.counts() == "2 of 10 trials · 1 running · 1 pruned · 1 duplicate"
    assert progress.verdict() == "best val_rmse 3.000 (trial 0: lstm 0), 25.0% better than last_value (4.000)"


def test_progress_of_a_resumed_search_counts_a_trial_that_was_cut_once(progress: Progress) -> None:
    progress.recall(["completed", "failed"])
    progress.started(2, "lstm", 5)
    progress.ended_trial(2, None)
    assert progress.counts() == "2 of 10 trials · 0 running · 1 failed"
    progress.started(2, "lstm", 5)
    progress.ended_trial(2, "completed")
    assert progress.counts() == "3 of 10 trials · 0 running · 1 failed"


def test_progress_of_a_search_whose_trials_have_ended_says_nothing_of_running_and_left() -> None:
    progress = Progress(1, "val_rmse", None)
    progress.started(0, "lstm", 5)
    progress.ended_trial(0, "completed")
    assert progress.counts() == "1 of 1 trials"
    assert "left" not in progress.times()


def test_progress_says_when_the_baseline_is_ahead(progress: Progress) -> None:
    progress.started(0, "lstm", 5)
    progress.epoch(0, 1, 5.0)
    assert "25.0% worse than last_value" in progress.verdict()


def test_nothing_is_a_share_of_a_baseline_without_any_error() -> None:
    progress = Progress(3, "val_rmse", ("last_value", 0.0))
    progress.scored(0, "lstm", 0.5)
    assert progress.verdict() == "best val_rmse 0.5000 (trial 0: lstm), while last_value has 0"


def test_progress_never_takes_nan_for_the_best(progress: Progress) -> None:
    progress.started(0, "lstm", 5)
    progress.epoch(0, 1, float("nan"))
    assert progress.best is None
    progress.epoch(0, 2, 6.0)
    progress.epoch(0, 3, float("nan"))
    assert progress.best == (6.0, 0, "lstm")


def test_seconds_left_goes_by_the_pace_of_this_run(progress: Progress) -> None:
    assert progress.seconds_left() is None
    progress.recall(["completed"] * 3 + ["pruned", "duplicate"])
    assert (progress.ended, progress.recalled, progress.duplicate) == (4, 4, 1)
    progress.started(4, "lstm", 5)
    progress.first_trial = time.monotonic() - 20
    assert progress.seconds_left() is None
    progress.ended_trial(4, "completed")
    progress.ended_trial(5, "completed")
    # Two in 20 seconds, four to go.
    assert progress.seconds_left() == pytest.approx(40, abs=2)


def test_view_prints_plain_lines_where_there_is_no_terminal(progress: Progress) -> None:
    output = io.StringIO()
    with ProgressView(Console(file=output, width=200), progress):
        progress.started(0, "lstm", 5)
    assert output.getvalue().startswith("0 of 10 trials · 1 running")
    assert "\x1b" not in output.getvalue()


def test_view_draws_a_panel_on_a_terminal(progress: Progress) -> None:
    output = io.StringIO()
    progress.started(7, "ms · 64 · lr 1e-3", 5)
    with ProgressView(Console(file=output, width=100, force_terminal=True), progress):
        time.sleep(0.4)
    assert "trial 7" in output.getvalue() and "epoch 0/5" in output.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize("width", [50, 80, 120])
def test_panel_and_closing_line_break_between_words_alone(progress: Progress, width: int) -> None:
    for number in range(3):
        progress.started(number, f"xlstm·msm · 64 · lr 1e-3 · weight_decay 0.1{' · heads 8' * number}", 5)
    progress.epoch(0, 5, 3.0)
    progress.ended_trial(0, "completed")
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    view = ProgressView(console, progress)
    with console.capture() as panel:
        console.print(view._panel())
    lines = [line.rstrip() for line in panel.get().splitlines()]
    assert max(map(len, lines)) <= width and sum("trial " in line and "epoch " in line for line in lines) == 2
    assert progress.counts() in lines[0] and ("━" in lines[0]) == (width >= 80)
    with console.capture() as closing:
        view.__exit__(None, None, None)
    ended = closing.get().splitlines()
    words = progress.line().split(" · about")[0].split()
    assert max(map(len, ended)) <= width and " ".join(ended).split()[: len(words)] == words


def test_waiting_for_kernels_is_said_and_says_nothing_about_the_pace(progress: Progress) -> None:
    progress.waits = "compiling the kernels"
    progress.started(0, "lstm", 5)
    assert progress.verdict() == "compiling the kernels"
    progress.first_trial = time.monotonic() - 110
    progress.compiled(100.0)
    progress.compiled(90.0)
    progress.epoch(0, 5, 3.0)
    progress.ended_trial(0, "completed")
    assert progress.seconds_left() == pytest.approx(90.0, rel=0.05)
