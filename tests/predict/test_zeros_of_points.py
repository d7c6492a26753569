"""Names with a point, such as 008.45, are those of the search however a table has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from champions import SEVERAL, finish, several

from xlstm_tune.data.read import Source, read_source
from xlstm_tune.predict.champion import Champion, load_champion
from xlstm_tune.predict.forecasts import source_of
from xlstm_tune.predict.make import champion_of
from xlstm_tune.predict.zeros import with_zeros

CODES = {"a": "008.45", "b": "250.10", "c": "7.5"}


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Champion, Path]:
    """Shops by codes."""
    folder = tmp_path_factory.mktemp("coded")
    table = pd.read_csv(several(folder))
    table.assign(shop=table["shop"].map(CODES)).to_csv(folder / "coded.csv", index=False)
    done = finish(folder / "searches", "coded", SEVERAL | {"source": str(folder / "coded.csv")})
    return load_champion(champion_of(done)), folder / "coded.csv"


def shops(champion: Champion, source: Source) -> list[Any]:
    return sorted(with_zeros(champion, source).table.column("shop").unique().to_pylist())


def searched(champion: Champion, names: list[str], kind: str) -> Champion:
    """As if the search had shops of these names and this type."""
    inputs = [one | {"type": kind} if one["name"] == "shop" else one for one in champion.about["serving"]["inputs"]]
    return replace(
        champion,
        residuals=replace(champion.residuals, names=tuple(f"shop={name}" for name in names)),
        about=champion.about | {"serving": champion.about["serving"] | {"inputs": inputs}},
    )


def test_numbers_are_the_codes_of_the_search(coded: tuple[Champion, Path]) -> None:
    champion, place = coded
    assert set(champion.residuals.names) == {f"shop={code}" for code in CODES.values()}
    read = source_of(pa.Table.from_pandas(pd.read_csv(place)))
    assert pa.types.is_floating(read.table.schema.field("shop").type)
    assert shops(champion, read) == sorted(CODES.values())
    assert shops(champion, read_source([str(place)], {}, champion.data.labels)) == sorted(CODES.values())


def test_codes_are_the_numbers_of_an_earlier_search(coded: tuple[Champion, Path]) -> None:
    """Which read them as such."""
    champion, place = coded
    earlier = searched(champion, [f"{float(code):g}" for code in CODES.values()], "double")
    assert shops(earlier, read_source([str(place)], {}, champion.data.labels)) == ["250.1", "7.5", "8.45"]
    given = pd.read_csv(place, dtype={"shop": str})
    both = pd.concat([given, given.assign(shop=given["shop"].replace({"7.5": "250.1"}))])
    found = shops(earlier, source_of(pa.Table.from_pandas(both, preserve_index=False)))
    assert found == ["250.1", "250.10", "7.5", "8.45"], "where a table has both, they are two names"


def test_whole_numbers_among_codes_lose_their_zeros_as_in_an_earlier_search(coded: tuple[Champion, Path]) -> None:
    champion, _ = coded
    earlier = searched(champion, ["7", "8.45", "1e+17"], "double")
    texts = ["007", "008.45", "0011", "100000000000000001"]
    assert shops(earlier, source_of(pa.table({"shop": texts}))) == ["0011", "100000000000000001", "7", "8.45"]


@pytest.mark.parametrize(("kind", "new"), [(pa.int64(), "100000000000000002"), (pa.float64(), "1e+17")])
def test_a_long_number_is_no_other_of_the_search(coded: tuple[Champion, Path], kind: pa.DataType, new: str) -> None:
    """Also where both are one as floats."""
    champion, _ = coded
    longs = searched(champion, ["100000000000000001", "0100000000000000500", "04"], "string")
    given = pa.array([100000000000000002, 4]).cast(kind, safe=False)
    assert shops(longs, source_of(pa.table({"shop": given}))) == ["04", new]
    given = pa.array([100000000000000500, 100000000000000001])
    assert shops(longs, source_of(pa.table({"shop": given}))) == ["0100000000000000500", "100000000000000001"]
