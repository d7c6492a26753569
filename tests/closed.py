"""Commands before a folder that is closed to them, also where the tests are root's, whom no folder is closed to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_POWERS = "-dac_override,-dac_read_search"
"""What makes permissions mean nothing to root."""


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """The folder with nobody's right to look into it, until the block ends."""
    before = folder.stat().st_mode
    folder.chmod(0)
    try:
        yield
    finally:
        folder.chmod(before)


def refusal(*arguments: str, folder: Path) -> str:
    """What `python -m ARGUMENTS`, run in `folder`, says on standard error; it must be one sentence and exit code 2."""
    done = subprocess.run(
        [*_powerless(), sys.executable, "-m", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    error = done.stderr.strip()
    assert error and "\n" not in error and "Traceback" not in error, error
    return error


def _powerless() -> list[str]:
    """What a command begins with that permissions mean something to. Skips where there is no such thing."""
    if os.geteuid() != 0:
        return []
    prefix = ["setpriv", f"--bounding-set={_POWERS}"]
    try:
        subprocess.run([*prefix, "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("root looks into every folder, and there is no setpriv here that could take that power away")
    return prefix
