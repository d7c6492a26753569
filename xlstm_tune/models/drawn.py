"""Some of many samples, where all would take too much time or room."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def drawn(total: int, most: int) -> npt.NDArray[np.int64]:
    """`most` of the positions 0 … total - 1, rising; all of them where there are no more.

    One from each of `most` equal stretches: evenly spread, the same every time, and in step with no season, as every
    24th hour would be.
    """
    if total <= most:
        return np.arange(total)
    edges = np.arange(most + 1) * total // most  # whole, so that no position lies in two stretches
    return edges[:-1] + (np.random.default_rng(0).random(most) * np.diff(edges)).astype(np.int64)
