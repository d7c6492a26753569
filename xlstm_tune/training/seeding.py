"""What torch's generators start from: (seed, epoch), so that a run goes on after any epoch without their states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mixed_seed(seed: int, epoch: int) -> int:
    """What seeds the generator of an epoch; epoch 0 draws the weights."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0])


@contextmanager
def seeded(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's RNG on the CPU and on `device` follows from (seed, epoch); outside it is as it was."""
    mixed = mixed_seed(seed, epoch)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(mixed)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index].manual_seed(mixed)
        yield
