"""Shared data, the truth they hold, and the predictions table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import Table, load_table
from xlstm_tune.data.windows import Prepared, Windows
from xlstm_tune.models.drawn import drawn
from xlstm_tune.result_tables import KINDS
from xlstm_tune.search.finals.finalists import (
    MOST_ROWS,
    Judge,
    actual,
    finalists,
    most_windows,
    prediction_columns,
    sample_labels,
)
from xlstm_tune.spec import SearchSpec


@pytest.fixture
def data(tmp_path: Path) -> tuple[Table, Prepared]:
    rows = "\n".join(f"2020-01-01T{n // 60:02d}:{n % 60:02d},{(n * 37) % 101},{n % 7}" for n in range(200))
    (tmp_path / "t.csv").write_text("when,y,z\n" + rows + "\n")
    config = DataConfig.parse(
        {
            "source": str(tmp_path / "t.csv"),
            "time": {"column": "when"},
            "target": ["y", "z"],
            "lookback": 5,
            "horizon": 3,
        }
    )
    table = load_table(config)
    return table, prepare(table, config)


def test_actual_is_the_table_in_its_own_units(data: tuple[Table, Prepared]) -> None:
    table, prepared = data
    truth = actual(table, prepared, "test")
    for sample, row in enumerate(prepared.ends[prepared.parts["test"]]):
        assert truth[sample].tolist() == table.targets[row : row + 3].tolist(), "31 is 31, not 30.999999"


def test_sample_labels_name_the_first_forecast_step(data: tuple[Table, Prepared]) -> None:
    table, prepared = data
    labels = sample_labels(table, prepared, "validation")
    row = int(prepared.ends[prepared.parts["validation"][0]])
    assert labels[0] == (table.series_name(0), table.time_label(row))
    assert len(labels) == len(prepared.parts["validation"])


def test_prediction_columns_are_long_and_in_step(data: tuple[Table, Prepared]) -> None:
    table, prepared = data
    truth = actual(table, prepared, "test")
    labels = sample_labels(table, prepared, "test")
    columns = prediction_columns(7, "lstm", "test", truth + 1, truth, labels, prepared.target_names)
    assert {len(values) for values in columns.values()} == {truth.size}
    where = {name: np.asarray(values) for name, values in columns.items()}
    chosen = (where["time"] == labels[2][1]) & (where["step"] == 3) & (where["target"] == "z")
    assert where["actual"][chosen] == pytest.approx([truth[2, 2, 1]])
    assert where["predicted"][chosen] == pytest.approx([truth[2, 2, 1] + 1])


def hours(steps: int, horizon: int) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Windows that begin every hour, as what happened [n, H, 1] and labels."""
    numbers = np.arange(steps, dtype=np.float64)[:, None, None]
    return np.broadcast_to(numbers, (steps, horizon, 1)), [("all", str(n)) for n in range(steps)]


def test_of_a_long_part_windows_are_drawn_evenly_and_in_step_with_no_season() -> None:
    """Every 24th window would begin at the same hour of the day."""
    truth, labels = hours(24 * 2000, 100)
    columns = prediction_columns(None, "mean", "test", truth, truth, labels, ["y"])
    kept = columns["actual"][::100]
    assert len(kept) == MOST_ROWS / 100 and (kept // 24 == np.arange(2000)).all()
    hour = np.bincount((kept % 24).astype(int), minlength=24)
    assert hour.min() > 0.6 * 2000 / 24, "every hour of the day, about as often as any other"
    again = prediction_columns(0, "lstm", "test", truth + 1, truth, labels, ["y"])
    assert (again["time"] == columns["time"]).all(), "all models of the same windows"


@pytest.mark.parametrize("total", [201, 250, 300, 399, 400, 1000])
def test_no_window_is_drawn_twice(total: int) -> None:
    kept = drawn(total, 200)
    assert len(kept) == 200 and (np.diff(kept) > 0).all() and kept[0] >= 0 and kept[-1] < total
    assert (kept // (total / 200)).astype(int).tolist() == pytest.approx(list(range(200)), abs=1)


def test_of_the_winner_on_validation_more_is_kept() -> None:
    assert most_windows(100, intervals=True) == 10 * most_windows(100) == 20_000
    assert most_windows(40_000) == 5 and most_windows(40_000, intervals=True) == 100, "what 99 % intervals take"
    assert most_windows(800_000, intervals=True) == 6, "unless these are too many"
    assert most_windows(10**7) == most_windows(10**7, intervals=True) == 1


def test_squares_are_of_every_window_where_not_all_predictions_are_kept(
    data: tuple[Table, Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(*data)
    truth = judge.truth("test")
    off = truth + np.arange(len(truth))[:, None, None]
    assert judge.squares(3, "lstm", off) is None
    monkeypatch.setattr("xlstm_tune.search.finals.finalists.MOST_ROWS", 30)
    made, plain = judge.squares(3, "lstm", off), judge.squares(None, "mean", off)
    assert made is not None and plain is not None and plain["trial"].null_count == len(truth)
    assert dict(zip(made.schema.names, made.schema.types, strict=True)) == KINDS["squares"].columns
    assert made["square"].to_numpy() == pytest.approx(np.arange(len(truth)) ** 2.0)
    assert list(zip(made["series"].to_pylist(), made["time"].to_pylist(), strict=True)) == judge.labels("test")
    assert len(judge.columns(3, "lstm", "test", off)["actual"]) == 30


def test_finalists_are_the_best_of_each_family_best_first() -> None:
    spec = SearchSpec.parse({"name": "a", "data": {"source": "x.csv", "target": "y", "lookback": 3}})

    def row(trial: int, family: str, value: float | None, status: str = "completed") -> dict[str, object]:
        return {"trial": trial, "name": "n", "family": family, "status": status, "val_rmse": value, "params": {}}

    rows = [
        row(0, "lstm", 2.0),
        row(1, "lstm", 1.5, "pruned"),
        row(2, "slstm", 1.0),
        row(3, "slstm", 1.0, "duplicate"),
        row(4, "mlstm", None, "failed"),
    ]
    assert [(one.number, one.family) for one in finalists(rows, spec)] == [(2, "slstm"), (1, "lstm")]


@pytest.mark.slow
def test_data_reach_workers_once_and_without_copies(data: tuple[Table, Prepared]) -> None:
    ray = pytest.importorskip("ray")
    _, prepared = data
    ray.init(
        num_cpus=1, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}}
    )
    try:
        reference = ray.put(prepared)

        @ray.remote
        def look(holder: list[object]) -> tuple[bool, bool, bool]:
            mine = ray.get(holder[0])
            windows = Windows(mine, "train")
            address = windows._features.data_ptr()
            # Not its own memory, not writable: a view of the node's object store, which torch uses as it is.
            return mine.features.flags.owndata, mine.features.flags.writeable, address == mine.features.ctypes.data

        assert ray.get(look.remote([reference])) == (False, False, True)
    finally:
        ray.shutdown()
