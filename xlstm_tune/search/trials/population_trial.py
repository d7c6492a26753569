"""A trial that trains a population: members of one shape, all combinations of the listed settings and seeds.

Its score is the best setting's mean over the seeds. A setting is out as soon as one of its members fails; the trial
fails when none is left, and ends when every member that still counts has ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from xlstm_tune.data.windows import Prepared
from xlstm_tune.errors import CheckpointError
from xlstm_tune.search.persistence.folder import member_folder
from xlstm_tune.search.persistence.store import HERE, Shared
from xlstm_tune.search.trials.checkpoints import Checkpoints, worth_saving
from xlstm_tune.search.trials.single_trial import forget_later_weights, save_best, save_end
from xlstm_tune.tracking import VALIDATION_END
from xlstm_tune.training.checkpoint import load, save, write_atomically
from xlstm_tune.training.loop import EpochResult, TrainingState
from xlstm_tune.training.members import Member, Score, score_of
from xlstm_tune.training.population import MemberEpoch, train_population

POPULATION = "population.json"
"""Beside the members' own checkpoints: what is known of each."""


@dataclass
class Record:
    """What is known of one member: plain values, so that a checkpoint can hold it."""

    epoch: int = 0
    """Epochs done."""
    train_loss: float = 0.0
    learning_rate: float = 0.0
    value: float = 0.0
    """The objective after its last epoch."""
    best_epoch: int = 0
    best: dict[str, float] | None = None
    """Every metric at its best epoch."""
    failure: str | None = None
    finished: bool = False

    def update(self, result: EpochResult, objective: str) -> None:
        """Take over what an epoch brought."""
        self.epoch, self.train_loss, self.learning_rate = result.epoch, result.train_loss, result.learning_rate
        self.value, self.finished = result.validation[objective], result.finished
        self.best_epoch, self.best = result.state.best_epoch, result.state.best_validation


class PopulationTrial:
    """Trains the members of one trial, an epoch of all a step; keeps the best weights of each in the trial's folder.

    objective, known, store: as `SingleTrial`.
    """

    def __init__(
        self,
        members: Sequence[Member],
        data: Prepared,
        folder: Path,
        objective: str,
        known: int = 0,
        store: Shared = HERE,
    ) -> None:
        self._members, self._data, self._folder, self._objective = members, data, folder, objective
        self._configs = [member.config for member in members]
        self._records = [Record() for _ in members]
        self._states: list[TrainingState | None] = [None] * len(members)
        self._epoch = 0
        self._about: dict[str, Any] = {"parameters": None, "backend": None}
        self._saved: tuple[int, int] | None = None  # member and epoch whose weights stand for the trial
        self._checkpoints = Checkpoints(folder, store)
        self._untold = self._take_up(known)
        resume = self._states if self._epoch else None
        self._left_out = self._dropped()
        self._epochs: Iterator[list[MemberEpoch]] = train_population(
            self._configs, data, resume, objective=objective, left_out=self._left_out
        )

    def step(self) -> list[dict[str, Any]]:
        """One epoch of all members. Returns the rows that scheduler, searcher and driver see."""
        if self._untold:
            rows, self._untold = self._untold, []
            return rows
        results: list[EpochResult] = []
        trained: list[int] = []
        for each in next(self._epochs):
            if each.result is None:
                self._records[each.member].failure = each.failure or "failed without a reason"
                self._states[each.member] = None
                continue
            results.append(each.result)
            trained.append(each.member)
            self._states[each.member] = each.result.state
            self._records[each.member].update(each.result, self._objective)
            if each.result.improved:
                place = member_folder(self._folder, each.member)
                place.mkdir(parents=True, exist_ok=True)
                save_best(place, each.result.state)
                save_end(place, each.result.state, self._data)
        if results:
            self._about = {"parameters": results[0].parameters, "backend": results[0].backend}
        self._left_out |= self._dropped()
        self._epoch += 1
        score = self._score()
        if score is None:
            return [self._lost()]
        self._keep_winner(score)
        row = self._row(score, results, trained)
        self._checkpoints.note(row)
        if worth_saving([self._checkpoints]):
            self.save()
        return [row]

    def save(self) -> None:
        """Save the last epoch, if it is not saved yet."""
        if self._epoch:
            self._checkpoints.save(self._epoch, self._write)

    def _write(self, folder: Path) -> None:
        """Everything that the next epoch depends on: one checkpoint a member, and what is known of all."""
        folder.mkdir(parents=True)
        for member, state in enumerate(self._states):
            if state is not None:
                save(state, member_folder(folder, member))
        known = {"epoch": self._epoch, "members": [asdict(record) for record in self._records]}
        write_atomically(folder / POPULATION, json.dumps(known, allow_nan=False).encode())

    def _take_up(self, known: int) -> list[dict[str, Any]]:
        """Go on after the last epoch that was saved whole; returns the rows behind epoch `known` that came before."""
        untold: list[dict[str, Any]] = []
        for epoch, place, rows in self._checkpoints.whole(known):
            try:
                self._load(place)
            except CheckpointError as error:
                self._checkpoints.damaged(place, str(error))
                continue
            self._checkpoints.go_on_from(epoch)
            untold = rows
            break
        else:
            self._checkpoints.go_on_from(0)
        for member, state in enumerate(self._states):
            forget_later_weights(member_folder(self._folder, member), state, known)
        score = self._score() if self._epoch else None
        forget_later_weights(self._folder, self._states[score.winner] if score is not None else None, known)
        if score is not None and self._epoch >= known:  # else what wins at epoch `known` is trained once more
            self._keep_winner(score)
        return untold

    def _load(self, folder: Path) -> None:
        """Raises CheckpointError when the folder does not hold a checkpoint of this trial."""
        try:
            known = json.loads((folder / POPULATION).read_bytes())
            records = [Record(**record) for record in known["members"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder} holds no checkpoint of a population: {error}") from None
        if len(records) != len(self._members):
            raise CheckpointError(
                f"the checkpoint {folder} belongs to another run: it has {len(records)} members, "
                f"and this trial {len(self._members)}"
            )
        states: list[TrainingState | None] = []
        for member, (config, record) in enumerate(zip(self._configs, records, strict=True)):
            where = member_folder(folder, member)
            state = None if record.failure else load(where, config, self._data)
            if state is not None and state.epoch != record.epoch:
                raise CheckpointError(
                    f"the checkpoint {where} is of epoch {state.epoch}, and {POPULATION} beside it of {record.epoch}"
                )
            states.append(state)
        self._epoch, self._records, self._states = known["epoch"], records, states
        first = next((state for state in states if state is not None), None)
        if first is not None:
            self._about |= {"parameters": sum(one.numel() for one in first.model.parameters())}

    def _score(self) -> Score | None:
        best = [record.best for record in self._records]
        failed = [record.failure is not None for record in self._records]
        return score_of(self._members, best, failed, self._objective)

    def _out(self) -> set[int]:
        """Settings with a member that failed."""
        pairs = zip(self._members, self._records, strict=True)
        return {member.group for member, record in pairs if record.failure is not None}

    def _dropped(self) -> set[int]:
        """Members whose setting is out."""
        out = self._out()
        return {member.index for member in self._members if member.group in out}

    def _row(self, score: Score, results: Sequence[EpochResult], trained: Sequence[int]) -> dict[str, Any]:
        out, best = self._out(), [self._records[index] for index in score.members]
        pairs = zip(self._members, self._records, strict=True)
        finished = all(record.finished for member, record in pairs if member.group not in out)
        memory = [result.peak_memory_mib for result in results if result.peak_memory_mib is not None]
        return {
            "epoch": self._epoch,
            "train_loss": fmean(record.train_loss for record in best),
            # The score itself: members may have ended at different epochs, so that it alone is defined at each.
            **{f"val_{name}": value for name, value in score.mean.items()},
            **{f"best_val_{name}": value for name, value in score.mean.items()},
            "std_error": score.std_error,
            "best_epoch": self._records[score.winner].best_epoch,
            "learning_rate": fmean(record.learning_rate for record in best),
            "epoch_seconds": sum(result.seconds for result in results),
            "sequences_per_s": fmean(result.sequences_per_s for result in results) if results else 0.0,
            "peak_memory_mib": max(memory, default=None),
            "micro_batch": min((result.micro_batch for result in results if result.micro_batch), default=None),
            "members_at_once": min((result.together for result in results if result.together), default=None),
            **self._about,
            "winner": score.winner,
            "members": self._standing(),
            "trained": list(trained),
            "status": "completed" if finished else "running",
            "finished": finished,
            "done": finished,
        }

    def _lost(self) -> dict[str, Any]:
        """No setting is left."""
        pairs = zip(self._members, self._records, strict=True)
        reasons = [(member.title, record.failure) for member, record in pairs if record.failure]
        kind = reasons[0][1].partition(":")[0] if reasons else "error"
        told = "; ".join(f"{title}: {reason.removeprefix(kind + ': ')}" for title, reason in reasons)
        return {
            "epoch": self._epoch,
            "status": "failed",
            "reason": f"{kind}: no setting of the population is left ({told})",
            "members": self._standing(),
        }

    def _standing(self) -> list[dict[str, Any]]:
        """Each member as plain values, for the tables and curves."""
        out = self._out()
        standing = []
        for member, record in zip(self._members, self._records, strict=True):
            status, reason = "completed" if record.finished else "running", record.failure
            if record.failure is not None:
                status = "failed"
            elif member.group in out:
                others = [other for other in self._members if other.group == member.group]
                lost = [str(other.seed) for other in others if self._records[other.index].failure is not None]
                status, reason = "dropped", f"its setting is out: seed {', '.join(lost)} failed"
            known = {"epochs": record.epoch, "best_epoch": record.best_epoch or None, "best": record.best or {}}
            standing.append({"status": status, "reason": reason, "value": record.value, **known})
        return standing

    def _keep_winner(self, score: Score) -> None:
        """The winning member's best weights and what it predicted then, as the trial's own."""
        best = (score.winner, self._records[score.winner].best_epoch)
        if best != self._saved:
            state = self._states[score.winner]
            assert state is not None
            save_best(self._folder, state)
            end = member_folder(self._folder, score.winner) / VALIDATION_END
            if end.exists():
                write_atomically(self._folder / VALIDATION_END, end.read_bytes())
            else:  # the best epoch came before a resume, and the state knows no forecasts of it
                (self._folder / VALIDATION_END).unlink(missing_ok=True)
            self._saved = best
