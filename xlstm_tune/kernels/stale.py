"""Machine code that Numba keeps on disk, and that no longer fits the sources.

Numba looks at the file of a kernel to see whether what it has kept of it is stale, but not at the files of functions
that the kernel calls.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

STAMP = "sources.sha256"
"""Beside what Numba keeps: which sources it was made of."""


def forget_stale(place: Path) -> None:
    """Remove the kernels in a folder that were compiled of other sources than these are.

    Where nothing can be removed or written, all stays as it is. Processes may do so at once: a kernel that another
    removes under Numba's hands is compiled again.
    """
    stamp, now = place / STAMP, _sources()
    with suppress(OSError):
        if stamp.exists() and stamp.read_text() == now:
            return
        for path in (*place.glob("*.nbi"), *place.glob("*.nbc")):
            path.unlink(missing_ok=True)
        begun = stamp.with_name(f"{STAMP}.{os.getpid()}")
        begun.write_text(now)
        begun.replace(stamp)


@cache
def _sources() -> str:
    """Of all files here: kernels also hold numbers of files in which nothing is compiled."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
