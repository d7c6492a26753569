"""Search commands as processes of their own, which begin with everything loaded.

A command imports Ray, torch and Optuna for longer than a small search trains. Here one process imports them and forks
for each command, which then runs as a user's does: it has its own session, its own signals, and dies alone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from xlstm_tune.search.libraries import set_environment

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["commands_loaded"])


class Command:
    """`python -m xlstm_tune.search ARGUMENTS`, started in `folder`, which takes its output too."""

    _count = 0

    def __init__(self, arguments: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        set_environment()  # before the first fork's parent imports what reads the environment
        Command._count += 1
        self._output, self._errors = (folder / f"command-{self._count}.{name}" for name in ("out", "err"))
        self._process = _FORKS.Process(
            target=_run, args=(list(arguments), folder, os.environ | environment, self._output, self._errors)
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def said(self) -> str:
        """What it has printed so far."""
        return self._output.read_text() if self._output.exists() else ""

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 300.0) -> tuple[str, str]:
        """Wait for the end; what was printed on stdout and stderr."""
        self._process.join(timeout)
        assert self.poll() is not None, f"still runs after {timeout} s: {self._printed()}"
        return self._printed()

    def _printed(self) -> tuple[str, str]:
        return self._output.read_text(), self._errors.read_text()


def _run(arguments: list[str], folder: Path, environment: dict[str, str], output: Path, errors: Path) -> NoReturn:
    """The command, in the forked process."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for path, stream in ((output, sys.stdout), (errors, sys.stderr)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, stream.fileno())
    # Where these tests were started in a shell's background, it is ignored, as the shell has it; Python leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from xlstm_tune.search.__main__ import main

    sys.argv = ["xlstm_tune.search", *arguments]
    main()
    raise SystemExit(0)
