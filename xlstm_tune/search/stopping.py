"""How a search stops before its end: Ctrl-C, SIGTERM, a terminal that is closed, a full disk.

The first signal lets running trials finish their epoch and save it, for at most the ten seconds that Ray gives them;
the second one stops at once. SIGTERM, which spot machines send half a minute before they go, counts as Ctrl-C, and
so does SIGHUP, the end of the terminal, unless it was ignored from the start, as by nohup.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = "interrupted"
DISK_FULL = "disk full"
DISK_FAILED = "disk failed"
STORAGE_AWAY = "storage away"
TIME_BUDGET = "time budget"
TAKEN_OVER = "taken over by another driver"
KILLED = "killed"
STOPS = (INTERRUPTED, DISK_FULL, DISK_FAILED, STORAGE_AWAY, TAKEN_OVER)
"""Reasons for which a search stops before its end, and is gone on with later."""
CUTS = (TIME_BUDGET, *STOPS)
"""Reasons of trials that were cut short by the search's own end; a resume goes on with them."""
GRACE = 600.0
"""Seconds for which running epochs may go on when the time budget is used up; then Ray is told to stop them."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopping:
    """Signals of this process, as the search sees them.

    say: told the user what the first signal does.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._searching = self._holding = False
        self.signal: int | None = None
        """The last one that came."""
        self.reason: str | None = None
        """Why the search has to stop; None while it need not."""
        self.detail = ""
        """What was said of the reason that counts."""
        self.told: Callable[[], None] = lambda: None
        """Called by what ends this process at once, after it has said why."""
        self._until: float | None = None

    @property
    def exit_code(self) -> int:
        """As shells have it: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
        return 128 + (self.signal or signal.SIGINT)

    def request(self, reason: str, detail: str = "") -> None:
        """Ask the search to stop as soon as its trials have saved what they have; the first reason counts."""
        if self.reason is None:
            self.reason, self.detail = reason, detail

    def allow(self, seconds: float | None) -> None:
        """The search's time budget begins now; None = there is none."""
        self._until = None if seconds is None else time.monotonic() + seconds

    def out_of_time(self) -> bool:
        """Whether the budget is used up: running epochs are finished, and no other begins."""
        return self._until is not None and time.monotonic() >= self._until

    def none_begins(self) -> bool:
        """Whether no further trial begins."""
        return self.reason is not None or self.out_of_time()

    def at_once(self) -> bool:
        """Whether running epochs are not waited for."""
        late = self._until is not None and time.monotonic() >= self._until + GRACE
        return late or self.reason is not None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, signals come here; outside the trials' time they end the program as KeyboardInterrupt."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's
            return
        watched = [one for one in SIGNALS if one != signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._came) for number in watched}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Inside, the first signal is a request."""
        self._searching = True
        try:
            yield
        finally:
            self._searching = False

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Inside, the first signal waits for the end, where it is a KeyboardInterrupt; a second one does not wait.

        Ray that is interrupted while it starts makes this process crash when it ends.
        """
        before, self._holding = self.signal, True
        try:
            yield
        except SystemExit:  # Ray's own handler took it
            if before is None and self.signal is not None:
                raise KeyboardInterrupt from None
            raise
        finally:
            self._holding = False
        if before is None and self.signal is not None:
            raise KeyboardInterrupt

    def _came(self, number: int, frame: FrameType | None) -> None:
        first, self.signal = self.signal is None, number
        if not (first and self._searching):
            self.reason = INTERRUPTED
            if first and self._holding:
                self._say("Stopping as soon as Ray has started. Again to stop at once.")
                return
            raise KeyboardInterrupt
        self.request(INTERRUPTED)
        self._say("Stopping: running trials finish their epoch and save it. Again to stop at once.")
