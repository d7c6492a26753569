"""Shared data, the truth they hold, and the predictions table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import Table, load_table
from xlstm_tune.data.windows import Prepared, Windows
from xlstm_tune.search.finals.finalists import MOST_ROWS, actual, finalists, prediction_columns, sample_labels
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


def test_prediction_columns_thin_long_parts_evenly() -> None:
    truth = np.arange(3 * MOST_ROWS, dtype=np.float64).reshape(-1, 1, 1)
    labels = [("all", str(n)) for n in range(len(truth))]
    columns = prediction_columns(None, "mean", "test", truth, truth, labels, ["y"])
    assert len(columns["actual"]) == MOST_ROWS
    assert set(np.diff(columns["actual"])) == {3.0}


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
