"""What a sampler sees of a long study: its best trials, and a sample of the others, so that a suggestion's cost ends.

TPE models the best trials (25 with one objective) and all others by one kernel for each, GP inverts a matrix of all. Up
to `most` trials a sampler sees every one of them. Beyond, the best stay, in the order in which TPE ranks them: with one
objective its better half is the same as without thinning. Of the others those stay whose numbers come first in the
order of the golden ratio, which takes evenly from all times of the search, always takes the same, and drops trials
without ever taking one back. Running trials are all seen.
"""

from __future__ import annotations

import copy
import math
from bisect import insort
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from xlstm_tune.search.sampling.study_memory import Forwarding, StudyMemory

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Thinning:
    """How much of a study a sampler sees."""

    most: int
    """Ended trials that it sees."""
    best: int
    """Of these, the best."""
    states: tuple[TrialState, ...]
    """That it learns from."""
    needs_values: bool = False
    """It learns from trials with a value alone: those over a limit, which have none, are shown with the worst."""


TPE = Thinning(most=1000, best=100, states=(TrialState.COMPLETE, TrialState.PRUNED))
GP = Thinning(most=300, best=50, states=(TrialState.COMPLETE,), needs_values=True)


class ThinnedStudy(Forwarding):
    """A study's storage as its sampler sees it."""

    def __init__(self, memory: StudyMemory, thinning: Thinning, objectives: int) -> None:
        super().__init__(memory)
        self._memory, self._thinning = memory, thinning
        self._read = 0
        """How many of the ended trials have been looked at."""
        self._count = 0
        """How many of these the sampler learns from."""
        self._best = _Front(thinning.best) if objectives > 1 else _Best(thinning.best)
        self._sample: list[tuple[float, int, FrozenTrial]] = []
        """The first `most` in the order of the golden ratio."""
        self._seen: list[FrozenTrial] = []
        """By number."""
        self.asked: int | None = None
        """The trial that is proposed, which is not shown: one that a killed driver left half drawn would be learnt
        from as if it ran."""

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        self._look()
        seen = _all_with_values(self._seen) if self._thinning.needs_values else self._seen
        ended = [trial for trial in seen if states is None or trial.state in states]
        others = [trial for trial in self._memory.still_open(states) if trial.number != self.asked]
        trials = sorted([*ended, *others], key=lambda trial: trial.number)
        return copy.deepcopy(trials) if deepcopy else trials

    def _counts(self, trial: FrozenTrial) -> bool:
        return trial.state in self._thinning.states or (self._thinning.needs_values and _excess(trial) > 0)

    def _look(self) -> None:
        """Take in what has ended since."""
        new = [trial for trial in self._memory.ended[self._read :] if self._counts(trial)]
        self._read = len(self._memory.ended)
        if not new:
            return
        self._count += len(new)
        most, best = self._thinning.most, self._thinning.best
        for trial in new:
            self._best.add(trial)
            insort(self._sample, ((trial.number * _GOLDEN) % 1.0, trial.number, trial))
        del self._sample[most:]
        seen = {trial.number: trial for trial in self._best.trials()} if self._count > most else {}
        others = [trial for _, number, trial in self._sample if number not in seen]
        seen |= {trial.number: trial for trial in (others[: most - best] if self._count > most else others)}
        self._seen = [seen[number] for number in sorted(seen)]


class _Best:
    """The best trials by one objective, ranked as TPE ranks them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._ranked: list[tuple[tuple[float, float, float], int, FrozenTrial]] = []

    def add(self, trial: FrozenTrial) -> None:
        """Take a trial in, and drop the worst where there are too many."""
        insort(self._ranked, (_rank(trial), trial.number, trial))
        del self._ranked[self._most :]

    def trials(self) -> list[FrozenTrial]:
        """The best first."""
        return [trial for _, _, trial in self._ranked]


class _Front(_Best):
    """The best trials by several objectives: by Pareto fronts, and evenly from the last one that has no room."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._pool: list[FrozenTrial] = []

    def add(self, trial: FrozenTrial) -> None:
        if _rank(trial)[0] > 0:
            super().add(trial)
            return
        self._pool.append(trial)
        if len(self._pool) >= 2 * self._most:
            self._pool = self._fronts()

    def trials(self) -> list[FrozenTrial]:
        pool = self._fronts()
        return [*pool, *super().trials()[: self._most - len(pool)]]

    def _fronts(self) -> list[FrozenTrial]:
        if len(self._pool) <= self._most:
            return list(self._pool)
        values = np.array([trial.values for trial in self._pool])  # [trials, objectives], all minimised
        left = np.arange(len(values))
        kept: list[int] = []
        while len(kept) < self._most:
            these = values[left]
            no_worse = (these[:, None] <= these[None]).all(2)
            dominated = (no_worse & (these[:, None] < these[None]).any(2)).any(0)
            front = left[~dominated]
            room = self._most - len(kept)
            if len(front) > room:  # both ends, and evenly between them
                front = front[np.argsort(values[front, 0], kind="stable")]
                front = front[np.unique(np.linspace(0, len(front) - 1, room).round().astype(int))]
                kept.extend(front.tolist())
                break
            kept.extend(front.tolist())
            left = left[dominated]
        return [self._pool[index] for index in kept]


def _rank(trial: FrozenTrial) -> tuple[float, float, float]:
    """Completed trials by their value, then pruned ones by how far they came, then those over a limit by how much."""
    if (excess := _excess(trial)) > 0:
        return 2.0, excess, 0.0
    if trial.state == TrialState.COMPLETE:
        return 0.0, float(trial.values[0]), 0.0
    if not trial.intermediate_values:
        return 1.0, 1.0, 0.0
    step, value = max(trial.intermediate_values.items())
    return 1.0, -float(step), math.inf if math.isnan(value) else float(value)


def _excess(trial: FrozenTrial) -> float:
    """By how much it passed its limits, as a share of them."""
    return float(sum(value for value in trial.constraints.values() if value > 0))


def _all_with_values(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """With the worst values of all for those over a limit, or without these where none has any.

    A figure that one over a limit lacks, such as how long the forecasts of what was never begun take, is at its limit:
    Optuna goes by their places, and wants the same ones of all.
    """
    valued = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if len(valued) in (0, len(trials)):
        return valued
    worst = [max(column) for column in zip(*(trial.values for trial in valued), strict=True)]
    figures = sorted({name for trial in trials for name in trial.constraints})
    return [_shown(trial, figures, worst) for trial in trials]


def _shown(trial: FrozenTrial, figures: Sequence[str], worst: Sequence[float]) -> FrozenTrial:
    """The trial with a value, and all figures in their order."""
    shown = create_trial(
        state=TrialState.COMPLETE,
        values=trial.values if trial.state == TrialState.COMPLETE else list(worst),
        params=trial.params,
        distributions=trial.distributions,
        constraints={name: trial.constraints.get(name, 0.0) for name in figures},
    )
    shown.number = trial.number
    return shown


class ThinnedSampler(BaseSampler):  # type: ignore[misc]
    """A sampler that sees the study thinned. name: of the study."""

    def __init__(self, inner: BaseSampler, view: ThinnedStudy, name: str) -> None:
        self._inner, self._view, self._name = inner, view, name
        self._study = self._open()

    def _open(self) -> optuna.Study:
        return optuna.load_study(study_name=self._name, storage=self._view, sampler=self._inner)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Optuna keeps what it has read of a study for the length of a trial, so each trial has a new one."""
        self._study = self._open()
        self._view.asked = trial.number
        self._inner.before_trial(self._study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._inner.infer_relative_search_space(self._study, trial))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return dict(self._inner.sample_relative(self._study, trial, search_space))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._inner.sample_independent(self._study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._inner.after_trial(study, trial, state, values)
