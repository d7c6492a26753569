"""What each input is worth to a trained model: which is shuffled, by whom, and what comes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.data.windows import Prepared, Windows
from xlstm_tune.layout import WEIGHTS, member_folder, trial_folder
from xlstm_tune.search.finals import importance
from xlstm_tune.search.finals.finalists import Finalist, predict_finalist
from xlstm_tune.search.finals.importance import (
    Importance,
    Input,
    Shuffled,
    importance_columns,
    inputs_of,
    measure,
    measure_remotely,
)
from xlstm_tune.search.persistence.store import Shared
from xlstm_tune.search.placement.resources import Placement
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.checkpoint import save_weights
from xlstm_tune.training.loop import train

CPU = torch.device("cpu")


def plots(folder: Path, plots: int = 60) -> Path:
    """Sequences of 7 or 9 days; what is to be told is rain's mean and the plot's size, and sun is noise."""
    rng = np.random.default_rng(3)
    lines = ["plot,day,rain,sun,soil,size,harvest"]
    for plot in range(plots):
        rain, size = rng.normal(size=9), rng.normal()
        harvest = 10 + 4 * rain[-7:].mean() + 2 * size
        soil = ("clay", "sand", "loam")[plot % 3]
        for day in range(plot % 2 * 2, 9):
            lines.append(f"{plot:02},{day},{rain[day]:.4f},{rng.normal():.4f},{soil},{size:.4f},{harvest:.4f}")
    path = folder / "plots.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def spec_of(folder: Path, **training: Any) -> SearchSpec:
    data = {
        "source": str(plots(folder)),
        "task": "regression",
        "sequence": "plot",
        "exclude": ["day"],
        "target": "harvest",
        "categories": ["soil"],
        "static": ["size"],
        "split": {"by": "plot", "validation": 0.2, "test": 0.4},
    }
    model = {"family": "lstm", "hidden_size": 16, "layers": 1, "pooling": "mean"}
    return SearchSpec.parse({"name": "plots", "data": data, "model": model, "training": training})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchSpec, Prepared]:
    """A search's folder with trial 0, which has learnt its task, and trial 1, a population of two."""
    folder = tmp_path_factory.mktemp("importance")
    spec = spec_of(folder, epochs=60, batch_size=8, learning_rate=0.01)
    data = prepare(load_table(spec.data), spec.data, spec.max_lookback())
    *_, last = train(spec.resolve({}), data, device="cpu")
    assert last.state.best_weights is not None
    place = trial_folder(folder, 1)
    for each in (trial_folder(folder, 0), member_folder(place, 0), member_folder(place, 1)):
        each.mkdir(parents=True)
        save_weights(each / WEIGHTS, last.state.best_weights)
    return folder, spec, data


def test_inputs_are_the_columns_and_whole_categories(trained: tuple[Path, SearchSpec, Prepared]) -> None:
    _, spec, data = trained
    assert set(data.feature_names) == {"rain", "sun", "soil=clay", "soil=sand", "soil=loam"}
    found = {one.name: one for one in inputs_of(data, spec.data.categories)}
    assert sorted(found) == ["rain", "size", "soil", "sun"]
    assert [data.feature_names[column] for column in found["rain"].columns] == ["rain"] and not found["rain"].static
    assert {data.feature_names[column] for column in found["soil"].columns} == {"soil=clay", "soil=sand", "soil=loam"}
    assert found["size"].static == (0,) and not found["size"].columns
    names = ("rain", "year_sin", "week_sin", "year_cos")
    dated = inputs_of(replace(data, feature_names=names, static_names=()), [], ["year"])
    assert [(one.name, one.columns) for one in dated] == [
        ("rain", (0,)),
        ("calendar: year", (1, 3)),
        ("week_sin", (2,)),
    ]
    assert len(inputs_of(data, [])) == 6, "without categories a '=' in a name means nothing"


def test_shuffled_gives_one_input_of_another_sample_and_no_more(trained: tuple[Path, SearchSpec, Prepared]) -> None:
    _, _, data = trained
    windows = Windows(data, "test")
    samples = torch.arange(len(windows))
    donors = samples.roll(1)
    column = data.feature_names.index("sun")
    plain, every = windows.batch(samples), torch.arange(len(samples))
    index = torch.tensor([5, 0, 3, 2, 1])
    batch = Shuffled(windows, samples, Input("sun", (column,)), donors).batch(index)
    assert plain.lengths is not None and batch.lengths is not None
    others = [one for one in range(data.features.shape[1]) if one != column]
    assert torch.equal(batch.x[..., others], plain.x[index][..., others])
    assert torch.equal(batch.y, plain.y[index]) and torch.equal(batch.lengths, plain.lengths[index])
    real = torch.arange(windows.lookback) < batch.lengths.unsqueeze(1)
    given = plain.x[donors[index]][..., column]
    assert torch.equal(batch.x[..., column], given * real), "what a longer donor has does not reach into the padding"
    assert (given != given * real).any(), "a donor was longer"
    static = Shuffled(windows, samples, Input("size", (), (0,)), donors).batch(every)
    assert static.static is not None and plain.static is not None
    assert torch.equal(static.x, plain.x) and torch.equal(static.static, plain.static[donors])
    assert torch.equal(windows.batch(samples).x, plain.x), "the data are as they were"


def test_measure_tells_what_the_model_needs_from_noise(trained: tuple[Path, SearchSpec, Prepared]) -> None:
    folder, spec, data = trained
    one = Finalist(0, "lstm", {})
    found = measure(folder, one, spec, data, trained=1.0, device=CPU)
    assert isinstance(found, Importance) and list(found.samples) == list(range(24))
    rmse = {name: float(np.sqrt(squares.mean())) for name, squares in found.squares.items()}
    (parts,) = predict_finalist(folder, one, spec, data, CPU)
    truth = data.targets[data.parts["test"]] * data.target_std + data.target_mean
    assert rmse[None] == pytest.approx(np.sqrt(np.square(parts["test"][:, 0] - truth).mean()), rel=1e-5)
    assert rmse["rain"] > 1.5 * rmse[None] and rmse["size"] > 1.5 * rmse[None]
    assert rmse["sun"] < 1.2 * rmse[None]
    again = measure(folder, one, spec, data, trained=1.0, device=CPU)
    assert isinstance(again, Importance)
    assert all(np.array_equal(squares, again.squares[name]) for name, squares in found.squares.items())


def test_measure_of_a_population_is_the_mean_over_its_seeds(trained: tuple[Path, SearchSpec, Prepared]) -> None:
    folder, spec, data = trained
    alone = measure(folder, Finalist(0, "lstm", {}), spec, data, trained=1.0, device=CPU)
    both = measure(folder, Finalist(1, "lstm", {}, members=(1, 0)), spec, data, trained=1.0, device=CPU)
    assert isinstance(alone, Importance) and isinstance(both, Importance)
    for name, squares in alone.squares.items():
        np.testing.assert_allclose(both.squares[name], squares, rtol=1e-12)


def test_measure_takes_fewer_samples_and_shuffles_where_time_is_short(
    trained: tuple[Path, SearchSpec, Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, spec, data = trained
    passes: list[int] = []
    batch = Shuffled.batch

    def counted(self: Shuffled, index: torch.Tensor) -> Any:
        passes.append(len(index))
        return batch(self, index)

    def looked_at(seconds: float) -> list[int]:
        """The samples of each pass after the first two, which warm up and tell how long one takes."""
        passes.clear()
        monkeypatch.setattr(importance, "LEAST_SECONDS", seconds)
        assert not isinstance(measure(folder, Finalist(0, "lstm", {}), spec, data, trained=0.0, device=CPU), str)
        assert passes[:2] == [2, 5]
        return passes[2:]

    monkeypatch.setattr(Shuffled, "batch", counted)
    monkeypatch.setattr(importance, "FEWEST_SAMPLES", 5)
    assert looked_at(0.0) == [5] * 5, "all inputs as they are, and each of the four once"
    assert looked_at(1000.0) == [24] * (1 + 4 * importance.SHUFFLES)
    monkeypatch.setattr(importance, "MOST_SAMPLES", 10)
    assert looked_at(1000.0) == [10] * (1 + 4 * importance.SHUFFLES)


def test_measure_says_why_there_is_nothing_to_tell(
    trained: tuple[Path, SearchSpec, Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, spec, data = trained
    one = Finalist(0, "lstm", {})
    alone = replace(data, parts=data.parts | {"test": data.parts["test"][:1]})
    assert measure(folder, one, spec, alone, trained=0.0, device=CPU) == "the test part has a single sample"
    monkeypatch.setattr(importance, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(importance, "MOST_SECONDS", 0.0)
    said = measure(folder, one, spec, data, trained=0.0, device=CPU)
    assert isinstance(said, str) and said.startswith("4 inputs would take about ")


def test_others_are_all_once_and_never_the_same() -> None:
    for n in (2, 3, 50):
        others = importance._others(n, np.random.default_rng(n))
        assert sorted(others) == list(range(n)) and (others != np.arange(n)).all()


def test_columns_name_each_sample_of_each_input() -> None:
    found = Importance(np.array([0, 2]), {None: np.array([1.0, 2.0]), "rain": np.array([3.0, 4.0])})
    columns = importance_columns(7, found, [("a", "1"), ("b", "2"), ("c", "3")])
    assert columns["input"] == [None, None, "rain", "rain"] and columns["trial"] == [7] * 4
    assert list(columns["series"]) == ["a", "c", "a", "c"] and list(columns["time"]) == ["1", "3", "1", "3"]
    assert list(columns["square"]) == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.slow
def test_measure_by_a_task_of_ray_is_the_same(trained: tuple[Path, SearchSpec, Prepared]) -> None:
    import ray

    folder, spec, data = trained
    one = Finalist(0, "lstm", {})
    here = measure(folder, one, spec, data, trained=1.0, device=CPU)
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        there = measure_remotely(Shared(folder), one, spec, ray.put(data), Placement(1, 0, 1), trained=1.0)
    finally:
        ray.shutdown()
    assert isinstance(here, Importance) and isinstance(there, Importance)
    for name, squares in here.squares.items():
        np.testing.assert_allclose(there.squares[name], squares, rtol=1e-5)
