"""Signals as the search sees them: real ones, sent to this process."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from xlstm_tune.report.budget import CUT_SHORT
from xlstm_tune.search.signals import children_outlive_signals
from xlstm_tune.search.stopping import CUTS, DISK_FULL, INTERRUPTED, Stopping


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def stopping(said: list[str]) -> Stopping:
    return Stopping(said.append)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_a_request_and_the_second_stops_at_once(
    number: int, code: int, stopping: Stopping, said: list[str]
) -> None:
    with stopping.watching(), stopping.searching():
        assert stopping.reason is None
        send(number)
        assert stopping.reason == INTERRUPTED and len(said) == 1 and "Again to stop at once" in said[0]
        with pytest.raises(KeyboardInterrupt):
            send(number)
    assert stopping.exit_code == code and len(said) == 1


def test_the_exit_code_is_the_last_signals(stopping: Stopping) -> None:
    with stopping.watching(), stopping.searching():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
    assert stopping.exit_code == 143


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("searched", [False, True])
def test_outside_the_trials_time_a_signal_ends_the_program(
    searched: bool, number: int, stopping: Stopping, said: list[str]
) -> None:
    with stopping.watching():
        if searched:
            with stopping.searching():
                pass
        with pytest.raises(KeyboardInterrupt):
            send(number)
    assert stopping.reason == INTERRUPTED and stopping.exit_code == 128 + number and not said


def test_a_signal_waits_where_it_is_held_and_a_second_one_does_not(stopping: Stopping) -> None:
    with stopping.watching():
        reached = False
        with pytest.raises(KeyboardInterrupt), stopping.holding():
            send(signal.SIGTERM)
            reached = True
        assert reached and stopping.reason == INTERRUPTED and stopping.exit_code == 143
        with stopping.holding(), pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    with pytest.raises(ValueError, match="here"), stopping.watching(), stopping.holding():
        raise ValueError("here")


def test_a_held_signal_that_another_handler_took_is_ours_all_the_same(stopping: Stopping) -> None:
    with stopping.watching():
        with pytest.raises(KeyboardInterrupt), stopping.holding(), children_outlive_signals():
            raise SystemExit(signal.SIGTERM)  # as Ray's handler does in another thread
        assert stopping.exit_code == 143
        with pytest.raises(SystemExit), stopping.holding():
            raise SystemExit(3)


def test_the_handlers_are_those_of_before(stopping: Stopping) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stopping.watching():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(ValueError, match="here"), stopping.watching():
        raise ValueError("here")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_without_a_signal_an_interruption_counts_as_ctrl_c(stopping: Stopping) -> None:
    assert stopping.exit_code == 130


def test_the_first_reason_counts(stopping: Stopping) -> None:
    stopping.request(DISK_FULL)
    with stopping.watching(), stopping.searching():
        send(signal.SIGINT)
    assert stopping.reason == DISK_FULL


def test_in_another_thread_signals_stay_as_they_are(stopping: Stopping) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    seen = []

    def inside() -> None:
        with stopping.watching():
            seen.append([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]


def test_report_knows_every_reason_for_which_a_trial_is_cut_short() -> None:
    assert set(CUT_SHORT) == set(CUTS)
