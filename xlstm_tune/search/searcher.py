"""Ray asks, Optuna proposes: a Ray Searcher over Optuna's ask and tell.

Every Optuna trial ends exactly once, and Optuna is always told how, because a trial left RUNNING would be avoided by
the sampler for ever:

* completed: COMPLETE with the objective of its best epoch;
* pruned (the scheduler stopped it): PRUNED, with every reported value;
* failed (diverged, out of memory, error, worker died): FAIL, with the reason as a user attribute;
* duplicate (its configuration is known): told at once what the original was told, or when the original ends; Ray
  never sees it, and it does not count as a trial.

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
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from xlstm_tune.errors import SpecError
from xlstm_tune.search.duplicates import CUT, DUPLICATE_OF, REASON, START, Ending, Known, Ledger, TrialEnd
from xlstm_tune.search.space import Params, Space
from xlstm_tune.search.study import open_study
from xlstm_tune.spec import SearchSpec

DEFAULT_TRIALS = 32
PATIENCE = 10
"""Known configurations in a row after which a finite space is asked at random for an unknown one."""
GIVE_UP = 100
"""Known or impossible configurations in a row after which the space counts as exhausted."""

_STATES: dict[Ending, TrialState] = {
    "completed": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


@dataclass
class _Live:
    """A trial that Ray runs."""

    trial: optuna.Trial
    key: str
    known: Known
    params: Params


class OptunaSearcher(Searcher):  # type: ignore[misc]
    """Proposes the trials of one search.

    spec, space: the search and its checked space.
    folder: the search folder; the study's journal lies there unless `search.storage` names an Optuna URL.
    max_trials: distinct configurations to start; None = `search.trials`, and without that every point of a grid, 32
        otherwise. Duplicates do not count.
    resume: open the study again: finished trials stay known, those that a dead driver left open are told FAIL and
        their configurations tried first.
    on_end: called once per ended Optuna trial, duplicates and refused combinations included. It must not raise: an
        exception here ends the search.

    Each suggestion is `{"number": Optuna's trial number, "params": the point}`. Every result that a trial reports must
    hold `epoch`, `best_<objective>` (NaN when there is none), `status` and `finished`. Run it with
    `max_concurrent_trials` set: Ray asks a custom searcher for one pending trial at a time otherwise.

    Raises StorageError when the study cannot be opened.
    """

    def __init__(
        self,
        spec: SearchSpec,
        space: Space,
        folder: Path,
        *,
        max_trials: int | None = None,
        resume: bool = False,
        on_end: Callable[[TrialEnd], None] | None = None,
    ) -> None:
        super().__init__(metric=f"best_{spec.search.objective}", mode="min")
        self._spec, self._space, self._on_end = spec, space, on_end
        self._study, self._sync = open_study(spec.name, spec.search, folder, resume)
        self._grid = spec.search.algorithm == "grid"
        self._limit = max_trials or spec.search.trials or (None if self._grid else DEFAULT_TRIALS)
        self._rng = random.Random(spec.search.seed)
        self._ledger = Ledger()
        self._live: dict[str, _Live] = {}
        self._numbers: dict[str, int] = {}
        self._queue: deque[tuple[Params, dict[str, Any]]] = deque()
        self.exhausted: str | None = None
        """Why there is nothing new to try although the number of trials is not reached; None until then."""
        self._read_study()
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

    def number_of(self, trial_id: str) -> int:
        """The Optuna number of a trial that Ray knows by `trial_id`."""
        return self._numbers[trial_id]

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next configuration that is not known yet, or FINISHED."""
        for misses in range(GIVE_UP):
            if self._limit is not None and len(self._ledger) >= self._limit:
                return str(Searcher.FINISHED)
            if self._unknown is not None and not self._unknown:
                return self._exhaust(f"all {self._space.describe()} have been tried")
            if self._grid and not self._queue:
                return self._exhaust("every point of the grid has been tried")
            trial = self._ask(misses)
            params = self._space.suggest(trial)
            try:
                key = self._spec.resolve(params).key()
            except SpecError as error:
                refused = Known(trial.number, "failed", f"invalid: {error}")
                self._tell(trial, refused)
                self._report(TrialEnd(trial.number, None, "failed", refused.reason, None, params))
                continue
            known = self._ledger.find(key)
            if known is None:
                self._live[trial_id] = _Live(trial, key, self._ledger.start(key, trial.number), params)
                self._numbers[trial_id] = trial.number
                if self._unknown is not None:
                    self._unknown.pop(key, None)
                return {"number": trial.number, "params": params}
            if known.status is None:
                known.followers.append((trial, params))
            else:
                self._end_duplicate(trial, params, known)
        return self._exhaust(f"{GIVE_UP} proposals in a row were known already or no model")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass an epoch's value on to Optuna."""
        if trial_id in self._live:
            self._record(self._live[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """End the trial the way it ended; a trial that `close` has ended stays as it is."""
        live = self._live.get(trial_id)
        if live is None:
            return
        if error:
            # The trial itself turns its exceptions into results; only a lost worker process comes this way.
            self._end(trial_id, "failed", "worker died")
            return
        if result is None:
            self._cut(trial_id, "stopped before it ended")
            return
        # Ray does not announce the result that ends a trial through on_trial_result.
        self._record(live, result)
        if result["status"] == "failed":
            self._end(trial_id, "failed", str(result["reason"]))
        elif not math.isfinite(result[self.metric]):
            self._end(trial_id, "failed", f"diverged: {self._spec.search.objective} is {result[self.metric]}")
        elif result["finished"]:
            self._end(trial_id, "completed")
        else:
            self._end(trial_id, "pruned")

    def close(self, reason: str) -> None:
        """Tell Optuna about every trial still open: PRUNED when it has reported values, else FAIL.

        reason: why the search stops, such as `time budget`. These configurations may run again after a resume.
        Ray says nothing to a searcher when a time budget or an interrupt ends a run, so the driver must call this.
        """
        for trial_id in list(self._live):
            self._cut(trial_id, reason)

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

    def _ask(self, misses: int) -> optuna.Trial:
        if self._queue:
            self._study.enqueue_trial(*self._queue.popleft())
        elif misses >= PATIENCE and self._unknown:
            self._study.enqueue_trial(self._rng.choice(list(self._unknown.values())))
        return self._study.ask()

    def _record(self, live: _Live, result: Mapping[str, Any]) -> None:
        step, value = int(result["epoch"]), float(result[self.metric])
        # A restarted worker repeats the epochs since its last checkpoint.
        if step not in live.known.steps and math.isfinite(value):
            live.known.steps[step] = live.known.value = value
            live.trial.report(value, step)

    def _cut(self, trial_id: str, reason: str) -> None:
        live = self._live[trial_id]
        live.trial.set_user_attr(CUT, True)
        self._end(trial_id, "pruned" if live.known.steps else "failed", reason)
        self._ledger.forget(live.key)

    def _end(self, trial_id: str, status: Ending, reason: str | None = None) -> None:
        live = self._live.pop(trial_id)
        known = live.known
        known.status, known.reason = status, reason
        if status == "failed":
            known.value = None
        self._tell(live.trial, known)
        self._sync()
        self._report(TrialEnd(known.number, trial_id, status, reason, known.value, live.params))
        for trial, params in known.followers:
            self._end_duplicate(trial, params, known)
        known.followers.clear()

    def _end_duplicate(self, trial: optuna.Trial, params: Params, known: Known) -> None:
        trial.set_user_attr(DUPLICATE_OF, known.number)
        if known.status == "pruned":  # its value, for Optuna, is the last that was reported
            for step, value in known.steps.items():
                trial.report(value, step)
        self._tell(trial, known)
        self._report(TrialEnd(trial.number, None, "duplicate", known.reason, known.value, params, known.number))

    def _tell(self, trial: optuna.Trial, known: Known) -> None:
        assert known.status is not None
        if known.reason:
            trial.set_user_attr(REASON, known.reason)
        value = known.value if known.status == "completed" else None
        self._study.tell(trial, value, state=_STATES[known.status])

    def _report(self, end: TrialEnd) -> None:
        if self._on_end is not None:
            self._on_end(end)

    def _exhaust(self, why: str) -> str:
        self.exhausted = why
        return str(Searcher.FINISHED)

    def _read_study(self) -> None:
        """What earlier runs of this search know, and what is to be tried first."""
        trials = self._study.get_trials(deepcopy=False)
        again = dict(self._ledger.read(trials, self._key))
        self._queue.extend((self._space.canonical(trial.params), {}) for trial in again.values())
        begun = {trial.user_attrs[START] for trial in trials if START in trial.user_attrs and trial.params}
        if not (self._grid and self._spec.search.start_with == "defaults"):  # a grid's order is the file's
            for index, point in enumerate(self._space.starts()):
                if index not in begun:
                    self._queue.append((point, {START: index}))
        if self._grid:
            grid = self._space.grid()
            done = {*again, *self._ledger}
            left = (point for key, point in zip(grid.keys, grid.points, strict=True) if key not in done)
            self._queue.extend((point, {}) for point in left)

    def _key(self, trial: FrozenTrial) -> str | None:
        try:
            return self._spec.resolve(self._space.canonical(trial.params)).key()
        except SpecError:
            return None
