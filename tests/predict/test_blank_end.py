"""Rows without a target at the end of a series: forecasts begin after the last row that has one."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from champions import SEVERAL, SINGLE, YIELDS, arrow, example_request, finish, several, single, write_csv, yields
from typer.testing import CliRunner

from xlstm_tune.data.read import read_source
from xlstm_tune.data.table import make_table
from xlstm_tune.errors import DataError
from xlstm_tune.predict.__main__ import app as predict_app
from xlstm_tune.predict.champion import Champion, load_champion
from xlstm_tune.predict.forecasts import Forecasts, forecasts, source_of
from xlstm_tune.predict.make import champion_of

Case = tuple[Champion, pa.Table]
POLICIES = ["error", "forward_fill", "interpolate", "drop"]
BEGIN = "hold: forecasts begin after the last row that has a target"


def case(folder: Path, table: Path, data: dict[str, Any]) -> Case:
    done = finish(folder / "searches", table.stem, data | {"source": str(table)})
    return load_champion(champion_of(done)), read_source([str(table)], {}).table


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("one")
    return case(folder, single(folder), SINGLE)


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("shops")
    return case(folder, several(folder), SEVERAL)


def predict(champion: Champion, table: pa.Table, policy: str, every: bool = False) -> Forecasts:
    """What the model says of a table whose blanks it treats by another policy than in its search."""
    changed = replace(champion, data=champion.data.model_copy(update={"missing": policy}))
    return forecasts(changed, source_of(table), 0.5, every)


def joined(*tables: pa.Table) -> pa.Table:
    return pa.concat_tables(tables, promote_options="permissive")


def later(y: list[float | None], z: list[float | None]) -> pa.Table:
    """Rows for the end of `single`, of which `x` is far from all that it was."""
    return pa.table({"y": pa.array(y, pa.float64()), "z": pa.array(z, pa.float64()), "x": [10**9] * len(y)})


def days(table: pa.Table, counts: dict[str, int]) -> pa.Table:
    """The rows of April for shops of `several`, with a weather that there never was and no sales."""
    sizes = dict(zip(table["shop"].to_pylist(), table["size"].to_pylist(), strict=True))
    rows = [(shop, f"2021-04-{day + 1:02d}") for shop, count in counts.items() for day in range(count)]
    stamps = pa.array([day for _, day in rows]).cast(table["day"].type)
    made = {"shop": [shop for shop, _ in rows], "day": stamps, "size": [sizes[shop] for shop, _ in rows]}
    return pa.table(made | {"weather": ["hail"] * len(rows), "sold": pa.nulls(len(rows), pa.float64())})


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("every", [False, True])
def test_rows_in_the_order_of_the_file(one: Case, policy: str, every: bool) -> None:
    champion, table = one
    made = predict(champion, joined(table, later([None] * 5, [None] * 5)), policy, every)
    wanted = predict(champion, table, policy, every)
    assert made.table.equals(wanted.table) and made.table["origin"].to_pylist()[-1] == "120"
    (note,) = set(made.notes) - set(wanted.notes)
    assert (
        note
        == f"5 rows at the end of the series have no target and are left out, with what their other columns {BEGIN}"
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("every", [False, True])
def test_days_of_one_series_of_several(shops: Case, policy: str, every: bool) -> None:
    champion, table = shops
    if policy == "error":
        table = table.filter(table["sold"].is_valid())
    made = predict(champion, joined(days(table, {"b": 30}), table), policy, every)
    wanted = predict(champion, table, policy, every)
    key = [("shop", "ascending"), ("origin", "ascending"), ("step", "ascending")]
    assert made.table.sort_by(key).equals(wanted.table.sort_by(key))
    ends = [row for row in made.table.to_pylist() if row["origin"] == "2021-03-31"]
    for shop in "abc":
        assert [row["day"] for row in ends if row["shop"] == shop] == [f"2021-04-0{step}" for step in (1, 2, 3, 4)]
    assert "2021-04-01" not in made.table["origin"].to_pylist()
    told = [note for note in made.notes if note not in wanted.notes]
    assert told == [
        "30 rows at the end of 1 of 3 series (shop=b) have no target and are left out, with what their other columns "
        + BEGIN
    ]


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({"a": 30, "b": 30, "c": 30}, "30 rows at the end of each of 3 series have no target and are left out"),
        ({"a": 1, "b": 1, "c": 1}, "1 row at the end of each of 3 series has no target and is left out"),
        ({"a": 2, "b": 7, "c": 3}, "2 to 7 rows at the end of each of 3 series have no target"),
        ({"c": 1}, "1 row at the end of 1 of 3 series (shop=c) has no target and is left out, with what its other"),
    ],
)
def test_the_note_counts_rows_and_series(shops: Case, counts: dict[str, int], told: str) -> None:
    champion, table = shops
    notes = predict(champion, joined(table, days(table, counts)), "forward_fill").notes
    assert [note for note in notes if note.startswith(told) and note.endswith(BEGIN)]


def test_the_note_names_the_first_of_some_series(shops: Case) -> None:
    champion, table = shops
    notes = predict(champion, joined(table, days(table, {"a": 3, "c": 3})), "forward_fill").notes
    first = next(shop for shop in table["shop"].to_pylist() if shop != "b")
    assert any(f"3 rows at the end of each of 2 of 3 series, the first shop={first}, have" in note for note in notes)


def test_a_row_with_one_of_two_targets_is_history(one: Case) -> None:
    champion, table = one
    longer = joined(table, later([None, None, None], [14.0, None, None]))
    made = predict(champion, longer, "forward_fill")
    assert set(made.table["origin"].to_pylist()) == {"121"}
    assert made.notes[0].startswith("2 rows at the end of the series have no target")
    assert made.notes[1].startswith("1 blank cell was filled by data.missing: forward_fill (1 in 'y')")
    with pytest.raises(DataError, match=r"^column 'y' has 1 blank cell in row 121; mend it"):
        predict(champion, longer, "error")


def test_a_series_without_any_target_is_refused_or_dropped_as_ever(shops: Case) -> None:
    champion, table = shops
    known = table.filter(pa.array([shop != "b" for shop in table["shop"].to_pylist()]))
    empty = joined(known, days(table, {"b": 20}))
    for policy in ("forward_fill", "interpolate"):
        with pytest.raises(DataError, match="the target 'sold' has no value at all in shop=b"):
            predict(champion, empty, policy)
    made = predict(champion, empty, "drop")
    assert set(made.table["shop"].to_pylist()) == {"a", "c"}
    assert not any("at the end of" in note for note in made.notes)


def test_an_input_that_only_such_rows_have_is_refused(one: Case) -> None:
    champion, table = one
    empty = table.set_column(2, "x", pa.nulls(table.num_rows, pa.int64()))
    with pytest.raises(DataError, match="column 'x' has no value at all in the series, so nothing can fill it; mend"):
        predict(champion, joined(empty, later([None] * 3, [None] * 3)), "interpolate")


def test_a_search_keeps_such_rows(shops: Case) -> None:
    champion, table = shops
    longer = source_of(joined(table, days(table, {"a": 30, "b": 30, "c": 30})))
    assert make_table(longer, champion.data).offsets[-1] == table.num_rows + 90
    assert make_table(longer, champion.data, judged=False).offsets[-1] == table.num_rows


def test_sequences_keep_such_rows(tmp_path: Path) -> None:
    champion, table = case(tmp_path, yields(tmp_path), YIELDS)
    index = table.column_names.index("t")
    late = pc.greater_equal(pc.day(table["day"]), 7)
    ends = pc.if_else(late, pa.scalar(None, pa.float64()), table["t"])
    made = forecasts(champion, source_of(table.set_column(index, "t", ends)), 0.5)
    assert made == forecasts(champion, source_of(table), 0.5)


def test_the_example_of_a_search_ends_where_the_targets_end(tmp_path: Path) -> None:
    _, table = case(tmp_path, single(tmp_path), SINGLE)
    rows = joined(table, later([None] * 10, [None] * 10))
    text = {name: ["" if cell is None else cell for cell in rows[name].to_pylist()] for name in rows.column_names}
    ending = write_csv(tmp_path / "ending.csv", text)
    data = SINGLE | {"missing": "forward_fill", "features": ["y", "z"], "source": str(ending)}
    folder = finish(tmp_path / "searches", "ending", data)
    champion = load_champion(champion_of(folder))
    example = arrow(example_request(folder))
    assert example["y"].to_pylist() == table["y"].to_pylist()[-8:]
    made = [forecasts(champion, source, 0.5).table for source in (source_of(example), read_source([str(ending)], {}))]
    assert made[0]["predicted"].equals(made[1]["predicted"])


def test_the_command_tells_it(tmp_path: Path) -> None:
    case(tmp_path, single(tmp_path), SINGLE)
    table = tmp_path / "future.csv"
    table.write_text((tmp_path / "single.csv").read_text() + ",,120\n ,NA,121\n")
    place = tmp_path / "made.csv"
    asked = ["single", str(table), "--storage", str(tmp_path / "searches"), "--output", str(place), "--level", "0.5"]
    result = CliRunner().invoke(predict_app, asked)
    assert result.exit_code == 0, result.output
    assert "note: 2 rows at the end of the series have no target and are left out" in result.output
    assert {row["origin"] for row in csv.DictReader(place.open())} == {"120"}
