"""Files that survive the process which writes them: whole lines or none, and what has reached the disk."""

from __future__ import annotations

import os
from pathlib import Path


def append_line(descriptor: int, line: bytes) -> None:
    """Append to a file opened with O_APPEND, by one write(), which survives this process being killed.

    line: with its newline. Raises OSError, with nothing written, when the disk is full.
    """
    written = 0
    try:
        while written < len(line):  # a disk that is nearly full takes a part, without an error
            written += os.write(descriptor, line[written:])
    except OSError:
        if written:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
        raise


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cut_torn_line(path: Path) -> None:
    """Cut the half line at the end that a killed writer may leave: with a line behind it, it would be damage."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        whole, block = size, 65536
        while whole:
            start = max(0, whole - block)
            file.seek(start)
            newline = file.read(whole - start).rfind(b"\n")
            if newline >= 0:
                whole = start + newline + 1
                break
            whole = start
        if whole < size:
            file.truncate(whole)
