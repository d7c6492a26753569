"""Ray asks, Optuna proposes: a Ray Searcher over Optuna's ask and tell.

Every Optuna trial ends exactly once, and Optuna is always told how, because a trial left RUNNING would be avoided by
the sampler for ever:

* completed: COMPLETE with the objective of its best epoch;
* pruned (the scheduler stopped it): PRUNED, with every reported value;
* failed (diverged, out of memory, error, worker lost again and again): FAIL, with the reason as a user attribute;
* failed because it is too large or too slow: PRUNED, with by how much, from which samplers learn;
* duplicate (its configuration is known): told at once what the original was told, or when the original ends; Ray
  never sees it, and it does not count as a trial.

Only a search that stops before its end leaves trials RUNNING: they go on under their numbers when it is resumed.

Intermediate values are the best objective *so far*: what the trial would score if it ended there, so that a pruned
trial's value compares with a completed one's.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from xlstm_tune.errors import SpecError
from xlstm_tune.search.persistence.journal import Journal, Past
from xlstm_tune.search.sampling.duplicates import (
    DUPLICATE_OF,
    ENDINGS,
    INVALID,
    OVER_LIMIT,
    REASON,
    START,
    Ending,
    Known,
    Ledger,
    Status,
    TrialEnd,
)
from xlstm_tune.search.sampling.fusion import NO_FUSION, Fusion
from xlstm_tune.search.sampling.goals import Goals, costs_of
from xlstm_tune.search.sampling.making_up import make_up
from xlstm_tune.search.sampling.proposals import Live, Proposals, key_of
from xlstm_tune.search.sampling.space import Params, Space
from xlstm_tune.search.sampling.study import open_study, open_trials
from xlstm_tune.search.scheduling.losses import NODE_LOST
from xlstm_tune.spec import SearchSpec

TRIES = 4
"""Workers lost in a row without a new epoch, after which a configuration counts as failed."""
TRIES_TOGETHER = 2
"""The same for configurations that are trained together, which are then trained each by itself."""

_STATES: dict[Ending, TrialState] = {
    "completed": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


class OptunaSearcher(Searcher):  # type: ignore[misc]
    """Proposes the trials of one search.

    spec, space: the search and its checked space.
    folder: the search folder; the study's journal lies there unless `search.storage` names an Optuna URL.
    journal: of the search; what it holds of an earlier driver is gone on with.
    resume: open the study again: finished trials stay known, open ones are gone on with first, under their numbers.
    on_end: called once per ended Optuna trial, duplicates and refused combinations included. It must not raise: an
        exception here ends the search.
    fusion: how many configurations may share a Ray trial.
    why_lost: why Ray's trial of this id lost its worker.
    goals: what is weighed and limited; None = what the spec says, without limits of size.
    room: how many Ray trials there may be at this moment; None = as many as Ray asks for.
    none_begins: whether nothing more may begin.

    Each suggestion is `{"trials": [{"number": Optuna's trial number, "params": the point, "known": epochs that need not
    be told again}, ...]}`. Every result that a Ray trial reports must hold `rows`, one for each configuration and epoch
    that is new, with its `number`, `epoch`, `best_<objective>` (NaN when there is none), `status`, `finished` and
    `done`; no rows, but a `reason`, when all failed at once. Run it with `max_concurrent_trials` set: Ray asks a custom
    searcher for one pending trial at a time otherwise.

    Raises StorageError when the study cannot be opened, or is not the one of the journal.
    """

    def __init__(
        self,
        spec: SearchSpec,
        space: Space,
        folder: Path,
        journal: Journal,
        *,
        resume: bool = False,
        on_end: Callable[[TrialEnd], None] | None = None,
        fusion: Fusion = NO_FUSION,
        why_lost: Callable[[str], str] = lambda trial_id: "worker died",
        goals: Goals | None = None,
        room: Callable[[], int] | None = None,
        none_begins: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(metric=f"best_{spec.search.objective}", mode="min")
        self._spec, self._space, self._journal, self._on_end = spec, space, journal, on_end
        known = journal.history.trials
        self._study, storage, self._sync = open_study(spec.name, spec.search, folder, resume, known, may_lack=True)
        points = {number: past.params for number, past in known.items()}
        self.made_up = make_up(self._study, storage, points, space, spec.search)
        """Trials that the study's file had lost."""
        self._goals = goals or Goals(spec.search)
        self._ledger = Ledger()
        self._why_lost = why_lost
        self._room, self._none_begins = room, none_begins
        self._live: dict[int, Live] = {}
        self._together: dict[str, list[int]] = {}
        """Ray's trials, and the configurations that each began with."""
        self._again: deque[list[int]] = deque()
        """Configurations that have begun and need another worker, in the groups that they are trained in."""
        self._closed = False
        self.separated: list[str] = []
        """Why configurations that were trained together were begun again one by one, for each time that happened."""
        self._read_study(storage)
        self._proposals = Proposals(spec, space, self._study, self._ledger, self._take, fusion)

    @property
    def study(self) -> optuna.Study:
        """The Optuna study, for reports."""
        return self._study

    @property
    def exhausted(self) -> str | None:
        """Why there is nothing new to try although the number of trials is not reached; None until then."""
        return self._proposals.exhausted

    @property
    def started(self) -> int:
        """Distinct configurations started, those of earlier runs included; what `search.trials` limits."""
        return len(self._ledger)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """What goes on, or the next configurations; FINISHED, or None while some may need another worker, or room."""
        if self._none_begins():  # while nothing runs Ray asks again and again, and looks at nothing else
            return str(Searcher.FINISHED)
        if self._room is not None and len(self._together) >= self._room():
            return None
        if self._again:
            chosen = [self._live[number] for number in self._again.popleft()]
        else:
            first = self._proposals.first()
            if first is None:
                return None if self._together else str(Searcher.FINISHED)
            chosen = [first, *self._proposals.like(first, running=len(self._together))]
        for one in chosen:
            one.trial_id = trial_id
        numbers = [one.known.number for one in chosen]
        self._together[trial_id] = numbers
        self._sync()  # what the journal knows, the study knows
        self._journal.began(numbers, [one.params for one in chosen])
        return {"trials": [{"number": one.known.number, "params": one.params, "known": one.epoch} for one in chosen]}

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
        if result is None and not error and self._none_begins():
            return  # given up before it had a place: it stays open
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
        elif left and not self._closed and not self._none_begins():
            self._lost(trial_id, began, "stopped before it ended")

    def close(self, reason: str) -> None:
        """The search stops: report every trial still open as pruned when it has values, else as failed.

        reason: why, such as `time budget`. In the study they stay open, and a resume goes on with them.
        Ray says nothing to a searcher when a time budget or an interrupt ends a run, so the driver must call this.
        """
        self._closed = True
        self._journal.closed(reason if self._live else "finished")
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

    def _take(self, trial: optuna.Trial, under_way: bool = False) -> Live | None:
        """Begin a trial; None when its configuration is known, no model or too large, which ends it at once.

        under_way: it was begun before, and so not too large.
        """
        params = self._space.suggest(trial)
        try:
            config = self._spec.resolve(params)
        except SpecError as error:
            self._refuse(trial, params, Known(trial.number, "failed", f"{INVALID}{error}"))
            return None
        key = config.key()
        known = self._ledger.find(key)
        if known is None:
            sizes = self._goals.sizes(config)
            excess = self._goals.excess(sizes)
            if not under_way and (reason := self._goals.too_large(sizes)):
                self._ledger.refuse(key)
                self._refuse(trial, params, Known(trial.number, "failed", reason, excess=excess))
                return None
            known = self._ledger.start(key, trial.number)
            known.excess = excess
            live = Live(trial, known, params, config, START in trial.user_attrs)
            self._live[trial.number] = live
            return live
        if known.status is None:
            known.followers.append((trial, params))
        else:
            self._end_duplicate(trial, params, known)
        return None

    def _refuse(self, trial: optuna.Trial, params: Params, refused: Known) -> None:
        """End a trial that is never begun."""
        end = TrialEnd(trial.number, None, "failed", refused.reason, None, params)
        self._note_end(end)
        self._tell(trial, refused)
        self._report(end)

    def _record(self, live: Live, row: Mapping[str, Any]) -> None:
        step, value = int(row["epoch"]), float(row[self.metric])
        if row["status"] != "failed":
            live.epoch = max(live.epoch, step)
        live.known.excess |= self._goals.excess(row)
        if step not in live.known.steps and math.isfinite(value):
            live.losses = 0
            live.known.steps[step] = live.known.value = value
            live.known.costs = costs_of(row, self._goals.costs)
            if not self._goals.costs:  # Optuna takes none from a study of several objectives
                live.trial.report(value, step)

    def _settle(self, live: Live, row: Mapping[str, Any]) -> None:
        """End a configuration the way its last row says."""
        if row["status"] == "failed":
            self._end(live, "failed", str(row["reason"]))
        elif not math.isfinite(row[self.metric]):
            self._end(live, "failed", f"diverged: {self._spec.search.objective} is {row[self.metric]}")
        else:
            self._end(live, "completed" if row["finished"] else "pruned")

    def _end(self, live: Live, status: Ending, reason: str | None = None) -> None:
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
        if known.status == "pruned" and not known.costs:  # its value, for Optuna, is the last that was reported
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
        for figure, excess in known.excess.items():
            trial.set_constraint(figure, excess)
        # Samplers learn which side of a limit is which from pruned trials, and nothing from failed ones.
        state = TrialState.PRUNED if (known.reason or "").startswith(OVER_LIMIT) else _STATES[known.status]
        values = [known.value, *known.costs] if known.status == "completed" else None
        self._study.tell(trial, values, state=state)

    def _note_end(self, end: TrialEnd) -> None:
        past = self._journal.history.trials.get(end.number)
        if past is None or past.end is None:
            if end.trial_id is None:  # no worker was given it, before which the study would have been synced
                self._sync()  # a number that only the journal knew would be given out again
            self._journal.ended(end)

    def _report(self, end: TrialEnd) -> None:
        if self._on_end is not None:
            self._on_end(end)

    def _read_study(self, storage: BaseStorage) -> None:
        """What earlier runs of this search know, what goes on, and what is to be tried first."""
        past = self._journal.history.trials
        trials = self._study.get_trials(deepcopy=False)
        self._ledger.read(trials, lambda trial: key_of(self._spec, self._space.canonical(trial.params)))
        if past:
            for trial in trials:  # ended, but the power went before the journal was on the disk
                if trial.state.is_finished() and (trial.number not in past or past[trial.number].end is None):
                    self._report(self._end_of(trial))
        # One that the journal does not know may repeat one that it knows, whatever their numbers.
        for trial in sorted(open_trials(self._study, storage), key=lambda trial: trial.number not in past):
            reported = trials[trial.number].intermediate_values if trial.number < len(trials) else {}
            self._go_on(trial, dict(reported), past.get(trial.number))
        groups: dict[tuple[int, ...], list[int]] = {}
        for number in self._live:
            together = past[number].together if number in past else [number]
            groups.setdefault(tuple(together), []).append(number)
        self._again.extend(groups.values())

    def _go_on(self, trial: optuna.Trial, reported: dict[int, float], past: Past | None) -> None:
        """Take up a trial that an earlier driver left open, as far as the journal and Optuna's values know it."""
        live = self._take(trial, under_way=past is not None and bool(past.together))
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
        value = trial.values[0] if trial.values else None
        reason = trial.user_attrs.get(REASON)
        if status == "pruned" and (reason or "").startswith(OVER_LIMIT):
            status = "failed"
        return TrialEnd(trial.number, None, status, reason, value, params, duplicate_of)
