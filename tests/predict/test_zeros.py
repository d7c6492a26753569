"""Names with zeros before them are those of the search, also where they come as whole numbers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from champions import SEVERAL, finish, several

from xlstm_tune.data.read import read_source
from xlstm_tune.predict.champion import Champion, load_champion
from xlstm_tune.predict.forecasts import forecasts, source_of
from xlstm_tune.predict.make import champion_of


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Champion, Path]:
    """Shops and weather by numbers, some of them with a zero; 7 is beside 07, and 3 has none."""
    folder = tmp_path_factory.mktemp("numbered")
    table = pd.read_csv(several(folder))
    shops, weather = {"a": "01", "b": "07", "c": "7"}, {"sun": "01", "rain": "3", "snow": "3"}
    table.assign(shop=table["shop"].map(shops), weather=table["weather"].map(weather)).to_csv(
        folder / "numbered.csv", index=False
    )
    done = finish(folder / "searches", "numbered", SEVERAL | {"source": str(folder / "numbered.csv")})
    return load_champion(champion_of(done)), folder / "numbered.csv"


@pytest.mark.parametrize("kind", ["int64", "float64", "Int32"])
def test_whole_numbers_are_the_names_of_the_search(numbered: tuple[Champion, Path], kind: str) -> None:
    champion, place = numbered
    both = forecasts(champion, read_source([str(place)], {}, champion.data.labels)).table.to_pylist()
    wanted = [row for row in both if row["shop"] == "01"]
    rows = pd.read_csv(place, dtype=str).astype({"sold": float, "size": float})
    rows = rows[rows["shop"] == "01"]
    given = source_of(pa.Table.from_pandas(rows.astype({"shop": float, "weather": float}).astype({"weather": kind})))
    made = forecasts(champion, given)
    assert not any("weather" in note or "shop" in note for note in made.notes)
    for name in ("predicted", "lower", "upper"):
        assert made.table.column(name).to_pylist() == pytest.approx([row[name] for row in wanted])
    whole = source_of(pa.Table.from_pandas(rows.astype({"shop": int, "weather": int})))
    assert forecasts(champion, whole).table.column("shop").to_pylist() == [1, 1, 1, 1]


def test_a_number_that_stands_for_two_names_is_itself(numbered: tuple[Champion, Path]) -> None:
    champion, place = numbered
    both = forecasts(champion, read_source([str(place)], {}, champion.data.labels)).table.to_pylist()
    rows = pd.read_csv(place, dtype={"shop": str})
    seven = rows[rows["shop"] == "7"].astype({"shop": int})
    made = forecasts(champion, source_of(pa.Table.from_pandas(seven))).table.to_pylist()
    assert [row["lower"] for row in made] == pytest.approx([row["lower"] for row in both if row["shop"] == "7"])
