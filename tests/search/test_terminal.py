"""What is printed where nobody reads it any more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TextIO, cast

import pytest
from rich.console import Console

from xlstm_tune.search.terminal import Lasting, children_outlive_signals


def test_what_is_written_to_a_pipe_that_nobody_reads_is_dropped() -> None:
    reader, writer = os.pipe()
    stream = cast(TextIO, Lasting(os.fdopen(writer, "w")))
    console = Console(file=stream)
    console.print("first")
    os.close(reader)
    for _ in range(3):
        console.print("second" * 10_000, highlight=False, soft_wrap=True)
    stream.flush()
    stream.close()


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


def test_a_terminal_that_was_closed_is_no_error() -> None:
    outer, inner = os.openpty()
    stream = Lasting(os.fdopen(inner, "w"))
    assert stream.isatty() and stream.write("words\n") == 6
    stream.flush()
    os.close(outer)
    assert stream.write("lost\n") == 5
    stream.flush()
    assert not stream.isatty(), "it leads nowhere now"


def test_what_a_full_disk_does_not_take_is_dropped_and_told_once() -> None:
    program = (
        "import sys; from xlstm_tune.search.terminal import outliving_terminal\n"
        "with outliving_terminal():\n"
        "    for _ in range(3): print('x' * 100_000)\n"
        "    print('goes on', file=sys.stderr)"
    )
    with open("/dev/full", "w") as full:
        made = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert made.returncode == 0
    assert made.stderr.splitlines()[:2] == [
        "goes on",
        "note: some of the output is lost, since there was no room for it",
    ]
    assert "Traceback" not in made.stderr


def test_streams_that_are_closed_from_the_start_are_no_error() -> None:
    program = (
        "from xlstm_tune.search.terminal import outliving_terminal\n"
        "with outliving_terminal(): print('nobody reads this')\n"
    )
    made = subprocess.run(["sh", "-c", '"$0" -c "$1" >&- 2>&-', sys.executable, program])
    assert made.returncode == 0


def test_a_sign_that_a_locale_lacks_is_no_error() -> None:
    program = (
        "from xlstm_tune.search.terminal import outliving_terminal\n"
        "with outliving_terminal(): print('8 weeks \u2026 \u2502')"
    )
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment)
    assert (made.returncode, made.stdout) == (0, b"8 weeks ? ?\n")


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
