"""A plan on a machine that is made to have GPUs, and a cluster's GPU that cannot tell its memory."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from xlstm_tune.search import plan as planning
from xlstm_tune.search.dry_run import print_plan
from xlstm_tune.search.packing import cluster_gpu_mib
from xlstm_tune.search.space import Space
from xlstm_tune.spec import SearchSpec


def spec_of(folder: Path) -> SearchSpec:
    (folder / "t.csv").write_text("y\n" + "\n".join(str((n * 37) % 101) for n in range(200)) + "\n")
    data = {"source": str(folder / "t.csv"), "target": "y", "lookback": 12, "horizon": 3}
    space = {"model.family": {"choice": ["lstm_torch"]}, "model.hidden_size": {"choice": [8, 16]}}
    return SearchSpec.parse({"name": "packed", "data": data, "space": space})


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
    spec = spec_of(tmp_path)
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


@pytest.mark.slow
def test_cluster_gpu_mib_of_a_gpu_that_does_not_answer_is_none() -> None:
    import ray

    # A GPU that Ray believes in and torch does not find; then one that is never free.
    ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        assert cluster_gpu_mib() is None
        assert cluster_gpu_mib(seconds=0.0) is None
    finally:
        ray.shutdown()
