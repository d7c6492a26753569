"""Baselines that repeat a number of the table give it as the table has it, not as it comes back from float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import Table, load_table
from xlstm_tune.data.windows import Prepared
from xlstm_tune.models.baselines import baselines

SEASON, HORIZON = 7, 3


def made(folder: Path, columns: dict[str, np.ndarray], **keys: object) -> tuple[Table, Prepared]:
    """The columns, read back from a file, all of them targets."""
    path = folder / "x.parquet"
    pa_parquet.write_table(pa.table(columns), path)
    form = {"task": "forecast", "target": list(columns), "lookback": 10, "horizon": HORIZON, "season": SEASON}
    config = DataConfig.parse({"source": str(path), **form, **keys}, "data")
    table = load_table(config)
    return table, prepare(table, config)


def check(table: Table, data: Prepared) -> None:
    found = {one.name: one.predictions for one in baselines(data, targets=table.targets)}
    for part in ("validation", "test"):
        ends = data.ends[data.parts[part]]
        np.testing.assert_array_equal(
            found["last_value"][part], np.repeat(table.targets[ends - 1][:, None], HORIZON, 1)
        )
        seasonal = table.targets[ends[:, None] + np.arange(HORIZON) - SEASON]
        np.testing.assert_array_equal(found["seasonal_naive"][part], seasonal)


@pytest.mark.parametrize("keys", [{}, {"target_minimum": 0}])
def test_repeated_numbers_are_the_tables_own(keys: dict[str, object], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {
        "rain": np.maximum(rng.normal(0, 5, 90), 0).round(1),
        "cases": rng.poisson(30, 90).astype(np.float64),
        "pressure": 101_325 + rng.normal(0, 300, 90).round(2),
    }
    table, data = made(tmp_path, columns, **keys)
    assert (table.targets[data.ends[data.parts["test"]] - 1] == 0).any()
    assert (data.in_units(data.targets) != table.targets).any(), "float32 changes some of them"
    check(table, data)


def test_numbers_below_zero_and_a_test_part_of_zeros_are_the_tables_own(tmp_path: Path) -> None:
    depth = -np.random.default_rng(0).poisson(3, 120).astype(np.float64)
    depth[70:] = 0
    table, data = made(tmp_path, {"depth": depth})
    assert not table.targets[data.ends[data.parts["test"]]].any()
    check(table, data)


def test_numbers_of_more_digits_than_float32_has_are_the_tables_own_too(tmp_path: Path) -> None:
    check(*made(tmp_path, {"full": np.random.default_rng(0).normal(50, 3, 90)}))
