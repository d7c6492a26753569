"""A terminal may go away, a search must not: what nobody can read any more is dropped, and what Ray runs goes on."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar, cast

from xlstm_tune.errors import print_any_letter
from xlstm_tune.search.persistence.folder import disk_full

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
            if disk_full(error):
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
    print_any_letter()
    before = [stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr)]  # noqa: SIM115
    out, err = (Lasting(stream) for stream in before)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield
    finally:
        out.flush()
        if out.full:
            err.write("note: some of the output is lost, since there was no room for it\n")


def put_handlers_back() -> None:
    """Give the system this process's handler of SIGTERM again, of which Ray, as it ends, makes the system's own."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


@contextmanager
def children_outlive_signals() -> Iterator[None]:
    """Inside, processes are started that SIGHUP and SIGTERM do not end when they come to the whole search at once.

    The end of a terminal does that, and so do timeout, Slurm and systemd: the search stops in order then, and needs its
    children for it. SIGTERM is blocked, since Ray's processes would put a handler on what is ignored; so does Ray in
    this process, which it would abort. Afterwards both signals are handled as before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)  # last: what came meanwhile is handled now

    try:
        yield
    except SystemExit as end:
        restore()
        if end.code == signal.SIGTERM:  # Ray's handler, in another thread, took what was for ours
            signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        restore()
