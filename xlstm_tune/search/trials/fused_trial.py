"""A Ray trial that trains several configurations of one shape in one pass, each with results of its own."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from xlstm_tune.data.windows import Prepared
from xlstm_tune.search.persistence.store import HERE, Shared
from xlstm_tune.search.trials.checkpoints import Checkpoints, worth_saving
from xlstm_tune.search.trials.single_trial import epoch_row, forget_later_weights, last_state
from xlstm_tune.training.checkpoint import save
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.loop import TrainingState, begin, pick_device
from xlstm_tune.training.population import MemberEpoch, train_population


@dataclass(frozen=True)
class Fused:
    """One of the configurations."""

    number: int
    """Of its trial."""
    config: TrialConfig
    folder: Path
    """Where it keeps its best weights and its checkpoints."""
    known: int = 0
    """Epochs that the driver knows of an earlier worker."""


class FusedTrial:
    """Trains configurations that differ in `members.SHAPE_PRESERVING` alone, an epoch of all a step.

    objective: of `ranking.METRICS`. store: as for `SingleTrial`; it tells too which of them the scheduler has stopped.
    rungs: epochs after which it may stop some (`schedulers.rungs`).

    Whoever goes on when others end trains in another company from there on, which shows in the last bits of its
    numbers. A resume must find the same company at every epoch: so all are saved where it changes, and before a word of
    that epoch is out.
    """

    def __init__(
        self,
        runs: Sequence[Fused],
        data: Prepared,
        objective: str,
        store: Shared = HERE,
        rungs: Container[int] = (),
    ) -> None:
        self._runs, self._data, self._objective, self._store, self._rungs = runs, data, objective, store, rungs
        self._out: set[int] = set()
        """Places of configurations that have failed or were stopped."""
        self._checkpoints = [Checkpoints(run.folder, store) for run in runs]
        self._untold: list[dict[str, Any]] = []
        """Rows of earlier workers that the driver does not know."""
        self._states = self._take_up()
        self._left = self._ended()
        resume = [self._states[place] for place in range(len(runs))] if self._states else None
        configs = [run.config for run in runs]
        self._epochs = train_population(configs, data, resume, objective=objective, left_out=self._out)

    def step(self) -> list[dict[str, Any]]:
        """One epoch of every configuration that goes on. Returns their rows; none when nothing is left to do."""
        if self._untold:
            rows, self._untold = self._untold, []
            return rows
        stopped = self._store.marked(run.folder for run in self._runs)
        self._out |= {place for place, run in enumerate(self._runs) if run.folder in stopped}
        self._save_if(False)  # some may have been too slow, or stopped when an earlier worker's rows were told
        rows = [self._row(each) for each in next(self._epochs, ())]
        going_on = [self._checkpoints[place] for place in self._states if place not in self._out]
        at_a_rung = any(row["epoch"] in self._rungs for row in rows if row["status"] != "failed")
        self._save_if(at_a_rung or (bool(going_on) and worth_saving(going_on)))
        return rows

    def _save_if(self, wanted: bool) -> None:
        """Save where it is wanted, or where some have ended since the last time."""
        if (left := self._ended()) != self._left or wanted:
            self.save()
        self._left = left

    def _ended(self) -> set[int]:
        """Places of configurations that train no further."""
        return self._out | {place for place, state in self._states.items() if state.finished}

    def save(self) -> None:
        """Save the last epoch of each configuration that goes on, if it is not saved yet."""
        for place, state in self._states.items():
            if place not in self._out and not state.finished:
                self._checkpoints[place].save(state.epoch, partial(save, state))

    def _take_up(self) -> dict[int, TrainingState]:
        """The states to go on from: of one epoch where all have it, so that they stay in step.

        A worker that was lost within the first save leaves some without any; then all begin again.
        """
        saved = [
            {epoch for epoch, _, _ in checkpoints.whole(run.known)}
            for checkpoints, run in zip(self._checkpoints, self._runs, strict=True)
        ]
        first = all(len(epochs) <= 1 for epochs in saved)
        common = max(set.intersection(*saved), default=0 if first else None)
        states = {}
        for place, (checkpoints, run) in enumerate(zip(self._checkpoints, self._runs, strict=True)):
            state, rows = last_state(checkpoints, run.known, run.config, self._data, common)
            self._untold += [{"number": run.number, **row} for row in rows]
            if state is not None:
                states[place] = state
        for place, run in enumerate(self._runs):
            forget_later_weights(run.folder, states.get(place), run.known)
        if states:
            for place, run in enumerate(self._runs):
                if place not in states:
                    states[place] = begin(run.config, self._data, pick_device(), self._objective)
        return states

    def _row(self, each: MemberEpoch) -> dict[str, Any]:
        run = self._runs[each.member]
        if each.result is None:
            self._out.add(each.member)
            self._states.pop(each.member, None)
            return {"number": run.number, "status": "failed", "reason": each.failure or "failed without a reason"}
        self._states[each.member] = each.result.state
        row = epoch_row(each.result, run.folder, self._data)
        self._checkpoints[each.member].note(row)
        return {"number": run.number, **row}
