"""A folder of a worker's own on its machine's disk; what killed workers leave there, the next one clears away."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_OWNER = "owner"
"""Locked while the folder's process lives; holds whose search it is of."""


def scratch_folder(search: str, left: Callable[[Path], None] = lambda folder: None) -> Path:
    """A new folder, which is removed when this process ends by itself.

    search: which search it is for. left: called with each folder of a process that was killed while it worked for the
    same search, before that folder is removed.
    """
    prefix = f"xlstm_tune-{os.getuid()}-"
    for old in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):  # another worker may be clearing up too
            _clear(old, search, left)
    folder = Path(tempfile.mkdtemp(prefix=prefix))  # readable by this user alone
    # Not closed on purpose: the lock is the operating system's, and ends with this process however that dies.
    descriptor = os.open(folder / _OWNER, os.O_WRONLY | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(descriptor, search.encode())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _clear(old: Path, search: str, left: Callable[[Path], None]) -> None:
    if old.is_symlink() or old.stat().st_uid != os.getuid():
        return
    with (old / _OWNER).open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        whose = file.read()
        if not whose:  # made a moment ago
            return
        if whose == search:
            left(old)
        shutil.rmtree(old)
