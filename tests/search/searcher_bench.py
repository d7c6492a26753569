"""A searcher over a real Optuna study, driven by hand, and what must hold when it has ended."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from xlstm_tune.data.windows import Prepared
from xlstm_tune.search.persistence.journal import JOURNAL, Journal, read_journal
from xlstm_tune.search.sampling.duplicates import DUPLICATE_OF, REASON, TrialEnd
from xlstm_tune.search.sampling.goals import Goals
from xlstm_tune.search.sampling.searcher import OptunaSearcher
from xlstm_tune.search.sampling.space import Params, Space
from xlstm_tune.spec import SearchSpec

EPOCHS = 4
METRIC = "best_val_rmse"
SMALL = {"model.hidden_size": {"choice": [32, 64, 128]}, "model.dropout": {"choice": [0.0, 0.1, 0.2, 0.3]}}
MIXED = {
    "model.family": {"choice": ["lstm", "xlstm"]},
    "model.pattern": {"choice": ["s", "ms"], "when": {"model.family": "xlstm"}},
    "model.dropout": {"float": [0.0, 0.3], "step": 0.1},
    "training.learning_rate": {"log_float": [1e-4, 1e-2]},
}
STATES = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


def make_spec(space: dict[str, Any], **search: Any) -> SearchSpec:
    data = {"source": "x.csv", "target": "y", "lookback": 10}
    search = {"scheduler": "none", "start_with": "none", "seed": 3} | search
    return SearchSpec.parse({"name": "t", "data": data, "space": space, "search": search})


def epoch_row(number: int, **figures: Any) -> dict[str, Any]:
    """What the driver takes of an epoch; figures: laid over it."""
    names = ("rmse", "mae", "mse_standardised", "mae_standardised")
    return {
        **dict.fromkeys(("train_loss", "learning_rate", "epoch_seconds", "sequences_per_s"), 1.0),
        **{f"{best}val_{name}": 1.0 for name in names for best in ("", "best_")},
        **{"number": number, "epoch": 1, "best_epoch": 1, "micro_batch": None, "status": "completed", "finished": True},
        **figures,
    }


class Bench:
    """A searcher driven by hand, as Ray drives it, with the journal's lines written as the referee writes them."""

    def __init__(
        self,
        spec: SearchSpec,
        folder: Path,
        resume: bool = False,
        space: Space | None = None,
        data: Prepared | None = None,
        room: Callable[[], int] | None = None,
    ) -> None:
        self.spec, self.folder = spec, folder
        self.ends: list[TrialEnd] = []
        self.journal = Journal(folder)
        self.searcher = OptunaSearcher(
            spec,
            space or Space.from_spec(spec),
            folder,
            self.journal,
            resume=resume,
            on_end=self.ends.append,
            goals=Goals(spec.search, data),
            room=room,
        )
        self.started: dict[str, Params] = {}
        self.numbers: dict[str, int] = {}
        self.known: dict[str, int] = {}
        """Epochs of which the searcher said that it knows them."""
        self._next = 0

    def ask(self) -> str | None:
        """Start a trial; None when the searcher has finished, or has nothing for now."""
        trial_id = f"t{self._next}"
        self._next += 1
        suggestion = self.searcher.suggest(trial_id)
        if suggestion is None or suggestion == Searcher.FINISHED:
            return None
        assert isinstance(suggestion, dict)
        (one,) = suggestion["trials"]
        self.started[trial_id], self.numbers[trial_id] = one["params"], one["number"]
        self.known[trial_id] = one["known"]
        return trial_id

    def epoch(self, trial_id: str, epoch: int, best: float) -> None:
        self.searcher.on_trial_result(trial_id, self.result(trial_id, epoch, best, False))

    def end(self, trial_id: str, epoch: int, best: float, **changes: Any) -> None:
        """The trial's last epoch; without `changes` it is the scheduler that ends it."""
        self.searcher.on_trial_complete(trial_id, self.result(trial_id, epoch, best, True, **changes))

    def result(self, trial_id: str, epoch: int, best: float, done: bool, **changes: Any) -> dict[str, Any]:
        told = row(epoch, best) | {"number": self.numbers[trial_id], "done": done and "status" in changes} | changes
        self.journal.epoch(told, stop=done and not told["done"])
        return {"rows": [told | {"done": done}]}

    def run(self, outcome: Callable[[Params], str], concurrent: int = 3) -> None:
        """Run to the end, `concurrent` trials side by side, an epoch of each in turn."""
        running: dict[str, int] = {}
        while True:
            while len(running) < concurrent and (trial_id := self.ask()):
                running[trial_id] = self.known[trial_id]
            if not running:
                return
            for trial_id in list(running):
                running[trial_id] += 1
                if self.step(trial_id, running[trial_id], outcome(self.started[trial_id])):
                    del running[trial_id]

    def step(self, trial_id: str, epoch: int, outcome: str) -> bool:
        """One epoch of a trial that ends as `outcome`; true when it has ended."""
        best = score(self.started[trial_id]) + 1 / epoch
        if epoch == 2 and outcome == "diverged":
            self.end(trial_id, epoch, math.nan, status="failed", reason="diverged: loss is nan")
        elif epoch == 2 and outcome == "nan":
            self.end(trial_id, epoch, math.nan, status="completed", finished=True)
        elif epoch == 2 and outcome == "died":
            self.searcher.on_trial_complete(trial_id, error=True)
        elif epoch == 3 and outcome == "pruned":
            self.end(trial_id, epoch, best)
        elif epoch == EPOCHS:
            self.end(trial_id, epoch, best, status="completed", finished=True)
        else:
            self.epoch(trial_id, epoch, best)
            return False
        return True

    def points(self) -> list[Params]:
        """What was started, in order; what another worker went on with stands here once."""
        points: dict[int, Params] = {}
        for trial_id, params in self.started.items():
            assert points.setdefault(self.numbers[trial_id], params) == params
        return list(points.values())

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        trials: list[optuna.trial.FrozenTrial] = self.searcher.study.get_trials(deepcopy=False)
        return trials


def row(epoch: int, best: float) -> dict[str, Any]:
    return {"epoch": epoch, "val_rmse": best + 0.5, METRIC: best, "status": "running", "finished": False}


def score(params: Params) -> float:
    """A fixed number in [0, 1) for each point."""
    return sum(map(ord, json.dumps(params, sort_keys=True))) % 97 / 97


def fate(params: Params) -> str:
    """Every kind of end, decided by the point alone."""
    fates = ["completed", "completed", "pruned", "diverged", "nan", "died"]
    return fates[sum(map(ord, json.dumps(params, sort_keys=True))) % len(fates)]


def check_all_told(bench: Bench) -> None:
    """What must hold after any search: nothing open, one end per trial, ends and study agree, no experiment twice."""
    trials = {trial.number: trial for trial in bench.trials()}
    assert all(trial.state.is_finished() for trial in trials.values())
    assert sorted(end.number for end in bench.ends) == sorted(trials)
    assert {number: past.end for number, past in read_journal(bench.folder).trials.items()} == {
        end.number: end for end in bench.ends
    }
    assert ended_lines(bench.folder) == sorted(trials)
    by_number = {end.number: end for end in bench.ends}
    for end in bench.ends:
        trial = trials[end.number]
        if end.status == "duplicate":
            original = by_number[end.duplicate_of or 0]
            assert end.trial_id is None
            assert original.status != "duplicate"
            assert trial.state == STATES[original.status]
            assert (end.value, end.reason) == (original.value, original.reason)
            assert trial.value == original.value
            if original.status == "pruned":
                assert trial.intermediate_values == trials[original.number].intermediate_values
            assert trial.user_attrs[DUPLICATE_OF] == original.number
            assert bench.spec.resolve(end.params).key() == bench.spec.resolve(original.params).key()
            continue
        assert end.trial_id is not None
        assert bench.numbers[end.trial_id] == end.number
        assert bench.started[end.trial_id] == end.params
        assert trial.state == STATES[end.status]
        assert trial.value == end.value
        assert trial.user_attrs.get(REASON) == end.reason
        if end.status == "failed":
            assert end.reason
        else:
            assert end.value == min(trial.intermediate_values.values())
            assert len(trial.intermediate_values) == (EPOCHS if end.status == "completed" else 3)
    keys = [bench.spec.resolve(params).key() for params in bench.points()]
    assert len(keys) == len(set(keys)) == bench.searcher.started


def ended_lines(folder: Path) -> list[int]:
    """The numbers of the journal's lines that tell an end, sorted: each once where each has ended once."""
    events = [json.loads(line) for line in (folder / JOURNAL).read_bytes().splitlines()]
    return sorted(event["end"]["number"] for event in events if event["e"] == "ended")
