"""A champion standardises new rows as those that it learnt from: from float64 what float32 would have rounded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from champions import finish

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.data.windows import Rounded
from xlstm_tune.errors import StorageError
from xlstm_tune.layout import ABOUT
from xlstm_tune.predict.champion import load_champion, read_about
from xlstm_tune.predict.forecasts import Forecasts, forecasts, source_of
from xlstm_tune.predict.make import champion_of
from xlstm_tune.search.persistence.folder import check_same_data

ROWS = 80
X = 1.7e9 + 20 * np.random.default_rng(0).normal(size=ROWS)
Y = np.roll(X, 1) - 1.7e9


def table_of(x: np.ndarray) -> pa.Table:
    return pa.table({"x": x, "y": Y})


def predict(champion: Path, x: np.ndarray, rows: int = ROWS) -> Forecasts:
    return forecasts(load_champion(champion), source_of(table_of(x).slice(ROWS - rows)))


def values(made: Forecasts) -> list[float]:
    return list(made.table.column("predicted").to_pylist())


def test_a_new_table_is_standardised_like_the_search(tmp_path: Path) -> None:
    source = tmp_path / "x.parquet"
    pa_parquet.write_table(table_of(X), source)
    data = {"source": str(source), "target": "y", "lookback": 4, "horizon": 2, "split": {"test": 0.2}}
    champion = champion_of(finish(tmp_path / "searches", "x", data))
    about = json.loads((champion / ABOUT).read_text())
    assert about["inputs"]["exact"] == ["x"] and about["learnt"]["limits"]["x"][0] < about["learnt"]["limits"]["x"][1]
    whole = predict(champion, X)
    assert values(whole) == values(predict(champion, X, rows=4)) and whole.notes == ()
    moved = X.copy()
    moved[-1] += 30  # float32 knows 1.7e9 and 1.7e9 + 128
    assert values(predict(champion, moved)) != values(whole)
    # Spread over more than float32 rounds, the column is still standardised from float64, by the champion's word.
    moved[0] = 0
    assert any(note.startswith("column 'x' holds 0, ") for note in predict(champion, moved).notes)
    assert values(predict(champion, moved, rows=8)) == values(predict(champion, moved))


def test_earlier_programs_refuse_a_champion_that_they_would_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {}
    for name, x in (("far", X), ("near", X - 1.7e9)):
        source = tmp_path / f"{name}.parquet"
        pa_parquet.write_table(table_of(x), source)
        data = {"source": str(source), "target": "y", "lookback": 4, "horizon": 2, "split": {"test": 0.2}}
        made[name] = champion_of(finish(tmp_path / "searches", name, data))
    monkeypatch.setattr("xlstm_tune.predict.champion.SCHEMA", 3)
    assert load_champion(made["near"]).about["schema"] == 2
    with pytest.raises(StorageError, match=r"has schema 4 of xlstm_tune .*; use the program that wrote it"):
        load_champion(made["far"])


def test_a_search_of_an_earlier_program_gets_the_champion_that_rounds(tmp_path: Path) -> None:
    source = tmp_path / "x.parquet"
    pa_parquet.write_table(table_of(X), source)
    data = {"source": str(source), "target": "y", "lookback": 4, "horizon": 2, "split": {"test": 0.2}}
    search = finish(tmp_path / "searches", "x", data, exact=())
    champion = champion_of(search)
    about = json.loads((champion / ABOUT).read_text())
    assert about["schema"] == 2 and "exact" not in about["inputs"]
    assert values(predict(champion, X)) == values(predict(champion, X.astype(np.float32).astype(np.float64)))


def test_the_refusal_to_resume_a_search_of_an_earlier_program_names_what_it_rounded(tmp_path: Path) -> None:
    source = tmp_path / "x.parquet"
    pa_parquet.write_table(table_of(X), source)
    data = {"source": str(source), "target": "y", "lookback": 4, "horizon": 2, "split": {"test": 0.2}}
    search = finish(tmp_path / "searches", "x", data, exact=())
    config = DataConfig.parse(data, "data")
    prepared = prepare(load_table(config), config)
    with pytest.raises(StorageError, match=r"which rounded the input 'x' to float32, so .*; go on with that version"):
        check_same_data(search, prepared.fingerprint, prepared.rounded)
    with pytest.raises(StorageError, match="have changed since it began"):
        check_same_data(search, "another", Rounded("a third", ("x",)))


def test_a_champion_of_an_earlier_program_rounds_as_it_did(tmp_path: Path) -> None:
    source = tmp_path / "x.parquet"
    pa_parquet.write_table(table_of(X), source)
    data = {"source": str(source), "target": "y", "lookback": 4, "horizon": 2, "split": {"test": 0.2}}
    champion = champion_of(finish(tmp_path / "searches", "x", data))
    about = read_about(champion)
    del about["inputs"]["exact"]
    (champion / ABOUT).write_text(json.dumps(about))
    rounded = X.astype(np.float32).astype(np.float64)
    assert values(predict(champion, X)) == values(predict(champion, rounded))
