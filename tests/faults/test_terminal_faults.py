"""A terminal that is closed while a search runs in it."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_search import Search, check_accounted, write_search
from tracked import ROOT

pytestmark = pytest.mark.slow


class Terminal:
    """A search in a terminal of its own. deaf: to the terminal's end, as under nohup or after `trap '' HUP`."""

    def __init__(self, search: Search, *arguments: str, deaf: bool) -> None:
        self._process, self._screen = pty.fork()
        if not self._process:
            signal.signal(signal.SIGHUP, signal.SIG_IGN if deaf else signal.SIG_DFL)
            os.chdir(ROOT)
            command = [sys.executable, "-m", "xlstm_tune.search", *arguments, "--storage", str(search.storage)]
            os.execv(sys.executable, command)
        os.set_blocking(self._screen, False)

    def until(self, condition: Callable[[], bool], seconds: float = 240.0) -> None:
        """Read the screen, so that the search does not wait for it, until the condition holds."""
        deadline = time.monotonic() + seconds
        shown = b""
        while not condition():
            assert time.monotonic() < deadline, shown[-2000:].decode(errors="replace")
            try:
                shown += os.read(self._screen, 65536)
            except BlockingIOError:
                time.sleep(0.05)

    def close(self) -> int:
        """Close the terminal, wait for the search's end, and return its exit code."""
        os.close(self._screen)
        _, status = os.waitpid(self._process, 0)
        return os.waitstatus_to_exitcode(status)


def test_a_search_survives_its_terminal(tmp_path: Path, undisturbed: Callable[..., Path]) -> None:
    """Its end stops a search in order, like Ctrl-C; one that is deaf to it goes on to the champion."""
    search = Search(tmp_path / "searches")
    terminal = Terminal(search, str(write_search(tmp_path)), deaf=False)
    terminal.until(lambda: search.epochs() > 10)
    assert terminal.close() == 128 + signal.SIGHUP
    assert '"reason": "interrupted"' in (search.folder / "search.journal").read_text()

    known = search.epochs()
    terminal = Terminal(search, "--resume", "wave", deaf=True)
    terminal.until(lambda: search.epochs() > known)
    assert terminal.close() == 0
    check_accounted(search.folder, undisturbed())
    assert (search.folder / "champion").is_dir()
