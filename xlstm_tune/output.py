"""What a command prints: its terminal may go away, a disk may be full, a locale may lack a letter; it goes on.

What nobody can read any more is dropped.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar, cast

from xlstm_tune.errors import FULL_DISK

Result = TypeVar("Result")
_GONE = (errno.EIO, errno.EPIPE, errno.ENXIO)
"""As writing fails to a terminal that was closed, or a pipe that nobody reads."""


class Lasting:
    """A text stream whose other end may go away; from then on all that is written to it is dropped.

    So is what a full disk does not take, until there is room again. Other errors are its user's.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.full = False
        """Some was dropped for want of room."""

    def write(self, text: str) -> int:
        """As the stream has it."""
        return self._kept(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        """As the stream has it."""
        self._kept(self._stream.flush, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _kept(self, call: Callable[[], Result], instead: Result) -> Result:
        try:
            return call()
        except OSError as error:
            if error.errno in FULL_DISK:
                self.full = True
                return instead
            if error.errno not in _GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            return instead


@contextmanager
def outliving_terminal() -> Iterator[None]:
    """Inside, this process goes on when nobody reads its standard output and error any more, or no disk takes them."""
    # Closed from the start, they are None.
    _print_any_letter()
    before = [stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr)]  # noqa: SIM115
    out, err = (Lasting(stream) for stream in before)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield
    finally:
        out.flush()
        if out.full:
            err.write("note: some of the output is lost, since there was no room for it\n")


def _print_any_letter() -> None:
    """Let standard output and error write ? for what the locale has no letter for, such as the × of a model's name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
