"""A Ray trial that trains several configurations of one shape in one pass, each with results of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlstm_tune.data.windows import Prepared
from xlstm_tune.errors import CheckpointError
from xlstm_tune.search.folder import STOPPED, member_folder
from xlstm_tune.search.single_trial import epoch_row
from xlstm_tune.training.checkpoint import load, save, write_atomically
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.loop import TrainingState
from xlstm_tune.training.population import MemberEpoch, train_population

FUSED = "fused.json"
"""Beside the configurations' own checkpoints: which of them go on."""


@dataclass(frozen=True)
class Fused:
    """One of the configurations."""

    number: int
    """Of its trial."""
    config: TrialConfig
    folder: Path
    """Where it keeps its best weights."""


class FusedTrial:
    """Trains configurations that differ in `members.SHAPE_PRESERVING` alone, an epoch of all a step.

    objective: of `metrics.METRICS`.
    """

    def __init__(self, runs: Sequence[Fused], data: Prepared, objective: str) -> None:
        self._runs, self._data, self._objective = runs, data, objective
        self._states: dict[int, TrainingState] = {}
        self._out: set[int] = set()
        """Places of configurations that have failed or were stopped."""
        self._epochs = self._train(None)

    def step(self) -> list[dict[str, Any]]:
        """One epoch of every configuration that goes on. Returns the row of each; none when nothing is left to do."""
        self._out |= {place for place, run in enumerate(self._runs) if (run.folder / STOPPED).exists()}
        return [self._row(each) for each in next(self._epochs, ())]

    def save(self, folder: Path) -> None:
        """Everything that the next epoch depends on."""
        if not self._states:
            raise RuntimeError("the trial has no finished epoch to save yet")
        going_on = {place: state for place, state in self._states.items() if place not in self._out}
        for place, state in going_on.items():
            save(state, member_folder(folder, place))
        known = {"numbers": [run.number for run in self._runs], "going_on": sorted(going_on)}
        write_atomically(folder / FUSED, json.dumps(known).encode())

    def load(self, folder: Path) -> None:
        """Go on after the last saved epoch. Raises CheckpointError when the folder does not hold one of this trial."""
        try:
            known = json.loads((folder / FUSED).read_bytes())
            numbers, going_on = list(known["numbers"]), [int(place) for place in known["going_on"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder} holds no checkpoint of configurations trained together: {error}") from None
        if numbers != [run.number for run in self._runs]:
            raise CheckpointError(f"the checkpoint {folder} belongs to other trials: {numbers}")
        self._states = {
            place: load(member_folder(folder, place), self._runs[place].config, self._data) for place in going_on
        }
        self._out = set(range(len(self._runs))) - set(going_on)
        self._epochs = self._train(self._states)

    def _train(self, states: Mapping[int, TrainingState] | None) -> Iterator[list[MemberEpoch]]:
        places = range(len(self._runs))
        resume = None if states is None else [states.get(place) for place in places]
        configs = [run.config for run in self._runs]
        return train_population(configs, self._data, resume, objective=self._objective, left_out=self._out)

    def _row(self, each: MemberEpoch) -> dict[str, Any]:
        run = self._runs[each.member]
        if each.result is None:
            self._out.add(each.member)
            return {"number": run.number, "status": "failed", "reason": each.failure or "failed without a reason"}
        self._states[each.member] = each.result.state
        return {"number": run.number, **epoch_row(each.result, run.folder)}
