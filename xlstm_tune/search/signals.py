"""Signals around what Ray starts, and leaves behind: a search ends in order, and needs its children for that."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


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
