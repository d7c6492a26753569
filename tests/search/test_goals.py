"""Costs beside the error, and limits: what the search file says, what Optuna is told, what a search brings."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial
from searcher_bench import SMALL, Bench, make_spec
from trial_data import small_data
from wave_search import rows, runs, search, write_wave

from xlstm_tune.data.windows import Prepared
from xlstm_tune.errors import SpecError
from xlstm_tune.models.forecaster import count_parameters
from xlstm_tune.report.pareto import pareto_front
from xlstm_tune.search.sampling.duplicates import DUPLICATE_OF
from xlstm_tune.search.sampling.goals import Goals
from xlstm_tune.search.sampling.thinning import _all_with_values
from xlstm_tune.spec import SearchConfig, SearchSpec
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.latency import forecast_latency
from xlstm_tune.training.loop import shape_of


def test_a_list_of_objectives_is_one_with_costs() -> None:
    several = SearchConfig.parse({"objective": ["val_mae", "parameters", "latency_ms"]})
    assert (several.objective, several.costs, several.scheduler) == ("val_mae", ["parameters", "latency_ms"], "none")
    assert several.goals == ["val_mae", "parameters", "latency_ms"]
    assert SearchConfig.parse(several.model_dump(by_alias=True, exclude_none=True)) == several, "as it is frozen"
    assert SearchConfig.parse({"objective": ["val_mae"]}).scheduler == "asha"


@pytest.mark.parametrize(
    ("search_", "words"),
    [
        ({"objective": ["val_rmse", "parameters"], "scheduler": "asha"}, "'search.scheduler' is 'asha', which stops"),
        ({"objective": ["val_rmse", "latency"]}, "latency_ms"),
        (
            {"objective": ["val_rmse", "val_mae"]},
            "'search.objective[1]' must be a cost, one of parameters, latency_ms, got 'val_mae'",
        ),
        ({"objective": ["parameters", "val_mae"]}, "'search.objective[0]' must be a metric, one of val_rmse, val_mae,"),
        ({"objective": ["val_rmse", ["parameters"]]}, "'search.objective[1]' must be a cost"),
        ({"objective": []}, "empty list"),
        ({"objective": ["val_rmse", "parameters"], "costs": ["latency_ms"]}, "leave out 'search.costs'"),
        ({"costs": ["parameters", "parameters"]}, "one cost twice"),
        ({"constraints": {"max_parameter": 3}}, "did you mean 'search.constraints.max_parameters'?"),
        ({"constraints": {"max_latency_ms": 0}}, "max_latency_ms"),
    ],
)
def test_objectives_that_make_no_sense_are_refused(search_: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as error:
        SearchSpec.parse({"name": "t", "data": {"source": "x.csv", "target": "y", "lookback": 3}, "search": search_})
    assert words in str(error.value)


def test_front_is_what_no_other_beats() -> None:
    def trial(number: int, error: float | None, size: float, status: str = "completed") -> dict[str, Any]:
        return {"trial": number, "status": status, "val_rmse": error, "parameters": size}

    table = [
        trial(0, 1.0, 900),
        trial(1, 2.0, 100),
        trial(2, 2.0, 100),  # the same as the one before
        trial(3, 1.5, 950),  # beaten by 0
        trial(4, 1.5, 400),
        trial(5, 3.0, 50, "pruned"),
        trial(6, 0.1, 10, "failed"),
        trial(7, None, 1),
    ]
    assert pareto_front(table, ["val_rmse", "parameters"]) == [0, 4, 1, 5]
    assert pareto_front(table, ["val_rmse"]) == [0]
    assert pareto_front([], ["val_rmse"]) == []


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return small_data(tmp_path_factory.mktemp("data"))


def bench(folder: Path, data: Prepared, resume: bool = False, **search_: Any) -> Bench:
    return Bench(make_spec(SMALL, **search_), folder, resume=resume, data=data)


def test_optuna_is_told_every_objective(tmp_path: Path, data: Prepared) -> None:
    made = bench(tmp_path, data, trials=3, objective=["val_rmse", "parameters"])
    for size in (300, 200, 100):
        trial_id = made.ask()
        assert trial_id
        made.searcher.on_trial_result(trial_id, made.result(trial_id, 1, 1000 / size, False, parameters=size))
        made.end(trial_id, 2, 900 / size, status="completed", finished=True, parameters=size)
    assert [trial.values for trial in made.trials()] == [[3.0, 300.0], [4.5, 200.0], [9.0, 100.0]]
    assert [end.value for end in made.ends] == [3.0, 4.5, 9.0]
    assert len(made.searcher.study.best_trials) == 3
    made.journal.close()
    again = bench(tmp_path, data, resume=True, trials=4, objective=["val_rmse", "parameters"])
    assert again.searcher.started == 3 and again.ask() is not None


def parameters(width: int, data: Prepared) -> int:
    config = make_spec(SMALL).resolve({"model.hidden_size": width})
    return count_parameters(config.model, shape_of(data, config))


def test_a_model_over_a_limit_of_size_is_never_begun_and_the_sampler_knows(tmp_path: Path, data: Prepared) -> None:
    size = partial(parameters, data=data)
    limit = size(64)
    made = bench(tmp_path, data, trials=8, constraints={"max_parameters": limit})
    made.run(lambda params: "completed")
    ended = {trial.number: trial for trial in made.trials()}
    begun = [params["model.hidden_size"] for params in made.points()]
    assert sorted(begun) == [32] * 4 + [64] * 4
    refused = [end for end in made.ends if end.status == "failed"]
    assert refused
    for end in refused:
        assert end.params["model.hidden_size"] == 128 and end.trial_id is None
        assert end.reason == f"too large: {size(128):,} parameters, search.constraints.max_parameters is {limit:,}"
        assert ended[end.number].state == TrialState.PRUNED
        assert ended[end.number].constraints == {"parameters": pytest.approx(size(128) / limit - 1)}
    for end in made.ends:
        if end.status == "completed":
            assert ended[end.number].constraints["parameters"] <= 0


def test_what_was_refused_does_not_count_after_a_resume_either(tmp_path: Path, data: Prepared) -> None:
    limited = {"trials": 8, "constraints": {"max_parameters": parameters(64, data)}}
    made = bench(tmp_path, data, **limited)
    while not any(end.status == "failed" for end in made.ends) and (trial_id := made.ask()):
        made.end(trial_id, 1, 1.0, status="completed", finished=True)
    begun = made.searcher.started
    assert begun < 8 and any((end.reason or "").startswith("too large") for end in made.ends)
    made.journal.close()
    again = bench(tmp_path, data, resume=True, **limited)
    assert again.searcher.started == begun
    again.run(lambda params: "completed")
    ended = [trial for trial in again.trials() if trial.state == TrialState.COMPLETE]
    assert sum(DUPLICATE_OF not in trial.user_attrs for trial in ended) == again.searcher.started == 8


def limit(width: int, data: Prepared) -> dict[str, Any]:
    """Stands in for what a machine's memory decides: no model wider than this is begun."""
    return {"constraints": {"max_parameters": parameters(width, data)}, "algorithm": "random"}


def test_what_another_machine_refused_may_be_begun_here(tmp_path: Path, data: Prepared) -> None:
    made = bench(tmp_path, data, trials=4, **limit(32, data))
    while made.ask():
        pass
    refused = [end.params for end in made.ends if end.status == "failed"]
    made.journal.close()
    begun = []
    for _ in range(2):  # the second one takes up what the first left open
        again = bench(tmp_path, data, resume=True, trials=12, **limit(128, data))
        while again.ask():
            pass
        begun.append(again.points())
        again.journal.close()
    assert any(params in refused for params in begun[0]) and begun[1] == begun[0]


def test_what_was_begun_on_another_machine_is_not_too_large_here(tmp_path: Path, data: Prepared) -> None:
    made = bench(tmp_path, data, trials=12, **limit(128, data))
    for _ in range(6):
        made.ask()
    for trial_id in made.started:
        made.epoch(trial_id, 1, 1.0)
    wide = {made.numbers[name] for name, params in made.started.items() if params["model.hidden_size"] == 128}
    assert wide
    made.journal.close()
    again = bench(tmp_path, data, resume=True, trials=12, **limit(32, data))
    again.run(lambda params: "completed")
    assert wide <= {end.number for end in again.ends if end.status == "completed"}
    refused = [end for end in again.ends if end.status == "failed"]
    assert refused and wide.isdisjoint(end.number for end in refused), "others are refused as ever"


def test_a_grid_goes_on_behind_many_points_that_were_refused(tmp_path: Path, data: Prepared) -> None:
    space = {"training.seed": {"choice": list(range(130))}, "model.hidden_size": {"choice": [32, 128]}}
    spec = make_spec(space, algorithm="grid", constraints={"max_parameters": parameters(64, data)})
    made = Bench(spec, tmp_path, data=data)
    for _ in range(110):
        trial_id = made.ask()
        assert trial_id
        made.end(trial_id, 1, 1.0, status="completed", finished=True)
    tried = len(made.trials())
    made.journal.close()
    again = Bench(spec, tmp_path, resume=True, data=data)
    while trial_id := again.ask():
        again.end(trial_id, 1, 1.0, status="completed", finished=True)
    assert again.searcher.started == 130 and len(again.trials()) == 260 > tried


def test_a_grid_comes_to_its_last_points_whatever_was_refused_before(tmp_path: Path, data: Prepared) -> None:
    space = {"model.hidden_size": {"choice": [128, 96, 32]}, "training.seed": {"choice": list(range(60))}}
    limits = {"max_parameters": parameters(64, data)}
    made = Bench(make_spec(space, algorithm="grid", constraints=limits), tmp_path, data=data)
    made.run(lambda params: "completed")
    assert made.searcher.started == 60 and len(made.trials()) == 180
    assert made.searcher.exhausted


def test_part_of_a_grid_goes_on_behind_what_was_refused_before_and_after_a_resume(
    tmp_path: Path, data: Prepared
) -> None:
    space = {"training.seed": {"choice": [0, 1, 2, 3]}, "model.hidden_size": {"choice": [128, 32, 16]}}
    limits = {"max_parameters": parameters(64, data)}
    made = Bench(make_spec(space, algorithm="grid", trials=3, constraints=limits), tmp_path, data=data)
    made.run(lambda params: "completed")
    made.journal.close()
    again = Bench(make_spec(space, algorithm="grid", trials=5, constraints=limits), tmp_path, resume=True, data=data)
    again.run(lambda params: "completed")
    tried = [(p["training.seed"], p["model.hidden_size"]) for bench in (made, again) for p in bench.points()]
    assert tried == [(0, 32), (0, 16), (1, 32), (1, 16), (2, 32)] and again.searcher.exhausted is None


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_a_finite_space_comes_to_all_that_it_holds_whatever_is_refused(
    algorithm: str, tmp_path: Path, data: Prepared
) -> None:
    space = {"model.hidden_size": {"choice": [128, 96, 32]}, "training.seed": {"choice": list(range(8))}}
    limits = {"max_parameters": parameters(64, data)}
    made = Bench(make_spec(space, algorithm=algorithm, trials=8, constraints=limits), tmp_path, data=data)
    made.run(lambda params: "completed")
    assert made.searcher.started == 8 and made.searcher.exhausted is None


@pytest.mark.parametrize("algorithm", ["tpe", "gp"])
def test_where_larger_is_better_a_limit_does_not_end_an_endless_space(
    algorithm: str, tmp_path: Path, data: Prepared
) -> None:
    space = {
        "training.learning_rate": {"log_float": [1e-4, 1e-2]},
        "model.hidden_size": {"int": [8, 128], "step": 8},
    }
    limits = {"max_parameters": parameters(32, data)}
    made = Bench(make_spec(space, algorithm=algorithm, trials=24, constraints=limits), tmp_path, data=data)
    while trial_id := made.ask():
        width = made.started[trial_id]["model.hidden_size"]
        made.end(trial_id, 1, 100.0 / width, status="completed", finished=True)
    assert made.searcher.started == 24 and made.searcher.exhausted is None
    refused = [end.number for end in made.ends if (end.reason or "").startswith("too large")]
    assert len(refused) < 48, "the sampler learns where the limit lies"
    widths = [params["model.hidden_size"] for params in made.points()]
    assert 32 in widths[-12:]


def test_figures_of_what_was_refused_have_the_places_of_the_others() -> None:
    """Optuna's Gaussian process goes by the place alone."""
    fine = create_trial(values=[2.0], constraints={"latency_ms": -0.9, "memory_gib": -0.8})
    worse = create_trial(values=[3.0], constraints={"latency_ms": -0.7, "memory_gib": -0.6})
    refused = create_trial(state=TrialState.PRUNED, constraints={"memory_gib": 4.0})
    assert _all_with_values([refused]) == [] and _all_with_values([fine, worse]) == [fine, worse]
    shown = _all_with_values([fine, refused, worse])
    assert [list(trial.constraints.items()) for trial in shown] == [
        [("latency_ms", -0.9), ("memory_gib", -0.8)],
        [("latency_ms", 0.0), ("memory_gib", 4.0)],
        [("latency_ms", -0.7), ("memory_gib", -0.6)],
    ]
    assert [trial.values for trial in shown] == [[2.0], [3.0], [3.0]]


def test_a_model_over_the_limit_of_time_fails_and_the_sampler_knows(tmp_path: Path, data: Prepared) -> None:
    made = bench(tmp_path, data, trials=2, constraints={"max_latency_ms": 2.0})
    slow, fast = made.ask(), made.ask()
    assert slow and fast
    made.end(slow, 1, float("nan"), status="failed", reason="too slow: a forecast takes 3 ms", latency_ms=3.0)
    made.epoch(fast, 1, 2.0)
    made.end(fast, 2, 1.0, status="completed", finished=True, latency_ms=1.0)
    first, second = made.trials()
    assert first.state == TrialState.PRUNED and first.constraints == {"latency_ms": pytest.approx(0.5)}
    assert second.state == TrialState.COMPLETE and second.constraints == {"latency_ms": pytest.approx(-0.5)}
    assert [end.status for end in made.ends] == ["failed", "completed"]
    made.journal.close()
    again = bench(tmp_path, data, resume=True, trials=3, constraints={"max_latency_ms": 2.0})
    assert {known.status for known in again.searcher._ledger._known.values()} == {"failed", "completed"}


def test_memory_is_limited_by_the_estimate(data: Prepared) -> None:
    config = make_spec(SMALL).resolve({})
    goals = Goals(SearchConfig.parse({"constraints": {"max_memory_gib": 1e-4}}), data)
    reason = goals.too_large(goals.sizes(config))
    assert reason and reason.startswith("too large: an estimated ") and "max_memory_gib is 0.0001" in reason
    assert (
        Goals(SearchConfig.parse({"constraints": {"max_memory_gib": 1.0}}), data).too_large(goals.sizes(config)) is None
    )


def test_latency_has_two_digits(data: Prepared) -> None:
    config = make_spec(SMALL).resolve({})
    found = [forecast_latency(config, shape_of(data, config), "cpu") for _ in range(2)]
    assert all(one == float(f"{one:.2g}") > 0 for one in found)


def test_latency_grows_with_the_model(data: Prepared) -> None:
    def config(layers: int) -> TrialConfig:
        return make_spec(SMALL).resolve({"model.layers": layers, "model.family": "slstm"})

    small, large = (forecast_latency(config(layers), shape_of(data, config(layers)), "cpu") for layers in (1, 8))
    assert 0 < small < large


@pytest.mark.slow
def test_a_search_for_two_objectives_shows_the_front(tmp_path: Path) -> None:
    spec = {
        "search": {
            "algorithm": "grid",
            "objective": ["val_rmse", "parameters", "latency_ms"],
            "constraints": {"max_parameters": 2000, "max_latency_ms": 5000},
        },
        "space": {"model.hidden_size": {"choice": [4, 8, 64]}},
        "model": {"family": "lstm", "layers": 1},
        "training": {"epochs": 2, "batch_size": 64},
        "resources": {"max_concurrent": 1},
    }
    output = search(tmp_path, str(write_wave(tmp_path, spec)))
    trials = {trial["trial"]: trial for trial in rows(tmp_path, "trials")}
    assert [trials[number]["status"] for number in sorted(trials)] == ["completed", "completed", "failed"]
    assert trials[2]["reason"].startswith("too large: ")
    assert all(trials[number]["latency_ms"] > 0 for number in (0, 1))
    front = pareto_front(list(trials.values()), ["val_rmse", "parameters", "latency_ms"])
    these = f"one of these {len(front)}" if len(front) > 1 else "this one"
    assert f"no trial beats {these} in all" in output
    client, children = runs(tmp_path)
    assert {n for n, run in children.items() if run.data.tags.get("pareto_front") == "true"} == set(front)
    assert children[0].data.metrics["latency_ms"] == trials[0]["latency_ms"]
    parent = client.get_run(children[0].data.tags["mlflow.parentRunId"])
    assert "pareto_front.json" in {file.path for file in client.list_artifacts(parent.info.run_id)}
