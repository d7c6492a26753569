"""Memory that a training process frees stays with it for the next step."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of the settings in glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Tell glibc not to give freed memory back to the system. Returns whether it took that in.

    A training step frees tens of megabytes and asks for the same again. Handed out anew by the system, each page costs
    a fault and is cleared: about a tenth of a step of a small model on a CPU. For processes that train and little else.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 2**30)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
