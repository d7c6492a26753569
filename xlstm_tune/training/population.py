"""Stand-in for the population engine: members are trained one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from xlstm_tune.data.windows import Prepared
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.loop import Diverged, EpochResult, TrainingState, train


@dataclass(frozen=True)
class MemberEpoch:
    """What one epoch brought a member."""

    member: int
    result: EpochResult | None
    failure: str | None
    """Why the member is not trained further, instead of a result."""


def train_population(
    configs: Sequence[TrialConfig],
    data: Prepared,
    resume: Sequence[TrainingState | None] | None = None,
    device: torch.device | str | None = None,
    objective: str = "rmse",
) -> Iterator[list[MemberEpoch]]:
    """One epoch of all members that still train per `next()`; those that finished or failed are left out later."""
    runs = {
        number: train(config, data, resume[number] if resume else None, device, objective)
        for number, config in enumerate(configs)
        if not resume or resume[number] is not None
    }
    while runs:
        ended = []
        for number in list(runs):
            try:
                ended.append(MemberEpoch(number, next(runs[number]), None))
            except StopIteration:
                del runs[number]
            except Diverged as reason:
                ended.append(MemberEpoch(number, None, f"diverged: {reason}"))
                del runs[number]
        if ended:
            yield ended
