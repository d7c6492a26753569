"""What the terminal shows of a search whose process was killed: the command that goes on with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from xlstm_tune.search.signals import children_outlive_signals

_SHELL = "/bin/sh"
_SPEAK = 'read -r over || printf "%s\\n" "$1" >&2'
"""Waits for a line or for the end of its input, which comes when the process that holds the other end is no more."""
_FRESH_LINE = "\x1b[?25h\n"
"""The cursor, which a running display hides, and a line below it."""


@contextmanager
def last_words(words: str) -> Iterator[Callable[[], None]]:
    """Inside, `words` come on standard error should this process be killed, by a signal or by Ray's own code.

    Yields what takes them back, for a process that ends itself inside and has said why. A shell waits for that, in a
    session of its own; where none can be started, or standard error is closed, there are no words.
    """
    shell = None
    with suppress(OSError, AttributeError), children_outlive_signals():
        fresh = _FRESH_LINE if sys.stderr.isatty() else ""
        shell = subprocess.Popen(
            [_SHELL, "-c", _SPEAK, "sh", fresh + words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def take_back() -> None:
        if shell is not None and shell.returncode is None:
            with suppress(OSError):
                shell.communicate(b"\n")

    try:
        yield take_back
    finally:
        take_back()
