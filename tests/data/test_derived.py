"""Inputs that were made of a regression's target are told of, and others are not."""

from __future__ import annotations

import numpy as np
import pytest
from split_tables import make

from xlstm_tune.data.prepare import prepare

RNG = np.random.default_rng(0)
YEARS = 40
CASES = RNG.poisson(200, YEARS).astype(float)
PEOPLE = 90_000 + 30.0 * np.arange(YEARS)


def notes(column: np.ndarray, **keys: object) -> list[str]:
    """Of sequences of three days whose input `x` has these values, one a sequence or one a day."""
    x = np.repeat(column, 3) if len(column) == YEARS else column
    table, config = make(
        {
            "year": [str(1980 + year) for year in range(YEARS) for _ in range(3)],
            "rain": RNG.normal(size=3 * YEARS).tolist(),
            "x": x.tolist(),
            "cases": np.repeat(CASES, 3).tolist(),
        },
        task="regression",
        sequence=["year"],
        target="cases",
        split={"by": "time", "order": "year"},
        **keys,
    )
    return [note for note in prepare(table, config).notes if "gives it away" in note]


@pytest.mark.parametrize("keys", [{}, {"static": ["x"]}])
@pytest.mark.parametrize("column", [CASES / PEOPLE * 100_000, np.log1p(CASES), -CASES])
def test_a_column_that_follows_the_target_is_told(column: np.ndarray, keys: dict[str, object]) -> None:
    (note,) = notes(column, **keys)
    assert note.startswith("'x' (rank correlation ") and note.endswith("so name that in data.exclude")
    assert " is an input that follows the target 'cases' from sequence to sequence" in note


@pytest.mark.parametrize(
    "column",
    [
        PEOPLE,
        np.roll(CASES, 1),
        CASES + RNG.normal(0, 6, YEARS),
        np.full(YEARS, 3.0),
        np.repeat(CASES, 3) + np.tile([0.0, 0.5, 1.0], YEARS),
    ],
)
def test_what_merely_goes_with_it_is_not(column: np.ndarray) -> None:
    assert notes(column) == []
