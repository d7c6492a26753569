"""What is said of a new table that is unlike the one that the model learnt from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from champions import SINGLE, YIELDS, finish, single, yields

from xlstm_tune.data.read import read_source
from xlstm_tune.errors import DataError
from xlstm_tune.predict.champion import Champion, load_champion
from xlstm_tune.predict.forecasts import forecasts, source_of
from xlstm_tune.predict.make import champion_of

Case = tuple[Champion, pa.Table]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Case:
    place = tmp_path_factory.mktemp("one")
    table = single(place)
    done = finish(place / "searches", "one", SINGLE | {"source": str(table)})
    return load_champion(champion_of(done)), read_source([str(table)], {}).table


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Case:
    place = tmp_path_factory.mktemp("fields")
    table = yields(place)
    done = finish(place / "searches", "fields", YIELDS | {"source": str(table)})
    return load_champion(champion_of(done)), read_source([str(table)], {}).table


def changed(table: pa.Table, name: str, change: Callable[[pa.ChunkedArray], object]) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, change(table[name]))


def notes(case: Case, table: pa.Table) -> list[str]:
    return list(forecasts(case[0], source_of(table), 0.5).notes)


def in_autumn(days: pa.ChunkedArray) -> pa.Array:
    """The same days 200 later, as text."""
    return pa.array([str(np.datetime64(str(day)[:10]) + 200) for day in days.to_pylist()])


def test_the_searchs_own_table_is_like_itself(one: Case, fields: Case) -> None:
    assert notes(one, one[1]) == [] == notes(fields, fields[1])


def test_a_value_far_outside_what_was_learnt_from_is_told(one: Case, fields: Case) -> None:
    (note,) = notes(fields, changed(fields[1], "rain", lambda cells: pc.multiply(cells, 1e6)))
    assert note.startswith("column 'rain' holds ") and "standard deviations from the mean" in note
    (note,) = notes(one, changed(one[1], "y", lambda cells: pc.multiply(cells, 1000)))
    assert note.startswith("column 'y' holds ")


def test_a_part_of_the_year_that_was_not_learnt_from_is_told_as_that(tmp_path: Path) -> None:
    days = np.datetime64("2022-01-01") + np.arange(140)
    values = np.sin(np.arange(140)).round(3)
    table = tmp_path / "spring.csv"
    table.write_text("day,y\n" + "\n".join(f"{day},{value}" for day, value in zip(days, values, strict=True)) + "\n")
    data = {"source": str(table), "time": {"column": "day"}, "target": "y", "calendar": ["year", "week"]}
    done = finish(tmp_path / "searches", "spring", data | {"lookback": 10, "horizon": 2})
    case = load_champion(champion_of(done)), read_source([str(table)], {}).table
    assert notes(case, case[1]) == []
    later = changed(case[1], "day", in_autumn)
    assert notes(case, later) == ["rows lie in parts of the year that the model has not learnt from"]


def test_sequences_of_another_length_or_step_are_told(fields: Case) -> None:
    days = pc.cast(pc.day(fields[1]["day"]), pa.int64())
    half = notes(fields, fields[1].filter(pc.less(days, 7)))
    assert half == [
        "30 of 30 sequences are far from as long as those that the model learnt from, which have 12 to 15 rows; the "
        "first is field=0, year=2000 with 6 rows"
    ]
    rare = notes(fields, fields[1].filter(pc.equal(pc.bit_wise_and(days, 1), 1)))
    assert any("the rows are 2 d apart, and the model learnt from rows 1 d apart" in note for note in rare)


@pytest.mark.parametrize(
    ("name", "cells", "said"),
    [
        ("rain", None, "column 'rain' has no values at all; mend it, for the model needs what it had"),
        ("soil", None, "column 'soil' has no values at all; mend it, for the model needs what it had"),
        ("rain", "much", "column 'rain' holds text (\"much\" in row 1); mend it, for the model needs what it had"),
    ],
)
def test_a_remedy_helps_where_there_is_no_search_file(fields: Case, name: str, cells: str | None, said: str) -> None:
    table = changed(fields[1], name, lambda column: pa.array([cells] * len(column)))
    with pytest.raises(DataError) as caught:
        forecasts(fields[0], source_of(table))
    assert str(caught.value).startswith(said) and "data." not in str(caught.value)


def test_a_blank_cell_and_a_row_that_is_there_twice_have_their_own_remedies(one: Case, fields: Case) -> None:
    with pytest.raises(DataError, match=r"^column 'x' has 1 blank cell in row 1; mend it, for the model"):
        forecasts(one[0], source_of(changed(one[1], "x", lambda cells: pa.array([None, *cells.to_pylist()[1:]]))))
    with pytest.raises(DataError, match=r"has two rows .*; remove one of them$"):
        forecasts(fields[0], source_of(pa.concat_tables([fields[1], fields[1].slice(0, 1)])))
