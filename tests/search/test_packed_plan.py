"""A plan on a machine that is made to have GPUs, and a cluster's GPU that cannot tell its memory."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from xlstm_tune.search import plan as planning
from xlstm_tune.search.dry_run import print_plan
from xlstm_tune.search.placement.packing import cluster_gpu_mib
from xlstm_tune.search.placement.resources import place
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.spec import SearchSpec


def spec_of(folder: Path, **sections: object) -> SearchSpec:
    (folder / "t.csv").write_text("y\n" + "\n".join(str((n * 37) % 101) for n in range(200)) + "\n")
    data = {"source": str(folder / "t.csv"), "target": "y", "lookback": 12, "horizon": 3}
    space = {"model.family": {"choice": ["lstm_torch"]}, "model.hidden_size": {"choice": [8, 16]}}
    return SearchSpec.parse({"name": "packed", "data": data, "space": space, **sections})


@pytest.mark.parametrize(
    ("memory", "gpus", "words"),
    [
        (81_920.0, 0.125, "8 trials share a GPU: the largest (lstm_torch"),
        (2500.0, 0.5, "2 trials share a GPU"),
        (100.0, 1.0, "each trial has a GPU to itself"),
    ],
)
def test_make_plan_with_gpus_packs_and_says_why(
    memory: float, gpus: float, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "local_resources", lambda: {"CPU": 32.0, "GPU": 2.0})
    monkeypatch.setattr(planning, "local_gpu_mib", lambda: memory)
    rates = {"training.learning_rate": {"log_float": [1e-4, 1e-2]}}  # so that there are trials for all GPUs
    spec = spec_of(tmp_path, space={"model.family": {"choice": ["lstm_torch"]}} | rates)
    made = planning.make_plan(spec, Space.from_spec(spec), str(tmp_path / "searches"), None, None)
    assert made.placement is not None and made.placement.gpus == gpus
    assert made.placement.concurrent == round(2 / gpus)
    console = Console(file=io.StringIO(), width=250)
    print_plan(made, console)
    assert words in console.file.getvalue()  # type: ignore[attr-defined]


def test_make_plan_without_gpus_estimates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "local_resources", lambda: {"CPU": 2.0, "GPU": 0.0})
    monkeypatch.setattr(planning, "largest_trial", None)
    spec = spec_of(tmp_path)
    made = planning.make_plan(spec, Space.from_spec(spec), str(tmp_path / "searches"), None, None)
    assert made.placement is not None and not made.placement.why and made.placement.gpus == 0


@pytest.mark.parametrize(
    ("memory", "words"),
    [(None, "no GPU of the cluster told its memory in time"), (0.0, "torch finds none where Ray has them")],
)
def test_fit_without_a_figure_shares_no_gpu_and_says_why(memory: float | None, words: str, tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    space, available = Space.from_spec(spec), {"CPU": 8.0, "GPU": 1.0}
    _, data = planning.check_data(spec, space)
    placed = planning.fit(place(spec.resources, available), spec, space, data, available, lambda: memory)
    assert placed.gpus == 1 and words in placed.why


def test_chosen_uri_is_mlflows_own_variable_or_a_file_in_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert planning.chosen_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    spec = spec_of(tmp_path)
    space = Space.from_spec(spec)
    made = planning.make_plan(spec, space, str(tmp_path / "searches"), None, None)
    assert made.tracking_uri == f"sqlite:///{tmp_path}/other.db"
    given = planning.make_plan(spec, space, str(tmp_path / "searches"), f"sqlite:///{tmp_path}/given.db", None)
    assert given.tracking_uri == f"sqlite:///{tmp_path}/given.db"


@pytest.mark.slow
def test_cluster_gpu_mib_tells_what_torch_finds_on_each_node_in_time() -> None:
    import ray

    # A GPU that Ray believes in and torch does not find; then one that does not answer in time.
    ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        assert cluster_gpu_mib(300.0) == [0.0]
        assert cluster_gpu_mib(seconds=0.0) == []
    finally:
        ray.shutdown()


def printed(spec: SearchSpec, folder: Path) -> str:
    made = planning.make_plan(spec, Space.from_spec(spec), str(folder / "searches"), None, None)
    console = Console(file=io.StringIO(), width=250)
    print_plan(made, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("grace", "noted"), [(4, False), (5, True), (6, True)])
def test_dry_run_notes_a_grace_period_that_leaves_the_scheduler_idle(grace: int, noted: bool, tmp_path: Path) -> None:
    def text(**search: object) -> str:
        return printed(spec_of(tmp_path, search={"grace_epochs": grace, **search}, training={"epochs": 5}), tmp_path)

    words = f"note: search.scheduler 'asha' stops no trial early, since search.grace_epochs is {grace} and no trial"
    assert (words in text()) == noted
    assert "stops no trial early" not in text(scheduler="none")


@pytest.mark.parametrize("trials", [None, 1, 8])
def test_dry_run_notes_trials_of_a_file_without_a_space(trials: int | None, tmp_path: Path) -> None:
    words = f"note: search.trials is {trials}, but without a space there is one configuration to train"
    alone, searched = ({"space": space} for space in ({}, {"model.dropout": {"choice": [0.0, 0.1]}}))
    assert (words in printed(spec_of(tmp_path, search={"trials": trials}, **alone), tmp_path)) == (trials == 8)
    assert "without a space" not in printed(spec_of(tmp_path, search={"trials": 8}, **searched), tmp_path)


def test_dry_run_notes_a_limit_that_no_model_keeps(tmp_path: Path) -> None:
    def text(limit: int, **more: object) -> str:
        made = spec_of(tmp_path, search={"constraints": {"max_parameters": limit}, **more})
        return printed(made, tmp_path)

    words = "note: search.constraints.max_parameters is 10, and the smallest model has "
    for algorithm in ("tpe", "grid"):
        assert words in text(10, algorithm=algorithm)
    assert "no trial would be trained" in text(10)
    assert "max_parameters" not in text(1_000_000)

    def memory(gib: float) -> str:
        return printed(spec_of(tmp_path, search={"constraints": {"max_memory_gib": gib}}), tmp_path)

    words = "note: search.constraints.max_memory_gib is 1e-06, and what seems to take least 0.0"
    assert words in memory(1e-6) and "no trial would be trained" in memory(1e-6)
    assert "max_memory_gib" not in memory(1.0)
