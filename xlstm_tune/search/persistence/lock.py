"""One driver for a search at a time: a lock on its folder that no crash leaves behind."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from xlstm_tune.errors import StorageError
from xlstm_tune.layout import LOCK


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process runs the search in `folder`.

    Raises StorageError, with who it is, when another does. Where the file system knows no locks nothing is held.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    try:
        # Opened so that programs which this one starts do not inherit it: they may outlive the driver.
        file = (folder / LOCK).open("a+", errors="replace")
    except OSError as error:
        raise _unwritable(folder, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                file.seek(0)
                who = file.read().strip() or "another process"
                raise StorageError(
                    f"the search '{folder.name}' is being run by {who}; wait until it ends, or stop it first"
                ) from None
        try:
            file.truncate(0)
            who = f"process {os.getpid()} on {platform.node()} since {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}\n"
            os.write(file.fileno(), who.encode())  # nothing stays in a buffer that closing would write again
        except OSError as error:
            raise _unwritable(folder, error) from None
        try:
            yield
        finally:
            with suppress(OSError):  # what the next driver writes there replaces it
                file.truncate(0)


def _unwritable(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"the search folder {folder} cannot be written ({error.strerror or error}); make room or get leave to write "
        "there, then run the same command again"
    )
