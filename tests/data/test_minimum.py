"""The least value of a target: refusals, the sentence on counts, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from split_tables import make
from table_files import one_sentence

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.data.windows import Prepared
from xlstm_tune.errors import DataError
from xlstm_tune.models.baselines import baselines

KEYS = {"lookback": 2, "horizon": 2, "split": {"validation": 8, "test": 8}}


def counts(rows: int = 60) -> np.ndarray:
    """Waves that lie at zero half of the time."""
    noise = np.random.default_rng(0).normal(size=rows)
    return np.maximum(60 * np.sin(np.arange(rows) / 1.5) + 5 * noise, 0).round().astype(int)


def prepared(cells: list[float], **keys: object) -> Prepared:
    table, config = make({"cases": cells, "x": list(range(len(cells)))}, **KEYS | {"target": "cases"} | keys)
    return prepare(table, config)


def test_no_baseline_goes_below_the_minimum_and_no_other_number_changes() -> None:
    free, held = prepared(counts().tolist()), prepared(counts().tolist(), target_minimum=0)
    cut = 0
    for one, other in zip(baselines(free), baselines(held), strict=True):
        for part in ("validation", "test"):
            np.testing.assert_allclose(other.predictions[part], np.maximum(one.predictions[part], 0), atol=1e-6)
            assert (other.predictions[part] >= 0).all()
            cut += int((one.predictions[part] < 0).sum())
    assert cut, "the data should have forecasts below zero"


def test_a_value_below_the_minimum_is_refused_with_its_place(tmp_path: Path) -> None:
    cells = counts().tolist()
    cells[41] = -3
    with pytest.raises(DataError) as error:
        prepared(cells, target_minimum=0)
    assert one_sentence(error) == (
        "the target 'cases' is -3 in row 42, below data.target_minimum of 0; mend the value, or lower the minimum or "
        "leave it out"
    )
    prepared(cells, target_minimum=-3)
    lines = [f"{county},{day},{county + day},{county - 2}" for county in range(12) for day in range(4)]
    (tmp_path / "x.csv").write_text("\n".join(["county,day,rain,cases", *lines]) + "\n")
    config = DataConfig.parse(
        {
            "source": str(tmp_path / "x.csv"), "task": "regression", "sequence": "county", "target": "cases",
            "target_minimum": 0, "split": {"by": "county"},
        },
        "data",
    )  # fmt: skip
    with pytest.raises(
        DataError, match=r"'cases' is -2 in the sequence county=0, below data.target_minimum of 0, as 1 more are; mend"
    ):
        prepare(load_table(config), config)


def test_counts_without_a_minimum_are_told_of() -> None:
    cells = counts().tolist()
    said = "'cases' holds whole numbers, none below zero; with data.target_minimum: 0 no forecast goes below it either"
    assert said in prepared(cells).notes
    for others, keys in (
        (cells, {"target_minimum": 0}),
        ([cell + 0.5 for cell in cells], {}),
        ([cell - 20.0 for cell in cells], {}),
        ([cell + 1000.0 for cell in cells], {}),
    ):
        assert said not in prepared(others, **keys).notes


def test_searches_from_before_there_was_a_minimum_go_on() -> None:
    """The fingerprint of data without one is what it was."""
    cells = counts().tolist()
    assert prepared(cells).fingerprint == prepared(cells, target_minimum=None).fingerprint
    assert prepared(cells).fingerprint != prepared(cells, target_minimum=0).fingerprint


def test_what_was_cut_off_is_the_minimum_itself_and_so_is_an_observed_zero() -> None:
    """0 and not 2e-8, which would be above a count of 0."""
    data = prepared(counts().tolist(), target_minimum=0)
    floor = np.array(data.floor, dtype=np.float32)
    assert float(floor[0]) * data.target_std[0] + data.target_mean[0] != 0, "the data should show the rounding"
    assert (data.in_units(np.stack([floor, floor - 1, floor + 1]))[:2] == 0).all()
    observed = data.in_units(data.targets)[:, 0]
    np.testing.assert_array_equal(observed == 0, counts() == 0)


def test_a_column_of_float32_holds_the_minimum_as_it_can() -> None:
    cells = np.maximum(counts() / 60, 0.7).astype(np.float32).astype(float)
    assert cells.min() < 0.7
    prepared(cells.tolist(), target_minimum=0.7)
