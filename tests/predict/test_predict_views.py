"""Tables with text views, as polars writes them, are predicted like those with plain text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as pa_feather
import pytest
from champions import finish

from xlstm_tune.data.read import read_source
from xlstm_tune.predict.champion import load_champion
from xlstm_tune.predict.forecasts import forecasts, source_of
from xlstm_tune.predict.make import champion_of


def table_of(kind: pa.DataType) -> pa.Table:
    days = [str(day) for day in np.arange("2022-01-01", "2022-03-02", dtype="datetime64[D]")]
    sky = ["sun", "rain", "sun"] * 40
    return pa.table(
        {
            "shop": pa.array(["a"] * 60 + ["b"] * 60, kind),
            "day": pa.array(days * 2, kind),
            "sky": pa.array(sky, kind),
            "y": np.random.default_rng(0).normal(size=120),
        }
    )


@pytest.mark.parametrize("searched", [pa.string(), pa.string_view()])
def test_views_of_text_give_the_forecasts_of_text(tmp_path: Path, searched: pa.DataType) -> None:
    path = tmp_path / "x.arrow"
    pa_feather.write_feather(table_of(searched), str(path), compression="uncompressed")
    data = {"source": str(path), "target": "y", "series": "shop", "time": "day", "categories": "sky", "lookback": 4}
    champion = load_champion(champion_of(finish(tmp_path / "searches", "x", data | {"horizon": 2})))
    plain = forecasts(champion, source_of(table_of(pa.string())))
    viewed = forecasts(champion, source_of(table_of(pa.string_view())))
    assert viewed.table == plain.table and viewed.notes == plain.notes and plain.table.num_rows == 4
    pa_feather.write_feather(table_of(pa.string_view()), str(path), compression="uncompressed")
    assert forecasts(champion, read_source([str(path)], {}, champion.data.labels)).table == plain.table
