"""Which configuration comes next: start points, a grid's points, what the sampler proposes; none that is known."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import optuna

from xlstm_tune.errors import SpecError
from xlstm_tune.search.sampling.duplicates import DRAW, START, Known, Ledger
from xlstm_tune.search.sampling.fusion import LOOK_AHEAD, Fusion, Waiting, fuses
from xlstm_tune.search.sampling.samplers import NumberedSampler
from xlstm_tune.search.sampling.space import Params, Space
from xlstm_tune.spec import DEFAULT_TRIALS, SearchSpec
from xlstm_tune.training.config import TrialConfig

PATIENCE = 10
"""Known, impossible or refused configurations in a row after which a sampler that learns is not asked, but chance."""
GIVE_UP = 100
"""Known, impossible or refused configurations in a row after which the space counts as exhausted."""


@dataclass
class Live:
    """A configuration that has not ended."""

    trial: optuna.Trial
    known: Known
    params: Params
    config: TrialConfig
    start: bool
    """It began as a start point."""
    trial_id: str | None = None
    """Ray's; None while no worker has it."""
    epoch: int = 0
    """The last one that the search's journal holds."""
    losses: int = 0
    """Workers lost in a row without an epoch that was new."""


def key_of(spec: SearchSpec, params: Params) -> str | None:
    """A point's configuration by its key; None for what is no model."""
    try:
        return spec.resolve(params).key()
    except SpecError:
        return None


class Proposals:
    """What a search tries next.

    study, ledger: what is known; both are the searcher's.
    take: begins a trial of the study; None when its configuration is known or no model, which ends it at once.
    """

    def __init__(
        self,
        spec: SearchSpec,
        space: Space,
        study: optuna.Study,
        ledger: Ledger,
        take: Callable[[optuna.Trial], Live | None],
        fusion: Fusion,
    ) -> None:
        self._spec, self._space, self._study, self._ledger, self._take = spec, space, study, ledger, take
        self._grid = spec.search.algorithm == "grid"
        self._limit = spec.search.trials or (None if self._grid else DEFAULT_TRIALS)
        trials = study.get_trials(deepcopy=False)
        self._fusion = fusion
        self._draws_ahead = fusion.width > 1 and fuses(spec) and spec.search.algorithm == "random"
        # The numbers that trials have, or would have had if each had been drawn when its turn came.
        starts = space.starts()
        drawn = {trial.user_attrs.get(DRAW, trial.number) for trial in trials} | set(range(len(starts)))
        self._draws = itertools.filterfalse(drawn.__contains__, itertools.count())
        points = space.points
        self._unknown = None if points is None else {k: p for k, p in points.items() if k not in ledger}
        """Points of a finite space that are not known yet."""
        self._waiting = Waiting()
        self.exhausted: str | None = None
        """Why there is nothing new to try although the number of trials is not reached; None until then."""
        begun = {trial.user_attrs[START] for trial in trials if START in trial.user_attrs}
        for index, point in enumerate(starts):
            if index not in begun:
                self._waiting.add_start(point, {START: index})
        self._later: Iterator[Params] = iter(())
        """Points of a grid behind those that wait."""
        if self._grid:
            grid = space.grid()
            self._later = (p for key, p in zip(grid.keys, grid.points, strict=True) if key not in ledger)
            self._line_up()

    def first(self) -> Live | None:
        """The next configuration that is not known yet, begun; None when there is none."""
        if self.exhausted:
            return None
        misses = 0
        while misses < GIVE_UP:
            if self._full():
                return None
            if self._unknown is not None and not self._unknown:
                self.exhausted = f"all {self._space.describe()} have been tried"
                return None
            if self._grid and not self._waiting:
                self._line_up()  # some of those before were refused
                if not self._waiting:
                    self.exhausted = "every point of the grid has been tried"
                    return None
            if self._draws_ahead and not self._waiting and misses < PATIENCE:
                self._look_ahead()
            listed = self._grid and bool(self._waiting)  # there are only so many of these
            if self._waiting:
                self._study.enqueue_trial(*self._waiting.pop())
            elif misses >= PATIENCE and (point := self._at_random(misses)) is not None:
                self._study.enqueue_trial(point)
            if (live := self._ask()) is not None:
                return live
            misses += not listed
        self.exhausted = f"{GIVE_UP} proposals in a row were known already, too large or no model"
        return None

    def like(self, first: Live, running: int) -> list[Live]:
        """Others that wait and can be trained together with `first`, begun. running: Ray trials that run."""
        waiting = 1 + (len(self._waiting) if self._limit is None else self._limit - len(self._ledger))
        most = 1 if first.start else self._fusion.most(first.config, waiting, running)
        others: list[Live] = []
        while len(others) + 1 < most and not self._full():
            point = self._waiting.take(first.params)
            if point is None:
                break
            self._study.enqueue_trial(*point)
            if (live := self._ask()) is not None:
                others.append(live)
        return others

    def _ask(self) -> Live | None:
        trial = self._study.ask()
        live = self._take(trial)
        if self._unknown:
            key = live.config.key() if live else key_of(self._spec, self._space.canonical(trial.params))
            self._unknown.pop(key or "", None)
        return live

    def _line_up(self) -> None:
        """Let as many more points of a grid wait, in its order, as may be begun.

        Those of one shape leave together, out of turn: with others behind them, it would be these that are tried.
        """
        room = None if self._limit is None else max(0, self._limit - len(self._ledger) - len(self._waiting))
        self._waiting.add(itertools.islice(self._later, room))

    def _at_random(self, misses: int) -> Params | None:
        """A point by chance, of a finite space an unknown one; None where the sampler draws by chance itself."""
        rng = random.Random(f"{self._spec.search.seed} {len(self._ledger)} {misses}")  # whatever was interrupted
        if self._unknown:
            return rng.choice(list(self._unknown.values()))
        return None if self._spec.search.algorithm == "random" else self._space.draw(rng)

    def _full(self) -> bool:
        return self._limit is not None and len(self._ledger) >= self._limit

    def _look_ahead(self) -> None:
        """Draw the points that a random search comes to next, as it would have drawn them one by one."""
        ahead = optuna.create_study()
        wanted = LOOK_AHEAD if self._limit is None else min(LOOK_AHEAD, self._limit - len(self._ledger))
        new: set[str] = set()
        misses = 0
        while len(new) < wanted and misses < PATIENCE:
            number = next(self._draws)
            ahead.sampler = NumberedSampler(self._spec.search, number)
            point = self._space.suggest(ahead.ask())
            self._waiting.add([point], {DRAW: number})
            key = key_of(self._spec, point)
            fresh = key is not None and key not in new and key not in self._ledger
            misses = 0 if fresh else misses + 1
            if key is not None and fresh:
                new.add(key)
