import json
from typing import Any

import pytest

from xlstm_tune.report.contenders import MOST, contenders


def row(trial: int, family: str, value: float | None, pattern: str | None = None, **more: Any) -> dict[str, Any]:
    params = {} if pattern is None else {"model.pattern": pattern}
    return {"trial": trial, "family": family, "status": "completed", "val_rmse": value, "params": params} | more


def numbers(rows: list[dict[str, Any]]) -> list[int]:
    return [one["trial"] for one in contenders(rows, "val_rmse")]


@pytest.mark.parametrize("written", [False, True], ids=["dicts", "JSON"])
def test_contenders_are_the_best_of_each_family_and_pattern_best_first(written: bool) -> None:
    rows = [
        row(0, "lstm", 2.0),
        row(1, "xlstm", 1.9, "sm"),
        row(2, "xlstm", 1.5, "ms"),
        row(3, "xlstm", 1.0, "ms", status="pruned"),
        row(4, "xlstm", 1.4, "sm"),
        row(5, "lstm", 2.0),
        row(6, "slstm", None, status="failed"),
        row(7, "slstm", 0.5, status="duplicate"),
    ]
    if written:
        rows = [one | {"params": json.dumps(one["params"])} for one in rows]
    assert numbers(rows) == [3, 4, 0]


def test_contenders_are_few_but_the_best_of_each_family_is_one() -> None:
    rows = [row(number, "xlstm", 1.0 + number, f"m{'s' * number}") for number in range(MOST + 5)]
    rows += [row(90, "lstm", 100.0), row(91, "lstm", 101.0)]
    assert numbers(rows) == [*range(MOST - 1), 90]
    assert numbers([]) == []
