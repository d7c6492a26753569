"""The population section of a search file: what is refused, and what a population is."""

from __future__ import annotations

from typing import Any

import pytest

from xlstm_tune.errors import SpecError
from xlstm_tune.search.sampling.population import describe_population, trial_members
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.members import check_one_shape, score_of

RATE = "training.learning_rate"
BASE: dict[str, Any] = {
    "name": "a",
    "data": {"source": "x.csv", "target": "y", "lookback": 3},
    "model": {"family": "lstm", "layers": 2},
}


def make(population: Any, **sections: Any) -> SearchSpec:
    spec = SearchSpec.parse(BASE | {"population": population} | sections)
    Space.from_spec(spec)
    return spec


@pytest.mark.parametrize(
    ("population", "sections", "sentence"),
    [
        ({"model.hidden_size": [8]}, {}, "'population.model.hidden_size' changes the shape of the weights"),
        ({"training.optimiser": ["sgd"]}, {}, "'population.training.optimiser' changes what is computed"),
        ({"data.lookback": [3]}, {}, "'population.data.lookback' changes the shape of the inputs"),
        ({"training.seed": [1]}, {}, "write 'seeds: 3' instead"),
        ({RATE: [0.1]}, {"space": {RATE: {"choice": [0.1]}}}, "stands in 'space' and in 'population'"),
        ({RATE: []}, {}, "'population.training.learning_rate' has an empty list"),
        ({RATE: 0.1}, {}, "'population.training.learning_rate' must be a list"),
        ({RATE: [11]}, {}, "'population.training.learning_rate' must be less than or equal to 10, got 11"),
        ({RATE: [1, 1.0]}, {}, "lists 1.0 twice"),
        ({"training.lerning_rate": [1]}, {}, "did you mean 'training.learning_rate'?"),
        ({"sedes": 3}, {}, "did you mean 'seeds'?"),
        ({"seeds": 0}, {}, "'population.seeds' must be greater than or equal to 1, got 0"),
        ({"seeds": 1024, RATE: [0.1, 0.2]}, {}, "2,048 members"),
        ({"seeds": 2}, {"model": {"family": "lstm_torch"}}, "cannot be vmapped"),
        ({"seeds": 2}, {"space": {"model.family": {"choice": ["lstm", "lstm_torch"]}}}, "cannot be vmapped"),
        (
            {"training.schedule": ["cosine", "constant"]},
            {"space": {"model.bias": {"choice": [True], "when": {"training.schedule": "cosine"}}}},
            "is a condition on a setting that the members of a trial differ in",
        ),
    ],
)
def test_population_refuses(population: Any, sections: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError) as refused:
        make(population, **sections)
    assert sentence in str(refused.value)


def test_members_are_settings_times_seeds() -> None:
    spec = make({"seeds": 2, RATE: [1, 0.1], "model.dropout": [0.0, 0.2]}, training={"seed": 5})
    config = spec.resolve({})
    members = trial_members(spec, config)
    assert [(m.group, m.seed) for m in members] == [(g, s) for g in range(4) for s in (5, 6)]
    assert members[2].setting == {RATE: 1.0, "model.dropout": 0.2} and members[2].config.model.dropout == 0.2
    assert members[0].title == "learning_rate 1.0 dropout 0.0 seed 5"
    assert members[0].config.training.learning_rate == 1.0 and config.training.learning_rate == 1e-3
    said = describe_population(spec.population, {8})  # type: ignore[arg-type]
    assert said.startswith("8 members a trial: 4 settings × 2 seeds (")
    said = describe_population(spec.population, {4, 8})  # type: ignore[arg-type]
    assert said.startswith("4 to 8 members a trial: 4 settings × 2 seeds, without those that make no difference")
    check_one_shape([member.config for member in members])
    with pytest.raises(ValueError, match=r"must not differ in model\.hidden_size"):
        check_one_shape([config, spec.resolve({"model.hidden_size": 8})])


def test_members_leave_out_settings_that_make_no_difference() -> None:
    spec = make({"seeds": 2, "model.dropout": [0.0, 0.2]}, model={"family": "lstm", "layers": 1})
    assert [member.group for member in trial_members(spec, spec.resolve({}))] == [0, 0]


def test_score_of_needs_every_seed() -> None:
    spec = make({"seeds": 3, RATE: [0.1, 0.2]})
    members = trial_members(spec, spec.resolve({}))
    best = [{"rmse": value} for value in (3.0, 4.0, 5.0, 1.0, 1.0, 1.0)]
    score = score_of(members, best, [False] * 6, "rmse")
    assert score is not None and (score.group, score.mean, score.std_error) == (1, {"rmse": 1.0}, 0.0)
    score = score_of(members, best, [False] * 5 + [True], "rmse")
    assert score is not None and (score.group, score.winner, score.mean) == (0, 0, {"rmse": 4.0})
    assert score.std_error == pytest.approx(1 / 3**0.5)
    assert score_of(members, best, [True] + [False] * 4 + [True], "rmse") is None


def test_a_populations_epochs_decide_the_schedule() -> None:
    assert make({"training.epochs": [3, 7]}).max_epochs() == 7
