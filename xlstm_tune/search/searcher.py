"""Ray asks, Optuna proposes: a Ray Searcher over Optuna's ask and tell.

Every Optuna trial ends exactly once, and Optuna is always told how, because a trial left RUNNING would be avoided by
the sampler for ever:

* completed: COMPLETE with the objective of its best epoch;
* pruned (the scheduler stopped it): PRUNED, with every reported value;
* failed (diverged, out of memory, error, worker lost again and again): FAIL, with the reason as a user attribute;
* duplicate (its configuration is known): told at once what the original was told, or when the original ends; Ray
  never sees it, and it does not count as a trial.

Only a search that stops before its end leaves trials RUNNING: they go on under their numbers when it is resumed.

Intermediate values are the best objective *so far*: what the trial would score if it ended there, so that a pruned
trial's value compares with a completed one's.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from xlstm_tune.errors import SpecError
from xlstm_tune.search.duplicates import (
    DUPLICATE_OF,
    ENDINGS,
    REASON,
    START,
    Ending,
    Known,
    Ledger,
    Status,
    TrialEnd,
)
from xlstm_tune.search.fusion import LOOK_AHEAD, NO_FUSION, Fusion, Waiting, fuses
from xlstm_tune.search.journal import Journal, Past
from xlstm_tune.search.losses import NODE_LOST
from xlstm_tune.search.space import Params, Space
from xlstm_tune.search.study import open_study, open_trials
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.config import TrialConfig

DEFAULT_TRIALS = 32
PATIENCE = 10
"""Known configurations in a row after which a finite space is asked at random for an unknown one."""
GIVE_UP = 100
"""Known or impossible configurations in a row after which the space counts as exhausted."""
TRIES = 4
"""Workers lost in a row without a new epoch, after which a configuration counts as failed."""
TRIES_TOGETHER = 2
"""The same for configurations that are trained together, which are then trained each by itself."""

_STATES: dict[Ending, TrialState] = {
    "completed": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


@dataclass
class _Live:
    """A configuration that has not ended."""

    trial: optuna.Trial
    key: str
    known: Known
    params: Params
    config: TrialConfig
    start: bool
    """It began as a start point."""
    trial_id: str | None = None
    """Ray's; None while no worker has it."""
    losses: int = 0
    """Workers lost in a row without an epoch that was new."""


class OptunaSearcher(Searcher):  # type: ignore[misc]
    """Proposes the trials of one search.

    spec, space: the search and its checked space.
    folder: the search folder; the study's journal lies there unless `search.storage` names an Optuna URL.
    journal: of the search; what it holds of an earlier driver is gone on with.
    max_trials: distinct configurations to start; None = `search.trials`, and without that every point of a grid, 32
        otherwise. Duplicates do not count.
    resume: open the study again: finished trials stay known, open ones are gone on with first, under their numbers.
    on_end: called once per ended Optuna trial, duplicates and refused combinations included. It must not raise: an
        exception here ends the search.
    fusion: how many configurations may share a Ray trial.
    why_lost: why Ray's trial of this id lost its worker.

    Each suggestion is `{"trials": [{"number": Optuna's trial number, "params": the point, "known": epochs that need not
    be told again}, ...]}`. Every result that a Ray trial reports must hold `rows`, one for each configuration and epoch
    that is new, with its `number`, `epoch`, `best_<objective>` (NaN when there is none), `status`, `finished` and
    `done`; no rows, but a `reason`, when all failed at once. Run it with `max_concurrent_trials` set: Ray asks a custom
    searcher for one pending trial at a time otherwise.

    Raises StorageError when the study cannot be opened.
    """

    def __init__(
        self,
        spec: SearchSpec,
        space: Space,
        folder: Path,
        journal: Journal,
        *,
        max_trials: int | None = None,
        resume: bool = False,
        on_end: Callable[[TrialEnd], None] | None = None,
        fusion: Fusion = NO_FUSION,
        why_lost: Callable[[str], str] = lambda trial_id: "worker died",
    ) -> None:
        super().__init__(metric=f"best_{spec.search.objective}", mode="min")
        self._spec, self._space, self._journal, self._on_end = spec, space, journal, on_end
        self._study, storage, self._sync = open_study(spec.name, spec.search, folder, resume)
        self._grid = spec.search.algorithm == "grid"
        self._limit = max_trials or spec.search.trials or (None if self._grid else DEFAULT_TRIALS)
        self._rng = random.Random(spec.search.seed)
        self._ledger = Ledger()
        self._fusion, self._why_lost = fusion, why_lost
        self._draws_ahead = fusion.width > 1 and fuses(spec) and spec.search.algorithm == "random"
        self._live: dict[int, _Live] = {}
        self._together: dict[str, list[int]] = {}
        """Ray's trials, and the configurations that each began with."""
        self._again: deque[list[int]] = deque()
        """Configurations that have begun and need another worker, in the groups that they are trained in."""
        self._waiting = Waiting()
        self._closed = False
        self.exhausted: str | None = None
        """Why there is nothing new to try although the number of trials is not reached; None until then."""
        self.separated: list[str] = []
        """Why configurations that were trained together were begun again one by one, for each time that happened."""
        self._unknown: dict[str, Params] | None = None
        """Points of a finite space that are not known yet."""
        self._read_study(storage)
        points = space.points
        self._unknown = None if points is None else {k: p for k, p in points.items() if k not in self._ledger}

    @property
    def study(self) -> optuna.Study:
        """The Optuna study, for reports."""
        return self._study

    @property
    def started(self) -> int:
        """Distinct configurations started, those of earlier runs included; what `search.trials` limits."""
        return len(self._ledger)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """What goes on, or the next configurations; FINISHED, or None while some may need another worker."""
        if self._again:
            chosen = [self._live[number] for number in self._again.popleft()]
        else:
            first = self._first()
            if isinstance(first, str):
                return None if self._together else first
            chosen = [first, *self._like(first)]
        for one in chosen:
            one.trial_id = trial_id
        numbers = [one.known.number for one in chosen]
        self._together[trial_id] = numbers
        self._sync()  # what the journal knows, the study knows
        self._journal.began(numbers, [one.params for one in chosen])
        return {
            "trials": [
                {"number": one.known.number, "params": one.params, "known": max(one.known.steps, default=0)}
                for one in chosen
            ]
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass the epoch's values on to Optuna, and end the configurations that have ended."""
        for row in result["rows"]:
            live = self._live.get(row["number"])
            if live is not None and live.trial_id == trial_id:
                self._record(live, row)
                if row["done"]:
                    self._settle(live, row)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """End what the Ray trial trained the way it ended; what was left without a word goes on with another worker."""
        began = self._together.pop(trial_id, [])
        if error or result is None:
            # The trial itself turns its exceptions into results; only a lost worker process is an error to Ray.
            return self._lost(trial_id, began, self._why_lost(trial_id))
        # Ray does not announce the result that ends a trial through on_trial_result.
        self.on_trial_result(trial_id, result)
        left = self._left(trial_id, began)
        if left and "reason" in result and len(began) > 1:  # all failed at once, which is no word on any of them
            self.separated.append(str(result["reason"]))
            self._journal.died(left, str(result["reason"]))
            self._again.extend([number] for number in left)
        elif left and not self._closed:
            self._lost(trial_id, began, "stopped before it ended")

    def close(self, reason: str) -> None:
        """The search stops: report every trial still open as pruned when it has values, else as failed.

        reason: why, such as `time budget`. In the study they stay open, and a resume goes on with them.
        Ray says nothing to a searcher when a time budget or an interrupt ends a run, so the driver must call this.
        """
        self._closed = True
        self._journal.closed(reason)
        for live in self._live.values():
            status: Ending = "pruned" if live.known.steps else "failed"
            self._report(TrialEnd(live.known.number, live.trial_id, status, reason, live.known.value, live.params))

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing to write: the study is the record."""

    def restore_from_dir(self, checkpoint_dir: str) -> None:
        """Nothing to read: `resume=True` reads the study."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to write: the study is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to read: `resume=True` reads the study."""

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its Tuner, searcher included, and never needs the copy: the study and its lock stay here."""
        return {"_metric": self._metric, "_mode": self._mode}

    def _left(self, trial_id: str, began: list[int]) -> list[int]:
        """Of the configurations that a Ray trial began with, those that have not ended."""
        return [number for number in began if (live := self._live.get(number)) and live.trial_id == trial_id]

    def _lost(self, trial_id: str, began: list[int], why: str) -> None:
        """A worker is gone: what it trained goes on with another, together at first, then each by itself."""
        left = self._left(trial_id, began)
        if not left:
            return
        self._journal.died(left, why)
        for number in left:
            self._live[number].losses += why != NODE_LOST  # which is no word on what was trained there
        losses = max(self._live[number].losses for number in left)
        if len(began) > 1:
            if losses < TRIES_TOGETHER:
                self._again.append(left)
            else:
                self.separated.append(why)
                self._again.extend([number] for number in left)
        elif losses < TRIES:
            self._again.append(left)
        else:
            self._end(self._live[left[0]], "failed", f"{why}, {losses} times in a row without a new epoch")

    def _first(self) -> _Live | str:
        """The next configuration that is not known yet, or FINISHED."""
        if self.exhausted:
            return str(Searcher.FINISHED)
        for misses in range(GIVE_UP):
            if self._full():
                return str(Searcher.FINISHED)
            if self._unknown is not None and not self._unknown:
                return self._exhaust(f"all {self._space.describe()} have been tried")
            if self._grid and not self._waiting:
                return self._exhaust("every point of the grid has been tried")
            if self._draws_ahead and not self._waiting and misses < PATIENCE:
                self._look_ahead()
            if self._waiting:
                self._study.enqueue_trial(*self._waiting.pop())
            elif misses >= PATIENCE and self._unknown:
                self._study.enqueue_trial(self._rng.choice(list(self._unknown.values())))
            live = self._start()
            if live is not None:
                return live
        return self._exhaust(f"{GIVE_UP} proposals in a row were known already or no model")

    def _like(self, first: _Live) -> list[_Live]:
        """Others that wait and can be trained together with `first`."""
        waiting = 1 + (len(self._waiting) if self._limit is None else self._limit - len(self._ledger))
        most = 1 if first.start else self._fusion.most(first.config, waiting, len(self._together))
        others: list[_Live] = []
        while len(others) + 1 < most and not self._full():
            point = self._waiting.take(first.params)
            if point is None:
                break
            self._study.enqueue_trial(point)
            if (live := self._start()) is not None:
                others.append(live)
        return others

    def _full(self) -> bool:
        return self._limit is not None and len(self._ledger) >= self._limit

    def _look_ahead(self) -> None:
        """Draw the points that a random search comes to next, as it would have drawn them one by one."""
        ahead = optuna.create_study(sampler=self._study.sampler)
        wanted = LOOK_AHEAD if self._limit is None else min(LOOK_AHEAD, self._limit - len(self._ledger))
        new: set[str] = set()
        misses = 0
        while len(new) < wanted and misses < PATIENCE:
            point = self._space.suggest(ahead.ask())
            self._waiting.add([point])
            try:
                key = self._spec.resolve(point).key()
            except SpecError:
                key = None
            fresh = key is not None and key not in new and key not in self._ledger
            misses = 0 if fresh else misses + 1
            if key is not None and fresh:
                new.add(key)

    def _start(self) -> _Live | None:
        """Ask Optuna for a trial; None when its configuration is known or no model, which ends it at once."""
        return self._take(self._study.ask())

    def _take(self, trial: optuna.Trial) -> _Live | None:
        params = self._space.suggest(trial)
        try:
            config = self._spec.resolve(params)
        except SpecError as error:
            refused = Known(trial.number, "failed", f"invalid: {error}")
            end = TrialEnd(trial.number, None, "failed", refused.reason, None, params)
            self._note_end(end)
            self._tell(trial, refused)
            self._report(end)
            return None
        key = config.key()
        known = self._ledger.find(key)
        if known is None:
            known = self._ledger.start(key, trial.number)
            live = _Live(trial, key, known, params, config, START in trial.user_attrs)
            self._live[trial.number] = live
            if self._unknown is not None:
                self._unknown.pop(key, None)
            return live
        if known.status is None:
            known.followers.append((trial, params))
        else:
            self._end_duplicate(trial, params, known)
        return None

    def _record(self, live: _Live, row: Mapping[str, Any]) -> None:
        step, value = int(row["epoch"]), float(row[self.metric])
        if step not in live.known.steps and math.isfinite(value):
            live.losses = 0
            live.known.steps[step] = live.known.value = value
            live.trial.report(value, step)

    def _settle(self, live: _Live, row: Mapping[str, Any]) -> None:
        """End a configuration the way its last row says."""
        if row["status"] == "failed":
            self._end(live, "failed", str(row["reason"]))
        elif not math.isfinite(row[self.metric]):
            self._end(live, "failed", f"diverged: {self._spec.search.objective} is {row[self.metric]}")
        else:
            self._end(live, "completed" if row["finished"] else "pruned")

    def _end(self, live: _Live, status: Ending, reason: str | None = None) -> None:
        known = live.known
        del self._live[known.number]
        known.status, known.reason = status, reason
        if status == "failed":
            known.value = None
        end = TrialEnd(known.number, live.trial_id, status, reason, known.value, live.params)
        self._note_end(end)
        self._tell(live.trial, known)
        self._report(end)
        for trial, params in known.followers:
            self._end_duplicate(trial, params, known)
        known.followers.clear()

    def _end_duplicate(self, trial: optuna.Trial, params: Params, known: Known) -> None:
        trial.set_user_attr(DUPLICATE_OF, known.number)
        if known.status == "pruned":  # its value, for Optuna, is the last that was reported
            for step, value in known.steps.items():
                trial.report(value, step)
        end = TrialEnd(trial.number, None, "duplicate", known.reason, known.value, params, known.number)
        self._note_end(end)
        self._tell(trial, known)
        self._report(end)

    def _tell(self, trial: optuna.Trial, known: Known) -> None:
        assert known.status is not None
        if known.reason:
            trial.set_user_attr(REASON, known.reason)
        value = known.value if known.status == "completed" else None
        self._study.tell(trial, value, state=_STATES[known.status])

    def _note_end(self, end: TrialEnd) -> None:
        past = self._journal.history.trials.get(end.number)
        if past is None or past.end is None:
            self._journal.ended(end)

    def _report(self, end: TrialEnd) -> None:
        if self._on_end is not None:
            self._on_end(end)

    def _exhaust(self, why: str) -> str:
        self.exhausted = why
        return str(Searcher.FINISHED)

    def _read_study(self, storage: BaseStorage) -> None:
        """What earlier runs of this search know, what goes on, and what is to be tried first."""
        past = self._journal.history.trials
        trials = self._study.get_trials(deepcopy=False)
        self._ledger.read(trials, self._key)
        if past:
            for trial in trials:  # ended, but the power went before the journal was on the disk
                if trial.state.is_finished() and (trial.number not in past or past[trial.number].end is None):
                    self._report(self._end_of(trial))
        for trial in open_trials(self._study, storage):
            reported = trials[trial.number].intermediate_values if trial.number < len(trials) else {}
            self._go_on(trial, dict(reported), past.get(trial.number))
        groups: dict[tuple[int, ...], list[int]] = {}
        for number in self._live:
            together = past[number].together if number in past else [number]
            groups.setdefault(tuple(together), []).append(number)
        self._again.extend(groups.values())
        begun = {trial.user_attrs[START] for trial in trials if START in trial.user_attrs}
        if not (self._grid and self._spec.search.start_with == "defaults"):  # a grid's order is the file's
            for index, point in enumerate(self._space.starts()):
                if index not in begun:
                    self._waiting.add_start(point, {START: index})
        if self._grid:
            grid = self._space.grid()
            self._waiting.add(p for key, p in zip(grid.keys, grid.points, strict=True) if key not in self._ledger)

    def _go_on(self, trial: optuna.Trial, reported: dict[int, float], past: Past | None) -> None:
        """Take up a trial that an earlier driver left open, as far as the journal and Optuna's values know it."""
        live = self._take(trial)
        if live is None:
            return
        live.known.steps = reported
        for _, row in past.rows if past else ():
            self._record(live, row)
        live.known.value = reported[max(reported)] if reported else None
        if past is None:
            return
        if past.end is not None:
            self._end(live, cast(Ending, past.end.status), past.end.reason)
        elif past.decided is not None:
            self._settle(live, past.decided)

    def _end_of(self, trial: FrozenTrial) -> TrialEnd:
        """How a finished trial of the study ended."""
        duplicate_of = trial.user_attrs.get(DUPLICATE_OF)
        status: Status = ENDINGS[trial.state] if duplicate_of is None else "duplicate"
        params = self._space.canonical(trial.params)
        return TrialEnd(trial.number, None, status, trial.user_attrs.get(REASON), trial.value, params, duplicate_of)

    def _key(self, trial: FrozenTrial) -> str | None:
        try:
            return self._spec.resolve(self._space.canonical(trial.params)).key()
        except SpecError:
            return None
