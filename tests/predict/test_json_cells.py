"""Cells as JSON has them, which knows no dates and mixes true with numbers: `served.py` takes or refuses them well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from champions import SEVERAL, finish, same, several
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import dataframe_from_parsed_json

from xlstm_tune.errors import DataError
from xlstm_tune.predict.champion import load_champion
from xlstm_tune.predict.make import champion_of
from xlstm_tune.predict.served import ChampionModel, _table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the table of `several`, and a search of it."""
    place = tmp_path_factory.mktemp("served")
    finish(place / "searches", "several", SEVERAL | {"source": str(several(place))})
    return place


@pytest.fixture
def model(folder: Path) -> ChampionModel:
    served = ChampionModel()
    served.champion = load_champion(champion_of(folder / "searches" / "several"))
    return served


def asked(table: pd.DataFrame) -> pd.DataFrame:
    """What MLflow's server makes of the JSON that pandas writes, with dates as text."""
    body = json.loads(table.to_json(orient="split", date_format="iso"))
    frame: pd.DataFrame = dataframe_from_parsed_json(body, "split")
    return frame


def test_dates_that_pandas_wrote_as_numbers_are_refused_with_what_to_do(folder: Path, model: ChampionModel) -> None:
    table = pd.read_csv(folder / "several.csv", parse_dates=["day"])
    numbers = table.assign(day=(table["day"] - pd.Timestamp(0)) // pd.Timedelta(milliseconds=1))  # as pandas < 4 has it
    with pytest.raises(MlflowException) as caught:
        model.predict(None, asked(numbers))
    said = str(caught.value)
    assert "the time column 'day' holds numbers (16" in said
    assert said.endswith('; write dates as text such as 2021-05-14 (pandas: to_json(..., date_format="iso"))')
    made = model.predict(None, asked(table))
    wanted = model.predict(None, pd.read_csv(folder / "several.csv"))
    same(made["predicted"].tolist(), wanted["predicted"].tolist())


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        ([True, True, 0, 1], [1, 1, 0, 1]),
        ([True, None, 0.5, False], [1.0, None, 0.5, 0.0]),
        ([True, False, True, None], [True, False, True, None]),
        ([2, 0, 1, 1], [2, 0, 1, 1]),
        ([True, "big", 0, None], ["True", "big", "0", None]),
        ([True, [1], 0, None], ["True", "[1]", "0", None]),
    ],
)
def test_true_is_one_among_numbers_and_text_among_text(cells: list[Any], wanted: list[Any]) -> None:
    frame = dataframe_from_parsed_json([{"size": cell} for cell in cells], "records")
    made = _table(frame)["size"].to_pylist()
    assert made == wanted and [type(cell) for cell in made] == [type(cell) for cell in wanted]


@pytest.mark.parametrize("cells", [[2**70], [True, 2**70]])
def test_a_number_that_no_column_holds_is_the_requests_fault(cells: list[Any]) -> None:
    with pytest.raises(DataError, match=r"^the request is no table \(Python int too large"):
        _table(pd.DataFrame({"size": cells}))


def test_a_column_of_true_and_numbers_is_one_of_numbers(folder: Path, model: ChampionModel) -> None:
    table = pd.read_csv(folder / "several.csv")
    mixed = table.assign(size=[True if size == 1 else size for size in table["size"]])
    assert mixed["size"].dtype == object
    same(model.predict(None, mixed)["predicted"].tolist(), model.predict(None, table)["predicted"].tolist())
