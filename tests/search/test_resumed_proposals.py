"""A search that was interrupted proposes what it would have proposed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from searcher_bench import MIXED, Bench, fate, make_spec

from xlstm_tune.search.persistence.journal import Journal, read_journal
from xlstm_tune.search.sampling.fusion import Fusion
from xlstm_tune.search.sampling.samplers import NumberedSampler
from xlstm_tune.search.sampling.searcher import OptunaSearcher
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.spec import SearchSpec

RATES = {"model.hidden_size": {"choice": [32, 64]}, "training.learning_rate": {"log_float": [1e-4, 1e-2]}}


@pytest.mark.parametrize("algorithm", ["random", "tpe", "gp"])
@pytest.mark.parametrize(("killed", "drawn"), [(3, None), (12, None), (12, 1), (12, 2)])
def test_one_after_another_the_same_configurations_come(
    algorithm: str, killed: int, drawn: int | None, tmp_path: Path
) -> None:
    """drawn: settings of the next trial that the driver has written down when it is killed; None = it trains."""
    spec = make_spec(MIXED, algorithm=algorithm, trials=15, start_with=[{"model.family": "lstm"}])  # the rest is drawn
    whole, half = tmp_path / "whole", tmp_path / "half"
    for folder in (whole, half):
        folder.mkdir()
    first = Bench(spec, whole)
    first.run(fate, concurrent=1)
    before = Bench(spec, half)
    for _ in range(killed):
        trial_id = before.ask()
        assert trial_id
        epoch = 0
        while not before.step(trial_id, epoch := epoch + 1, fate(before.started[trial_id])):
            pass
    if drawn is None:
        before.ask()
    else:
        trial = before.searcher.study.ask()
        for domain in Space.from_spec(spec).domains[:drawn]:
            domain.suggest(trial)
    after = Bench(spec, half, resume=True)
    after.run(fate, concurrent=1)
    told = [{number: past.params for number, past in read_journal(one).trials.items()} for one in (whole, half)]
    assert len(told[0]) >= 15 and told[0] == told[1]


class Together:
    """A random search whose configurations of one shape are trained together."""

    def __init__(self, spec: SearchSpec, folder: Path, resume: bool = False) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        fusion = Fusion(width=3, slots=1)
        self.searcher = OptunaSearcher(
            spec, Space.from_spec(spec), folder, Journal(folder), resume=resume, fusion=fusion
        )

    def groups(self, most: int | None = None) -> None:
        """Train so many groups, or all."""
        while most != 0 and isinstance(asked := self.searcher.suggest("t"), dict):
            rows = [self.done(one["number"]) for one in asked["trials"]]
            self.searcher.on_trial_complete("t", {"rows": rows})
            most = most and most - 1

    @staticmethod
    def done(number: int) -> dict[str, Any]:
        ended = {"status": "completed", "finished": True, "done": True}
        return {"number": number, "epoch": 1, "best_val_rmse": 1.0, **ended}

    def tried(self) -> list[dict[str, Any]]:
        return [trial.params for trial in self.searcher.study.get_trials(deepcopy=False)]


@pytest.mark.parametrize("killed", [1, 2, 4])
def test_groups_that_left_out_of_turn_are_not_drawn_again(killed: int, tmp_path: Path) -> None:
    spec = make_spec(RATES, algorithm="random", trials=14, start_with="defaults")
    whole = Together(spec, tmp_path / "whole")
    whole.groups()
    Together(spec, tmp_path / "half").groups(killed)
    resumed = Together(spec, tmp_path / "half", resume=True)
    resumed.groups()
    assert resumed.tried() == whole.tried() and len(whole.tried()) == 14


def test_trials_draw_other_numbers_and_their_own() -> None:
    spec = make_spec(MIXED, algorithm="random")

    def drawn(number: int) -> dict[str, Any]:
        study = optuna.create_study(sampler=NumberedSampler(spec.search, number))
        return Space.from_spec(spec).suggest(study.ask())

    assert drawn(4) == drawn(4) and drawn(4) != drawn(5)
    rates = sorted(float(drawn(number)["training.learning_rate"]) for number in range(300))
    assert rates[0] < 1.2e-4 and rates[-1] > 8e-3 and 0.8e-3 < rates[150] < 1.25e-3, "spread as one stream's are"
