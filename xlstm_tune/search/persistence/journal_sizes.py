"""How much of the journals counts while they grow."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from xlstm_tune.storage.copy import JOURNALS

_BLOCK = 65536


def journal_sizes(folder: Path) -> dict[str, int]:
    """Sizes of both at one moment: nothing was written to the one while the other was looked at. Whole lines count,
    so that they never shrink: a half line at the end is cut off by a driver that finds it."""
    first, second = JOURNALS
    while True:
        before = _whole(folder / second)
        sizes = {first: _whole(folder / first), second: _whole(folder / second)}
        if sizes[second] == before:
            return sizes


def _whole(path: Path) -> int:
    """Bytes of the whole lines of a file; 0 where there is none."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            if (newline := file.read(end - start).rfind(b"\n")) >= 0:
                return start + newline + 1
            end = start
    return 0
