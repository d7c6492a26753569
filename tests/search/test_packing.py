"""How many trials share a GPU. No GPU is needed: memory figures are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.data.windows import Prepared
from xlstm_tune.search.placement import packing
from xlstm_tune.search.placement.packing import Largest, Packing, largest_trial, pack, room_on_cpu
from xlstm_tune.search.placement.resources import Placement, packable, place
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.spec import PopulationConfig, ResourceConfig, SearchSpec
from xlstm_tune.training.loop import shape_of
from xlstm_tune.training.memory import (
    CONTEXT_MIB,
    EVALUATION_MIB,
    SAFETY,
    data_mib,
    estimate_memory,
    process_mib,
    rough_size,
)


@pytest.mark.parametrize(
    ("mib", "gpu", "config", "cpus", "gpus", "expected", "words"),
    [
        (1000, 4500, {}, 16, 1, 4, "memory"),
        (1000, 80_000, {}, 16, 1, 8, "most"),
        (1000, 80_000, {}, 6, 2, 3, "CPUs"),
        (1000, 80_000, {"cpus_per_trial": 4}, 16, 2, 2, "CPUs"),
        (1000, 80_000, {"max_concurrent": 3}, 16, 2, 2, "max_concurrent"),
        (9000, 8000, {}, 16, 1, 1, "memory"),  # it goes on in pieces
        (1000, 80_000, {}, 2, 4, 1, "CPUs"),
    ],
)
def test_pack_by_the_scarcest(
    mib: float, gpu: float, config: dict[str, Any], cpus: float, gpus: float, expected: int, words: str
) -> None:
    made = pack(Largest("lstm", mib), gpu, ResourceConfig.parse(config), {"CPU": cpus, "GPU": gpus})
    assert made.per_gpu == expected and words in made.why.rpartition(", and ")[2]
    assert ("to itself" in made.why) == (expected == 1)


@pytest.mark.parametrize(
    ("trials", "width", "gpus", "expected"),
    [(16, 1, 8, 2), (17, 1, 8, 3), (64, 1, 8, 8), (100, 1, 8, 8), (3, 1, 8, 1), (32, 4, 8, 1), (34, 4, 8, 2)],
)
def test_pack_leaves_no_gpu_idle_where_trials_are_few(trials: int, width: int, gpus: int, expected: int) -> None:
    available = {"CPU": 256.0, "GPU": float(gpus)}
    made = pack(Largest("lstm", 1000, each_mib=10), 80_000, ResourceConfig(), available, width, trials)
    assert made.per_gpu == expected
    assert ("the number of trials sets the limit" in made.why) == (expected < 8)


@pytest.mark.parametrize("per_gpu", range(1, 9))
def test_place_gives_every_gpu_its_trials(per_gpu: int) -> None:
    share = Packing(per_gpu, "").share
    assert round(share * 10_000) * per_gpu <= 10_000  # as Ray counts
    placement = place(ResourceConfig(), {"CPU": 32.0, "GPU": 2.0}, share=share, why="because")
    assert placement == Placement(1, share, 2 * per_gpu) and placement.why == "because"


def test_packable_where_auto_and_a_gpu_meet() -> None:
    assert packable(ResourceConfig(), {"CPU": 4.0, "GPU": 1.0})
    assert not packable(ResourceConfig(), {"CPU": 4.0, "GPU": 0.0})
    assert not packable(ResourceConfig.parse({"gpus_per_trial": 0.5}), {"CPU": 4.0, "GPU": 1.0})
    assert place(ResourceConfig(), {"CPU": 2.0}, share=0.25) == Placement(1, 0, 2)


@pytest.fixture
def problem(tmp_path: Path) -> tuple[SearchSpec, Space, Prepared]:
    (tmp_path / "t.csv").write_text("y\n" + "\n".join(str((n * 37) % 101) for n in range(200)) + "\n")
    spec = SearchSpec.parse(
        {
            "name": "packed",
            "data": {"source": str(tmp_path / "t.csv"), "target": "y", "lookback": 12, "horizon": 3},
            "space": {
                "model.family": {"choice": ["lstm", "lstm_torch"]},
                "model.hidden_size": {"choice": [16, 512, 64]},
                "training.batch_size": {"choice": [8, 64]},
                "training.learning_rate": {"log_float": [1e-4, 1e-2]},
            },
        }
    )
    table = load_table(spec.data)
    return spec, Space.from_spec(spec), prepare(table, spec.data)


def test_largest_trial_is_the_widest(problem: tuple[SearchSpec, Space, Prepared]) -> None:
    spec, space, data = problem
    largest = largest_trial(spec, space, data)
    assert "512" in largest.title
    assert largest.mib > CONTEXT_MIB + SAFETY * EVALUATION_MIB
    many = spec.model_copy(update={"population": PopulationConfig(seeds=8)})
    assert largest_trial(many, space, data).mib > largest.mib


def test_a_batch_larger_than_the_training_part_takes_no_more(problem: tuple[SearchSpec, Space, Prepared]) -> None:
    spec, _, data = problem

    def largest(batch_size: int) -> Largest:
        space = {"training.batch_size": {"choice": [batch_size]}}
        own = SearchSpec.parse(spec.model_dump(by_alias=True) | {"space": space})
        return largest_trial(own, Space.from_spec(own), data)

    assert largest(100_000).mib == largest(len(data.parts["train"])).mib > largest(8).mib


def test_process_mib_counts_members_and_data(problem: tuple[SearchSpec, Space, Prepared]) -> None:
    spec, _, data = problem
    config = spec.resolve({"model.hidden_size": 512})
    estimate = estimate_memory(config, shape_of(data, config), "cpu")
    fixed = CONTEXT_MIB + data_mib(data)
    assert data_mib(data) * 2**20 >= 2 * (data.features.nbytes + data.targets.nbytes)
    assert process_mib(estimate, data) == pytest.approx(fixed + SAFETY * (estimate.total_mib + EVALUATION_MIB))
    many = process_mib(estimate, data, 1000)
    assert many == pytest.approx(fixed + SAFETY * (1000 * estimate.total_mib + EVALUATION_MIB))


@pytest.mark.parametrize(("gpu", "width", "per_gpu"), [(80_000, 8, 8), (8500, 8, 1), (5000, 5, 1), (900, 1, 1)])
def test_pack_makes_room_for_configurations_that_train_together(gpu: float, width: int, per_gpu: int) -> None:
    available = {"CPU": 16.0, "GPU": 1.0}
    made = pack(Largest("slstm", 1000, each_mib=1000), gpu, ResourceConfig(), available, width=8)
    assert (made.width, made.per_gpu) == (width, per_gpu)
    assert (f"{width} of slstm together" in made.why) == (width > 1)


def test_room_on_cpu_is_for_what_gains_by_it(problem: tuple[SearchSpec, Space, Prepared], monkeypatch: Any) -> None:
    spec, _, data = problem
    spec = SearchSpec.parse(spec.model_dump(by_alias=True) | {"training": {"batch_size": 64}})
    wide = {"model.family": {"choice": ["slstm"]}, "model.hidden_size": {"choice": [64, 2048]}}
    # Two layers of some 1,200 numbers for each of 64 × 12 steps: 11.4 MiB each, at twice as much.
    for sizes, memory, width in ((wide, 20_000.0, 8), (wide, 100.0, 4), (wide, 1.0, 1)):
        monkeypatch.setattr(packing, "memory_mib", lambda memory=memory: memory)
        space = Space.from_spec(SearchSpec.parse(spec.model_dump(by_alias=True) | {"space": sizes}))
        assert room_on_cpu(spec, space, data, width=8, slots=1) == width
    large = {"model.family": {"choice": ["slstm"]}, "model.hidden_size": {"choice": [2048]}}
    space = Space.from_spec(SearchSpec.parse(spec.model_dump(by_alias=True) | {"space": large}))
    assert room_on_cpu(spec, space, data, width=8, slots=1) == 1, "alone is as fast"


def test_room_on_cpu_is_for_the_largest_of_a_space_of_many_points(
    problem: tuple[SearchSpec, Space, Prepared], monkeypatch: Any
) -> None:
    """The largest is one that some hundred drawn points do not show."""
    spec, _, data = problem
    widths = {
        "model.family": {"choice": ["slstm"]},
        "model.hidden_size": {"int": [8, 64], "step": 4},
        "model.layers": {"int": [1, 16]},
        "training.batch_size": {"int": [8, 64]},
    }
    spec = SearchSpec.parse(spec.model_dump(by_alias=True) | {"space": widths})
    largest = spec.resolve(
        {"model.family": "slstm", "model.hidden_size": 64, "model.layers": 16, "training.batch_size": 64}
    )
    each = rough_size(largest, data) * 2 * 4 / 2**20
    monkeypatch.setattr(packing, "memory_mib", lambda: 2 * each * 90.5)
    assert room_on_cpu(spec, Space.from_spec(spec), data, width=100, slots=1) == 90
