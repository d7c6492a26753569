"""The smallest and largest models of a space and the one that takes most memory are found by looking at few points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy.stats import spearmanr

from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.data.windows import Prepared
from xlstm_tune.models.forecaster import count_parameters
from xlstm_tune.search.placement.packing import largest_configs
from xlstm_tune.search.sampling.extremes import furthest
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.loop import shape_of
from xlstm_tune.training.memory import estimate_trial, rough_size

WIDE: dict[str, Any] = {
    "model.family": {"choice": ["lstm", "slstm", "xlstm"]},
    "model.pattern": {"choice": ["s", "ms", "sss"], "when": {"model.family": "xlstm"}},
    "model.layers": {"choice": [1, 2, 3], "when": {"model.family": ["lstm", "slstm"]}},
    "model.hidden_size": {"choice": [32, 8, 64, 16]},
    "model.heads": {"choice": [1]},
    "model.pooling": {"choice": ["last", "mean", "flatten"]},
    "model.direction": {"choice": ["forward", "both"]},
    "model.patch_length": {"choice": [0, 2, 4, 8]},
    "data.lookback": {"choice": [8, 16, 48]},
    "training.batch_size": {"choice": [8, 16, 32]},
    "training.learning_rate": {"log_float": [1e-4, 1e-2]},
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("extremes") / "t.csv"
    path.write_text("y\n" + "\n".join(str((n * 37) % 101) for n in range(400)) + "\n")
    return path


def problem(table: Path, space: dict[str, Any], **search: Any) -> tuple[SearchSpec, Space, Prepared]:
    data = {"source": str(table), "target": "y", "lookback": 12, "horizon": 3}
    spec = SearchSpec.parse({"name": "wide", "data": data, "space": space, "search": search})
    return spec, Space.from_spec(spec), prepare(load_table(spec.data), spec.data, spec.max_lookback())


def sizes(spec: SearchSpec, space: Space, data: Prepared, sign: int) -> int:
    def count(config: TrialConfig) -> int:
        return sign * count_parameters(config.model, shape_of(data, config))

    return sign * max(count(spec.resolve(point)) for point in furthest(spec, space, count))


def test_the_ends_of_a_space_that_cannot_be_listed(table: Path) -> None:
    spec, space, data = problem(table, WIDE)
    assert space.points is None
    drawn = [spec.resolve(point) for point in space.examples()]
    counts = [count_parameters(config.model, shape_of(data, config)) for config in drawn]
    least, most = sizes(spec, space, data, -1), sizes(spec, space, data, 1)
    alone = {"model.hidden_size": 8, "model.heads": 1, "model.pooling": "last", "model.direction": "forward"}
    small = alone | {"model.family": "lstm", "model.layers": 1, "model.patch_length": 0, "data.lookback": 8}
    config = spec.resolve(small)
    assert least == count_parameters(config.model, shape_of(data, config)) < min(counts)
    large = {"model.family": "xlstm", "model.pattern": "sss", "model.hidden_size": 64, "model.direction": "both"}
    config = spec.resolve(large | {"model.heads": 1, "model.pooling": "flatten", "data.lookback": 48})
    assert most >= count_parameters(config.model, shape_of(data, config)) and most > max(counts)


def test_the_ends_of_one_that_can_be_listed_are_those_of_the_list(table: Path) -> None:
    few = {key: WIDE[key] for key in ("model.family", "model.pattern", "model.layers")}
    few["model.hidden_size"] = {"int": [8, 400], "step": 8}
    spec, space, data = problem(table, few)
    points = space.points
    assert points is not None and len(points) > 400, "more than are looked at one by one"
    counts = []
    for point in points.values():
        config = spec.resolve(point)
        counts.append(count_parameters(config.model, shape_of(data, config)))
    assert (sizes(spec, space, data, -1), sizes(spec, space, data, 1)) == (min(counts), max(counts))


def test_what_takes_most_memory_is_more_than_any_that_is_drawn(table: Path) -> None:
    spec, space, data = problem(table, WIDE)
    found = max(estimate_trial(config, data).total_mib for config in largest_configs(spec, space, data))
    drawn = [spec.resolve(point) for point in space.examples()[:60]]
    estimates = [estimate_trial(config, data).total_mib for config in drawn]
    assert found > max(estimates)
    assert spearmanr([rough_size(config, data) for config in drawn], estimates)[0] > 0.9


def test_what_is_too_large_to_be_trained_takes_no_memory(table: Path) -> None:
    limit = 3000
    spec, space, data = problem(table, WIDE, constraints={"max_parameters": limit})
    counts = [count_parameters(c.model, shape_of(data, c)) for c in largest_configs(spec, space, data)]
    assert max(counts) <= limit and len(counts) == 3
    spec, space, data = problem(table, WIDE, constraints={"max_parameters": 700})  # small LSTMs alone keep to that
    assert {config.model.family for config in largest_configs(spec, space, data)} == {"lstm"}
    spec, space, data = problem(table, WIDE, constraints={"max_parameters": 1})
    assert len(largest_configs(spec, space, data)) == 1


@pytest.mark.parametrize(("precision", "most"), [("fp32", 16), ("bf16", 1)])
def test_what_takes_most_is_found_where_narrow_heads_take_more_than_wide_ones(
    precision: str, most: int, table: Path
) -> None:
    """An mLSTM block of heads of 16 numbers is one pass that keeps little; one of 8 is not, nor any in 16 bits."""
    heads = {
        "model.family": {"choice": ["xlstm"]},
        "model.pattern": {"choice": ["ms"]},
        "training.precision": {"choice": [precision]},
        "model.hidden_size": {"choice": [32, 64]},
        "model.heads": {"choice": [1, 2, 4, 8, 16]},
        "data.lookback": {"choice": [48]},
    }
    spec, space, data = problem(table, heads)
    configs = [spec.resolve(point) for point in space.examples()]
    estimates = [estimate_trial(config, data).total_mib for config in configs]
    (found,) = largest_configs(spec, space, data)
    assert estimate_trial(found, data).total_mib == max(estimates) and found.model.heads == most
