"""Which trials have a score, and which of them is best."""

from __future__ import annotations

from typing import Any

from xlstm_tune.ranking import has_score, scored


def row(trial: int, status: str, value: float | None) -> dict[str, Any]:
    return {"trial": trial, "status": status, "val_rmse": value}


def test_the_best_comes_first_and_of_equal_ones_the_one_that_began_first() -> None:
    rows = [
        row(5, "completed", 1.0), row(0, "failed", 0.5), row(1, "duplicate", 0.5), row(2, "pruned", 1.0),
        row(3, "completed", None), row(4, "pruned", 0.9),
    ]  # fmt: skip
    assert [each["trial"] for each in scored(rows, "val_rmse")] == [4, 2, 5]
    assert [each["trial"] for each in rows if has_score(each, "val_rmse")] == [5, 2, 4]
    assert scored([], "val_rmse") == []
