"""A champion as MLflow loads it takes the table that it was trained on, whatever its columns are made of."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pytest
from champions import SEVERAL, YIELDS, finish, same, several, yields
from mlflow.pyfunc.scoring_server import predictions_to_json

from xlstm_tune.data.read import read_source
from xlstm_tune.predict.champion import load_champion, read_about
from xlstm_tune.predict.forecasts import forecasts
from xlstm_tune.predict.make import champion_of
from xlstm_tune.tracking.models import parts_of

pytestmark = pytest.mark.slow


def loaded(folder: Path, table: Path, data: dict[str, Any], **sections: Any) -> tuple[Any, pd.DataFrame]:
    """The model that MLflow keeps of a finished search, and what `predict` says of the search's table."""
    champion = champion_of(finish(folder / "searches", table.stem, data | {"source": str(table)}, **sections))
    mlflow.pyfunc.save_model(folder / "model", **parts_of(champion, read_about(champion)))
    made = pd.DataFrame(forecasts(load_champion(champion), read_source([str(table)], {})).table.to_pydict())
    return mlflow.pyfunc.load_model(str(folder / "model")), made


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, pd.DataFrame, Path]:
    """A regression with whole numbers as keys, one of them a year."""
    folder = tmp_path_factory.mktemp("fields")
    table = yields(folder)
    return *loaded(folder, table, YIELDS), table


def test_the_table_that_it_was_trained_on_is_taken(fields: tuple[Any, pd.DataFrame, Path]) -> None:
    model, wanted, place = fields
    table = pd.read_csv(place)
    assert table["year"].dtype == "int64"
    pd.testing.assert_frame_equal(model.predict(table), wanted, rtol=1e-6)
    pd.testing.assert_frame_equal(model.predict(table.drop(columns="t")), wanted, rtol=1e-6)


@pytest.mark.parametrize("index", ["day", ["field", "year", "day"]])
def test_an_index_with_a_name_is_a_column(fields: tuple[Any, pd.DataFrame, Path], index: str | list[str]) -> None:
    model, wanted, place = fields
    table = pd.read_csv(place)
    pd.testing.assert_frame_equal(model.predict(table.set_index(index)), wanted, rtol=1e-6)
    pd.testing.assert_frame_equal(model.predict(table.set_index("day", drop=False)), wanted, rtol=1e-6)


@pytest.mark.parametrize("kinds", [{"field": str, "year": float}, {"area": int}, {"rain": str}, {"soil": "category"}])
def test_numbers_keys_and_text_may_be_of_any_kind(
    fields: tuple[Any, pd.DataFrame, Path], kinds: dict[str, Any]
) -> None:
    model, wanted, place = fields
    made = model.predict(pd.read_csv(place).astype(kinds))
    same(made["predicted"].tolist(), wanted["predicted"].tolist())


def test_intervals_that_there_are_none_of_are_null_in_a_servers_answer(
    fields: tuple[Any, pd.DataFrame, Path],
) -> None:
    model, wanted, place = fields
    answer = io.StringIO()
    predictions_to_json(model.predict(pd.read_csv(place), params={"level": 0.999}), answer)
    rows = json.loads(answer.getvalue(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))["predictions"]
    assert [(row["lower"], row["upper"]) for row in rows] == [(None, None)] * len(wanted)
    same([row["predicted"] for row in rows], wanted["predicted"].tolist())


def test_whole_numbers_are_taken_for_the_target_and_dates_for_the_time(tmp_path: Path) -> None:
    table = pd.read_csv(several(tmp_path)).assign(shop=lambda rows: rows["shop"].map({"a": 1, "b": 2, "c": 3}))
    table = table.assign(sold=table["sold"].ffill().round().astype(int), size=table["size"].astype(int))
    table.to_csv(tmp_path / "counted.csv", index=False)
    model, wanted = loaded(tmp_path, tmp_path / "counted.csv", SEVERAL)
    pd.testing.assert_frame_equal(model.predict(pd.read_csv(tmp_path / "counted.csv")), wanted, rtol=1e-6)
    made = model.predict(table.assign(day=pd.to_datetime(table["day"])))
    same(made["predicted"].tolist(), wanted["predicted"].tolist())
    assert model.predict(model.input_example)["shop"].unique().tolist() == [wanted["shop"][0]]
    assert model.metadata.metadata == {"columns": ["day", "shop", "weather", "sold", "size"]}


def test_what_is_wrong_is_one_sentence_of_the_models_own(fields: tuple[Any, pd.DataFrame, Path]) -> None:
    model, _, place = fields
    table = pd.read_csv(place)
    with pytest.raises(mlflow.exceptions.MlflowException, match=r"^the request lacks the column 'soil', which"):
        model.predict(table.drop(columns="soil"))
    with pytest.raises(mlflow.exceptions.MlflowException, match=r"^column 'rain' holds text"):
        model.predict(table.assign(rain="much"))
    with pytest.raises(mlflow.exceptions.MlflowException, match="it has more than one column named 'rain'"):
        model.predict(pd.concat([table, table[["rain"]]], axis=1))
    with pytest.raises(mlflow.exceptions.MlflowException, match=r"^the request is no table"):
        model.predict("a word")
