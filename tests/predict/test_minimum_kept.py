"""With `data.target_minimum` no forecast, quantile or interval goes below it: in the search's tables and in service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from champions import finish, reported, write_csv

from xlstm_tune.data.read import read_source
from xlstm_tune.predict.champion import load_champion
from xlstm_tune.predict.forecasts import forecasts
from xlstm_tune.predict.make import champion_of


@pytest.mark.parametrize("loss", ["mse", "quantile"])
def test_nothing_goes_below_zero(tmp_path: Path, loss: str) -> None:
    rng = np.random.default_rng(0)
    values = {"cases": (rng.poisson(0.7, 240) * 30).tolist(), "rain": rng.normal(size=240).round(3).tolist()}
    path = write_csv(tmp_path / "cases.csv", values)
    data: dict[str, Any] = {"source": str(path), "target": "cases", "lookback": 4, "horizon": 2}
    options = {"loss": loss, "epochs": 3} | ({"quantiles": [0.1, 0.5, 0.9]} if loss == "quantile" else {})
    tables = {}
    for name, more in (("free", {}), ("held", {"target_minimum": 0})):
        folder = finish(tmp_path / "searches", name, data | more, training=options)
        champion = load_champion(champion_of(folder))
        made = forecasts(champion, read_source([str(path)], {}), every=True).table
        tables[name] = made
        shown = {(row["time"], row["step"]): row["predicted"] for row in reported(folder)}
        served = {(str(int(row["origin"]) + 1), row["step"]): row for row in made.to_pylist()}
        assert shown
        for (time, step), number in shown.items():
            assert served[time, step]["predicted"] == pytest.approx(number, abs=1e-4)
        about = json.loads((folder / "champion" / "champion.json").read_text())
        # Programs from before there was a minimum read what has none, and refuse the other.
        assert (about["schema"], about["data"].get("target_minimum", "none")) == ((2, "none"), (3, 0.0))[name == "held"]
    numbers = [column for column in tables["held"].column_names if column in ("predicted", "lower", "upper")]
    numbers += [column for column in tables["held"].column_names if column.startswith("q")]
    assert len(numbers) == (6 if loss == "quantile" else 3)
    below = 0
    for column in numbers:
        free, held = (np.array(tables[name][column].to_pylist(), dtype=float) for name in ("free", "held"))
        assert (held >= 0).all(), column
        below += int((free < 0).sum())
        if column == "predicted":  # the weights are the same
            np.testing.assert_allclose(held, np.maximum(free, 0), atol=1e-4)
    assert below > 20
