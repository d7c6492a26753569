"""What the searcher proposes: start points, grids and seeds, and spaces that run out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState
from searcher_bench import MIXED, SMALL, Bench, check_all_told, fate, make_spec

from xlstm_tune.search.sampling.duplicates import REASON
from xlstm_tune.search.sampling.space import Params, Space
from xlstm_tune.spec import SearchSpec


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_a_finite_space_is_tried_completely_and_then_said_to_be_exhausted(algorithm: str, tmp_path: Path) -> None:
    bench = Bench(make_spec(SMALL, algorithm=algorithm, trials=500), tmp_path)
    bench.run(lambda params: "completed")
    check_all_told(bench)
    assert bench.searcher.started == 12
    assert "all 12 distinct configurations" in str(bench.searcher.exhausted)
    assert any(end.status == "duplicate" for end in bench.ends)


def test_settings_that_a_family_ignores_make_no_new_experiment(tmp_path: Path) -> None:
    """An infinite space of which only one point is an experiment: found out, not searched for ever."""
    space = {"model.proj_factor": {"float": [1.0, 2.0]}}
    spec = make_spec(space, algorithm="random", trials=5)
    lstm = SearchSpec.parse({**spec.model_dump(by_alias=True, exclude_none=True), "model": {"family": "lstm"}})
    bench = Bench(lstm, tmp_path)
    bench.run(lambda params: "completed")
    assert bench.searcher.started == 1
    assert "in a row" in str(bench.searcher.exhausted)
    check_all_told(bench)


def test_refused_combinations_fail_with_their_reason_and_are_asked_again(tmp_path: Path) -> None:
    # 1 of 400 widths is no model with 2 heads: the 200 samples of the check may miss it, a start point hits it.
    space = {"model.hidden_size": {"choice": [*range(2, 802, 2), 3]}, "model.dropout": {"float": [0.0, 0.5]}}
    spec = make_spec(space, algorithm="random", trials=2, start_with=[{"model.hidden_size": 3}])
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"heads": 2})})
    bench = Bench(spec, tmp_path)
    bench.run(lambda params: "completed")
    assert [end.status for end in bench.ends if end.number == 0] == ["failed"]
    refused = bench.trials()[0]
    assert refused.state == TrialState.FAIL
    assert "invalid: model.heads must divide" in refused.user_attrs[REASON]
    assert bench.searcher.started == 2
    assert Counter(trial.state for trial in bench.trials()) == {TrialState.FAIL: 1, TrialState.COMPLETE: 2}


def test_start_points_come_first_the_family_defaults_unless_told_otherwise(tmp_path: Path) -> None:
    bench = Bench(make_spec(MIXED, trials=4, start_with="defaults"), tmp_path)
    first, second = bench.ask(), bench.ask()
    assert first and second
    rate = {"training.learning_rate": 1e-3, "model.dropout": 0.0}
    assert bench.started[first] == {"model.family": "lstm", **rate}
    assert bench.started[second] == {"model.family": "xlstm", "model.pattern": "ms", **rate}


def test_a_grid_keeps_the_order_of_the_file_and_stops_at_the_number_of_trials(tmp_path: Path) -> None:
    bench = Bench(make_spec(SMALL, algorithm="grid", trials=5), tmp_path)
    bench.run(fate, concurrent=1)
    assert bench.points() == Space.from_spec(bench.spec).grid().points[:5]
    assert bench.searcher.exhausted is None


@pytest.mark.parametrize("algorithm", ["tpe", "random", "gp"])
def test_the_seed_decides_the_proposals(algorithm: str, tmp_path: Path) -> None:
    def proposals(folder: str, seed: int) -> list[Params]:
        (tmp_path / folder).mkdir()
        bench = Bench(make_spec(MIXED, algorithm=algorithm, trials=13, seed=seed), tmp_path / folder)
        bench.run(lambda params: "completed", concurrent=1)
        return list(bench.started.values())

    assert proposals("a", 1) == proposals("b", 1)
    assert proposals("c", 2) != proposals("d", 1)
