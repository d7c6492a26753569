"""How often the winner's intervals and quantiles held: the same as `predict` gives them, on the test part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from champions import SEVERAL, SINGLE, YIELDS, finish, reported, several, single, yields

from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.read import read_source
from xlstm_tune.data.table import load_table
from xlstm_tune.predict.champion import LEVELS, load_champion
from xlstm_tune.predict.forecasts import forecasts
from xlstm_tune.predict.make import champion_of
from xlstm_tune.search.finals.coverage import interval_rows, quantile_rows
from xlstm_tune.search.finals.finalists import Finalist
from xlstm_tune.search_file import load_spec

ONE = Finalist(0, "lstm", {})
QUANTILES = {"training": {"loss": "quantile", "quantiles": [0.05, 0.3, 0.5, 0.95]}}


def measured(tmp_path: Path, data: dict[str, Any], **sections: Any) -> tuple[Path, list[dict[str, Any]]]:
    """A finished search's folder, and the rows of the coverage table for it."""
    folder = finish(tmp_path / "searches", "one", data, **sections)
    spec = load_spec(str(folder / "spec.yaml"))
    table = load_table(spec.data)
    prepared = prepare(table, spec.data, spec.max_lookback())
    rows = interval_rows(folder, ONE, table, prepared)
    return folder, rows + quantile_rows(folder, ONE, spec, prepared, torch.device("cpu"))


def cells(folder: Path, source: Path, level: float) -> list[tuple[float, dict[str, Any]]]:
    """(what happened, the row that `predict --all` gives for it) of every value of the test part of `several`."""
    made = forecasts(load_champion(champion_of(folder)), read_source([str(source)], {}), level, every=True).table
    found = {(row["shop"], row["day"], row["step"]): row for row in made.to_pylist()}
    told = []
    for row in reported(folder):
        day = str(np.datetime64(row["time"]) + row["step"] - 1)
        told.append((row["actual"], found[row["series"].removeprefix("shop="), day, row["step"]]))
    return told


def test_shares_and_widths_are_those_of_the_intervals_that_predict_gives(tmp_path: Path) -> None:
    source = several(tmp_path)
    folder, rows = measured(tmp_path, SEVERAL | {"source": str(source)})
    assert [(row["kind"], row["level"]) for row in rows] == [("interval", level) for level in LEVELS if level < 0.99]
    for row in rows:
        told = cells(folder, source, row["level"])
        assert row["share"] == pytest.approx(np.mean([mine["lower"] <= y <= mine["upper"] for y, mine in told]))
        assert row["width"] == pytest.approx(np.mean([mine["upper"] - mine["lower"] for _, mine in told]), rel=1e-6)
        assert 4 * row["samples"] == len(told)
    assert len({row["share"] for row in rows}) > 1, "they tell levels apart"


def test_a_minimum_narrows_the_intervals(tmp_path: Path) -> None:
    source = several(tmp_path)
    lowest = min(float(line.rsplit(",", 1)[1] or "inf") for line in source.read_text().splitlines()[1:])
    folder, rows = measured(tmp_path, SEVERAL | {"source": str(source), "target_minimum": lowest - 1.0})
    told = cells(folder, source, 0.95)
    (row,) = (row for row in rows if row["level"] == 0.95)
    assert min(mine["lower"] for _, mine in told) == pytest.approx(lowest - 1.0), "some intervals end there"
    assert row["width"] == pytest.approx(np.mean([mine["upper"] - mine["lower"] for _, mine in told]), rel=1e-6)


def test_quantiles_are_counted_with_the_values_at_them(tmp_path: Path) -> None:
    source = several(tmp_path)
    folder, rows = measured(tmp_path, SEVERAL | {"source": str(source)}, **QUANTILES)
    told = cells(folder, source, 0.9)
    kept = [row for row in rows if row["kind"] == "quantile"]
    assert [row["level"] for row in kept] == [0.05, 0.3, 0.5, 0.95]
    for row in kept:
        assert row["share"] == pytest.approx(np.mean([y <= mine[f"q{row['level']}"] for y, mine in told]))
        assert "width" not in row and 4 * row["samples"] == len(told)


def test_sequences_and_several_targets(tmp_path: Path) -> None:
    folder, rows = measured(tmp_path, YIELDS | {"source": str(yields(tmp_path))})
    made = forecasts(load_champion(champion_of(folder)), read_source([str(tmp_path / "yields.csv")], {}), 0.8).table
    found = {f"field={row['field']}, year={row['year']}": row for row in made.to_pylist()}
    test = reported(folder)
    (row,) = (row for row in rows if row["level"] == 0.8)
    inside = [found[one["series"]]["lower"] <= one["actual"] <= found[one["series"]]["upper"] for one in test]
    assert (row["share"], row["samples"]) == (pytest.approx(np.mean(inside)), len(test))
    assert 0.95 not in {row["level"] for row in rows}, "of six validation sequences none is promised"
    (tmp_path / "more").mkdir()
    folder, rows = measured(tmp_path / "more", SINGLE | {"source": str(single(tmp_path))})
    assert 3 * 2 * rows[0]["samples"] == len(reported(folder))
    assert [row["width"] for row in rows] == [None] * len(rows), "two targets have no mean width"
