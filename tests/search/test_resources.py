"""How many trials run at a time, and what is refused."""

from __future__ import annotations

import os

import pytest

from xlstm_tune.errors import ResourceError
from xlstm_tune.search.placement.resources import Placement, own_gpus_alone, place
from xlstm_tune.spec import ResourceConfig


@pytest.mark.parametrize(
    ("config", "available", "expected"),
    [
        ({}, {"CPU": 2}, Placement(1, 0, 2)),
        ({}, {"CPU": 16, "GPU": 2}, Placement(1, 1, 2)),
        ({"gpus_per_trial": 0.25}, {"CPU": 16, "GPU": 2}, Placement(1, 0.25, 8)),
        # A trial cannot straddle two GPUs: each takes two trials of 0.4.
        ({"gpus_per_trial": 0.4}, {"CPU": 16, "GPU": 2}, Placement(1, 0.4, 4)),
        ({"gpus_per_trial": 0}, {"CPU": 4, "GPU": 2}, Placement(1, 0, 4)),
        ({"cpus_per_trial": 3}, {"CPU": 8}, Placement(3, 0, 2)),
        ({"cpus_per_trial": 0.5}, {"CPU": 2}, Placement(0.5, 0, 4)),
        ({"max_concurrent": 1}, {"CPU": 8}, Placement(1, 0, 1)),
    ],
)
def test_place_fills_what_there_is(config: dict, available: dict[str, float], expected: Placement) -> None:
    assert place(ResourceConfig.parse(config), available) == expected


@pytest.mark.parametrize("config", [{"gpus_per_trial": 1}, {"gpus_per_trial": 0.5}, {"cpus_per_trial": 5}])
def test_place_refuses_more_than_there_is(config: dict) -> None:
    with pytest.raises(ResourceError, match="this machine has"):
        place(ResourceConfig.parse(config), {"CPU": 4.0, "GPU": 0.0})


@pytest.mark.slow
def test_a_worker_sees_no_gpu_but_its_own() -> None:
    import ray

    def seen() -> str | None:
        own_gpus_alone()
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)  # said, not had
    try:
        task = ray.remote(seen)
        assert ray.get(task.options(num_cpus=1).remote()) == ""
        assert ray.get(task.options(num_cpus=1, num_gpus=0.5).remote()) in ("0", "1")
        assert ray.get(task.options(num_cpus=1, num_gpus=2).remote()) == "0,1"
    finally:
        ray.shutdown()
