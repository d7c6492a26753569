"""Inputs that float32 would round to little or nothing are standardised from float64."""

from __future__ import annotations

import tempfile
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from split_tables import make

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.data.windows import Rounded

ROWS = 60
DEVIATIONS = np.random.default_rng(0).normal(size=ROWS)
SPLIT = {"lookback": 2, "split": {"validation": 3, "test": 3}}


@pytest.mark.parametrize(
    "cells",
    [1.7e9 + 20 * DEVIATIONS, 1e-50 * DEVIATIONS, 1e-44 * DEVIATIONS, -3e12 + DEVIATIONS],
    ids=["epoch", "far below float32", "nearly below float32", "large"],
)
def test_what_float32_would_round_is_standardised_exactly(cells: np.ndarray) -> None:
    table, config = make({"x": cells.tolist(), "y": DEVIATIONS.tolist()}, **SPLIT)
    prepared = prepare(table, config)
    train = cells[: ROWS - 6]
    expected = (cells - train.mean()) / train.std()
    assert prepared.feature_names == ("x", "y")
    np.testing.assert_allclose(prepared.features[:, 0], expected, rtol=1e-3, atol=1e-3)
    assert prepared.notes == ()
    assert prepared.scaling is not None and prepared.scaling.inputs.exact == ("x",)
    cells = cells.copy()
    cells[-1] = np.nextafter(cells[-1], np.inf)
    assert make({"x": cells.tolist(), "y": DEVIATIONS.tolist()}, **SPLIT)[0].fingerprint != table.fingerprint


@pytest.mark.parametrize(
    "cells",
    [
        DEVIATIONS,
        1000 + DEVIATIONS,
        np.full(ROWS, 0.1),
        np.full(ROWS, 1e-50),
        np.zeros(ROWS),
        np.arange(2.0**23, 2.0**23 + ROWS),
        np.float32(1.7e9 + 500 * DEVIATIONS).astype(np.float64),
        np.float32(1e30 * DEVIATIONS).astype(np.float64),
    ],
    ids=["usual", "thousands", "0.1", "a constant below float32", "zeros", "whole numbers", "float32", "huge"],
)
def test_other_inputs_are_float32_alone(cells: np.ndarray) -> None:
    table, _ = make({"x": cells.tolist(), "y": DEVIATIONS.tolist()}, **SPLIT)
    assert table.exact == {} and table.cells(0).tolist() == np.float32(cells).astype(np.float64).tolist()


def test_targets_are_never_rounded() -> None:
    table, config = make({"y": (1.7e9 + 20 * DEVIATIONS).tolist()}, **SPLIT)
    assert table.exact == {}
    assert prepare(table, config).features.std() > 0.5


def test_a_value_far_beyond_what_an_input_was_learnt_at_is_no_warning() -> None:
    columns = {"x": (1e-50 * DEVIATIONS).tolist(), "y": (1e-50 * DEVIATIONS).tolist()}
    table, config = make({**columns, "z": DEVIATIONS.tolist()}, features=["x"], **SPLIT)
    scaling = prepare(table, config).scaling
    assert scaling is not None
    far, _ = make({name: np.ones(ROWS).tolist() for name in ("x", "y", "z")}, features=["x"], **SPLIT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        targets = scaling.standardised_targets(far)
        assert np.isinf(targets).all() and np.isinf(scaling.standardised_inputs(far, targets)).all()


def test_the_fingerprint_by_earlier_programs_is_that_of_rounded_inputs() -> None:
    columns = {"x": (1.7e9 + 20 * DEVIATIONS).tolist(), "y": DEVIATIONS.tolist()}
    with tempfile.TemporaryDirectory() as folder:
        pa_parquet.write_table(pa.table(columns), f"{folder}/x.parquet")
        config = DataConfig.parse({"source": f"{folder}/x.parquet", "target": "y", **SPLIT}, "data")
        new, old = (prepare(load_table(config, exact), config) for exact in (None, ()))
    assert new.rounded == Rounded(old.fingerprint, ("x",)) and old.rounded is None
    assert old.fingerprint != new.fingerprint and old.scaling is not None and old.scaling.inputs.exact == ()
