"""Signals while Ray is started, and as it leaves them."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from xlstm_tune.search.signals import children_outlive_signals


def test_handlers_and_mask_are_those_of_before_whatever_a_library_does() -> None:
    """Ray puts one behind SIGTERM that ends the process."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers], signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with children_outlive_signals():
        signal.signal(signal.SIGTERM, lambda *_: None)
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert ([signal.getsignal(number) for number in numbers], signal.pthread_sigmask(signal.SIG_BLOCK, ())) == before


def test_a_signal_that_a_library_takes_for_an_exit_is_handled_as_before() -> None:
    """Ray's handler raises SystemExit while it starts."""

    def ours(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, ours)
    try:
        with pytest.raises(KeyboardInterrupt), children_outlive_signals():
            sys.exit(signal.SIGTERM)
        with pytest.raises(SystemExit), children_outlive_signals():
            sys.exit(2)
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


def test_children_are_deaf_to_the_end_of_the_terminal_and_to_sigterm() -> None:
    ask = (
        "import signal; print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, "
        "signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
    )
    before = signal.getsignal(signal.SIGHUP), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with children_outlive_signals():
        inside = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    assert inside.strip() == "True True"
    assert (signal.getsignal(signal.SIGHUP), signal.pthread_sigmask(signal.SIG_BLOCK, ())) == before
