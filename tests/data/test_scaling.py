"""Notes on what standardising cannot mend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from split_tables import make

from xlstm_tune.data.prepare import prepare


def notes(cells: list[float], **keys: Any) -> tuple[str, ...]:
    """Of a forecast whose input x has these cells."""
    y = np.random.default_rng(1).normal(size=len(cells)).tolist()
    table, config = make({"x": cells, "y": y}, **{"lookback": 2, "split": {"validation": 3, "test": 3}} | keys)
    return prepare(table, config).notes


@pytest.mark.parametrize("rows", [40, 4000])
def test_a_value_that_drowns_the_others_is_told(rows: int) -> None:
    cells = np.random.default_rng(0).normal(5, 2, rows)
    assert notes(cells.tolist()) == ()
    cells[7] = 1e30
    (note,) = notes(cells.tolist())
    assert note == (
        "a value lies so far from the rest of the training part that it hides how the rest differs: 'x' 1e+30 in row 8 "
        "of the data; mend what is wrong"
    )
    # In the test part it says nothing to the scaling, and all to the figures.
    cells[7], cells[-1] = 5, 1e30
    (note,) = notes(cells.tolist())
    assert note.startswith("outside of the training part a value lies") and f"'x' 1e+30 in row {rows} of" in note


def test_a_target_that_drowns_the_others_is_told() -> None:
    assert notes([row + 0.5 for row in range(40)], target="x") == ()
    (note,) = notes([0.0, -1e9, *map(float, range(38))], target="x")
    assert "'x' -1e+09 in row 2 of the data" in note


def test_one_event_in_a_column_of_zeros_is_no_mistake() -> None:
    cells = [0.0] * 4000
    cells[7] = 1.0
    assert notes(cells) == ()
