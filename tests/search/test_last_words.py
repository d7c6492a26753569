"""Last words come from a process that was killed, and from no other."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
from xlstm_tune.search.last_words import last_words

with last_words("go on with: it's 50% $HOME \\\\n") as told:
    exec(sys.argv[1])
"""
WORDS = "go on with: it's 50% $HOME \\n\n"


def ended(how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(1)", "os.abort()"])
def test_a_process_that_is_killed_leaves_words_as_they_are(how: str) -> None:
    done = ended(how)
    assert done.returncode != 0 and done.stderr == WORDS


@pytest.mark.parametrize("how", ["pass", "sys.exit(3)", "told(); os._exit(1)", "told(); told()"])
def test_one_that_ends_in_order_or_has_spoken_leaves_none(how: str) -> None:
    assert ended(how).stderr == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_they_outlive_a_signal_that_comes_to_all_processes(number: signal.Signals) -> None:
    """As a service manager sends it; SIGKILL follows for those that do not end."""
    done = ended(
        "import time; shell = int(open(f'/proc/self/task/{os.getpid()}/children').read());"
        f"os.kill(shell, {number:d}); time.sleep(0.3); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert done.stderr == WORDS


def test_without_a_shell_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from xlstm_tune.search import last_words

    monkeypatch.setattr(last_words, "_SHELL", "/no/such/shell")
    with last_words.last_words("never said") as told:
        told()
