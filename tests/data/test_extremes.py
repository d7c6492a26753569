"""Values that may stand for blanks: told where they hide the rest, and not where a column is merely uneven."""

from __future__ import annotations

import numpy as np
import pytest
from split_tables import make

from xlstm_tune.data.prepare import prepare


def notes(x: np.ndarray, y: np.ndarray | None = None) -> tuple[str, ...]:
    """Of a forecast of y with the input x."""
    y = np.random.default_rng(1).normal(size=len(x)) if y is None else y
    split = {"validation": 20, "test": 20}
    table, config = make({"x": x.tolist(), "y": y.tolist()}, lookback=2, split=split)
    return prepare(table, config).notes


def with_codes(cells: np.ndarray, code: float, times: int) -> np.ndarray:
    cells[np.random.default_rng(2).choice(len(cells) - 40, times, replace=False)] = code
    return cells


def normal(mean: float = 5, deviation: float = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(mean, deviation, 400)


@pytest.mark.parametrize(
    ("cells", "code"),
    [
        (normal(), -9999.0),
        (normal(15, 10), -99.9),
        (np.random.default_rng(0).uniform(0, 120, 400), -99.0),
        (normal(1013, 8), 9999.0),
        (normal(), 9.96921e36),
        (normal(), 32767.0),
    ],
)
@pytest.mark.parametrize("times", [2, 12, 120])
def test_a_code_that_comes_again_and_again_is_told(cells: np.ndarray, code: float, times: int) -> None:
    (note,) = notes(with_codes(cells.copy(), code, times))
    assert note.startswith(f"in the training part 'x' is {code:g} in {times} rows and ")
    assert note.endswith(" in all others; if that stands for a blank, leave such cells empty and set data.missing")


def test_a_single_one_of_nines_too_and_in_the_target() -> None:
    (note,) = notes(normal(), with_codes(np.random.default_rng(3).poisson(4, 400).astype(float), -99.0, 1))
    assert note.startswith("in the training part 'y' is -99 in 1 row and 0 to ")


@pytest.mark.parametrize("at", [370, 395])
def test_a_value_outside_of_the_training_part_is_told(at: int) -> None:
    cells = normal()
    cells[at] = 1e4
    (note,) = notes(cells)
    assert note.startswith("outside of the training part a value lies more than 1,000 of its deviations away, ")
    assert f": 'x' 10000 in row {at + 1} of the data; " in note
    cells[at] = 1e3
    assert not notes(cells)
    cells[at] = 1e4
    y = np.random.default_rng(1).normal(size=400)
    split = {"train": 200, "validation": 20, "test": 20}  # the rows behind are in no part
    table, config = make({"x": cells.tolist(), "y": y.tolist()}, lookback=2, split=split)
    assert not [note for note in prepare(table, config).notes if "outside of the training part" in note]


def test_targets_of_a_regression_are_looked_at() -> None:
    years = [str(1900 + year) for year in range(60) for _ in range(3)]
    cases = with_codes(np.arange(60.0) % 17, -999.0, 4)

    def of_cases(cases: np.ndarray) -> list[str]:
        x = np.random.default_rng(0).normal(size=180).tolist()
        table, config = make(
            {"year": years, "x": x, "cases": np.repeat(cases, 3).tolist()},
            task="regression",
            sequence=["year"],
            target="cases",
            split={"by": "time", "order": "year"},
        )
        return [note for note in prepare(table, config).notes if "cases" in note]

    (note,) = of_cases(cases)
    assert "'cases' is -999 in " in note and " sequences and 0 to 16 in all others" in note
    _, note = of_cases(np.append(np.arange(59.0) % 17, 1e6))
    assert "outside of the training part" in note and "'cases' 1e+06 in a sequence; mend" in note


@pytest.mark.parametrize(
    "cells",
    [
        np.random.default_rng(0).poisson(0.1, 400).astype(float),
        np.random.default_rng(0).lognormal(0, 2, 400),
        np.random.default_rng(0).choice([0.0, 1.0, 2.0], 400),
        np.random.default_rng(0).choice([0.0, 99.0], 400),
        np.where(np.arange(400) % 50, 0.0, np.arange(400.0) + 50),
        np.arange(400.0) % 100,
        np.where(np.arange(400) % 3, np.arange(400.0) % 20 / 10 + 20, 0.0),
        np.random.default_rng(0).choice([1.0, 2.0, 12.0], 400),
        np.random.default_rng(0).choice([2.49, 2.99, 9.99], 400),
        with_codes(np.random.default_rng(0).uniform(0, 6.5, 400), 9.9, 1),
        with_codes(np.arange(400.0) % 60, 99.0, 1),
        with_codes(np.random.default_rng(0).uniform(0.6, 25, 400), -9.9, 1),
    ],
)
def test_what_is_merely_uneven_is_not(cells: np.ndarray) -> None:
    assert notes(cells) == ()
