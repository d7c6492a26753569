"""What is printed where nobody reads it any more."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TextIO, cast

import pytest
from rich.console import Console

from xlstm_tune.output import Lasting


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
        "import sys; from xlstm_tune.output import outliving_terminal\n"
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
        "from xlstm_tune.output import outliving_terminal\nwith outliving_terminal(): print('nobody reads this')\n"
    )
    made = subprocess.run(["sh", "-c", '"$0" -c "$1" >&- 2>&-', sys.executable, program])
    assert made.returncode == 0


def test_a_sign_that_a_locale_lacks_is_no_error() -> None:
    program = (
        "from xlstm_tune.output import outliving_terminal\nwith outliving_terminal(): print('8 weeks \u2026 \u2502')"
    )
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment)
    assert (made.returncode, made.stdout) == (0, b"8 weeks ? ?\n")


@pytest.mark.parametrize("command", [["report"], ["predict"], ["tracking", "sync"], ["search"]], ids=" ".join)
def test_what_a_full_disk_does_not_take_of_a_command_is_told(command: list[str]) -> None:
    asked = [sys.executable, "-m", f"xlstm_tune.{command[0]}", *command[1:], "--help"]
    with open("/dev/full", "w") as full:
        made = subprocess.run(asked, stdout=full, stderr=subprocess.PIPE, text=True)
    assert made.returncode == 0
    assert made.stderr == "note: some of the output is lost, since there was no room for it\n"
