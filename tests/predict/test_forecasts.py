"""A champion predicts from a new table what the search reported for the same rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from champions import (
    SEVERAL,
    SINGLE,
    YIELDS,
    arrow,
    example_request,
    finish,
    reported,
    same,
    several,
    single,
    write_csv,
    yields,
)
from typer.testing import CliRunner

from xlstm_tune.data.read import read_source
from xlstm_tune.errors import DataError
from xlstm_tune.predict.__main__ import app as predict_app
from xlstm_tune.predict.champion import Champion, load_champion
from xlstm_tune.predict.forecasts import forecasts, source_of
from xlstm_tune.predict.make import champion_of


@dataclass
class Case:
    folder: Path
    table: Path
    champion: Champion

    def predict(self, **options: Any) -> list[dict[str, Any]]:
        return forecasts(self.champion, read_source([str(self.table)], {}), **options).table.to_pylist()

    def arrow(self) -> pa.Table:
        return read_source([str(self.table)], {}).table


def make(folder: Path, table: Path, data: dict[str, Any], **sections: Any) -> Case:
    done = finish(folder / "searches", table.stem, data | {"source": str(table)}, **sections)
    return Case(done, table, load_champion(champion_of(done)))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("one")
    return make(folder, single(folder), SINGLE)


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("shops")
    return make(folder, several(folder), SEVERAL, training={"loss": "quantile"})


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("fields")
    return make(folder, yields(folder), YIELDS)


def test_every_window_of_a_series_gives_the_numbers_that_the_search_reported(one: Case) -> None:
    made = {(row["origin"], row["step"], row["target"]): row["predicted"] for row in one.predict(every=True)}
    rows = reported(one.folder)
    assert rows
    same([made[str(int(row["time"]) - 1), row["step"], row["target"]] for row in rows], [r["predicted"] for r in rows])


def test_every_window_of_several_series_gives_the_numbers_that_the_search_reported(shops: Case) -> None:
    made = {(row["shop"], row["day"], row["step"]): row["predicted"] for row in shops.predict(every=True)}
    rows = reported(shops.folder)
    assert rows
    for row in rows:
        day = str(np.datetime64(row["time"]) + row["step"] - 1)
        assert made[row["series"].removeprefix("shop="), day, row["step"]] == pytest.approx(row["predicted"], rel=1e-6)


def test_sequences_give_the_numbers_that_the_search_reported_without_their_targets(fields: Case) -> None:
    table = fields.arrow().drop_columns(["t"])
    made = {
        f"field={row['field']}, year={row['year']}": row["predicted"]
        for row in forecasts(fields.champion, source_of(table)).table.to_pylist()
    }
    rows = reported(fields.folder)
    assert rows and len(made) == 30
    same([made[row["series"]] for row in rows], [row["predicted"] for row in rows])


def test_the_end_of_each_series_needs_the_lookback_alone_and_has_times_to_come(shops: Case) -> None:
    made = shops.predict()
    assert [(row["shop"], row["step"]) for row in made[:4]] == [(made[0]["shop"], step) for step in (1, 2, 3, 4)]
    assert len(made) == 12 and {row["origin"] for row in made} == {"2021-03-31"}
    assert [row["day"] for row in made[:4]] == ["2021-04-01", "2021-04-02", "2021-04-03", "2021-04-04"]
    table = shops.arrow()
    late = table.filter(pc.greater_equal(pc.cast(table["day"], pa.string()), "2021-03-22"))
    short = forecasts(shops.champion, source_of(late)).table.to_pylist()
    found = {(row["shop"], row["step"]): row["predicted"] for row in short}
    # 2021-03-26 is blank: one of the last ten rows is filled from the day before.
    same([found[row["shop"], row["step"]] for row in made], [row["predicted"] for row in made])


def test_rows_without_a_clock_are_numbered(one: Case) -> None:
    made = one.predict()
    assert [row["origin"] for row in made] == ["120"] * 6
    assert [(row["step"], row["target"]) for row in made[:3]] == [(1, "y"), (1, "z"), (2, "y")]
    assert list(made[0]) == ["origin", "step", "target", "predicted", "lower", "upper"]


def test_intervals_are_the_validation_errors_quantile_with_the_finite_sample_correction(one: Case) -> None:
    errors: dict[tuple[int, str], list[float]] = {}
    for row in reported(one.folder, "validation"):
        errors.setdefault((row["step"], row["target"]), []).append(abs(row["actual"] - row["predicted"]))
    for row in one.predict(level=0.8):
        mine = sorted(errors[row["step"], row["target"]])
        width = mine[int(np.ceil((len(mine) + 1) * 0.8)) - 1]
        assert row["upper"] - row["predicted"] == pytest.approx(width) == row["predicted"] - row["lower"]


def test_a_level_that_validation_is_too_small_for_has_no_interval_and_says_so(one: Case) -> None:
    made = forecasts(one.champion, read_source([str(one.table)], {}), level=0.999)
    assert made.table["lower"].null_count == made.table.num_rows
    n = len(one.champion.residuals)
    said = "too few for a level of 0.999, which needs at least 999"
    assert f"there are no intervals: {n} validation samples are {said}" in made.notes
    thinned = replace(one.champion, about=one.champion.about | {"validation_samples": 12_000})
    made = forecasts(thinned, read_source([str(one.table)], {}), level=0.999)
    assert f"there are no intervals: the {n} of 12,000 validation samples kept are {said}" in made.notes


@pytest.mark.parametrize("level", [0.0, 1.0, 90.0, -1.0])
def test_a_level_that_is_none_is_refused(one: Case, level: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        one.predict(level=level)


def test_missing_columns_are_named_together(shops: Case) -> None:
    with pytest.raises(DataError, match="lacks columns 'weather', 'size'") as caught:
        forecasts(shops.champion, source_of(shops.arrow().drop_columns(["size", "weather"])))
    assert "\n" not in str(caught.value)


def test_columns_that_the_model_does_not_know_change_nothing(shops: Case) -> None:
    table = shops.arrow()
    more = table.append_column("colour", pa.array(["red"] * table.num_rows)).select(
        ["colour", *reversed(table.column_names)]
    )
    here = forecasts(shops.champion, source_of(more)).table
    assert here.equals(forecasts(shops.champion, source_of(table)).table)


def test_a_value_that_was_not_learnt_from_is_zero_in_every_input_and_noted(shops: Case) -> None:
    table = shops.arrow()
    assert "weather=snow" not in shops.champion.scaling.inputs.names, "it falls in the test part alone"
    index = table.column_names.index("weather")
    hail, fog = (
        table.set_column(index, "weather", pa.array([word] * table.num_rows, pa.string())) for word in ("hail", "fog")
    )
    made = [forecasts(shops.champion, source_of(one)) for one in (hail, fog)]
    assert made[0].table.equals(made[1].table)
    assert any("weather=hail was not in what the model learnt from" in note.replace("'", "") for note in made[0].notes)


def test_a_table_that_is_too_short_is_refused(one: Case) -> None:
    with pytest.raises(DataError, match="the model looks at 8 rows, the series has 5"):
        forecasts(one.champion, source_of(one.arrow().slice(0, 5)))
    with pytest.raises(DataError, match="has no rows"):
        source_of(one.arrow().slice(0, 0))


def test_blank_cells_are_treated_as_in_training(one: Case, shops: Case) -> None:
    table = one.arrow()
    holes = pa.array([None if row == 119 else 1.0 * row for row in range(120)])
    with pytest.raises(DataError, match="column 'x' has 1 blank cell"):
        forecasts(one.champion, source_of(table.set_column(2, "x", holes)))
    assert any("filled by data.missing: forward_fill" in note for note in notes_of(shops))


def notes_of(case: Case) -> tuple[str, ...]:
    return forecasts(case.champion, read_source([str(case.table)], {})).notes


def test_the_example_request_gives_the_forecast_of_the_first_series(shops: Case, one: Case, fields: Case) -> None:
    for case in (shops, one):
        made = forecasts(case.champion, source_of(arrow(example_request(case.folder)))).table.to_pylist()
        whole = case.predict()[: len(made)]
        same([row["predicted"] for row in made], [row["predicted"] for row in whole])
    made = forecasts(fields.champion, source_of(arrow(example_request(fields.folder)))).table.to_pylist()
    same([made[0]["predicted"]], [fields.predict()[0]["predicted"]])


def test_a_different_step_is_noted(shops: Case) -> None:
    table = shops.arrow()
    rare = table.filter(pa.array([str(day)[-1] in "05" for day in table["day"].to_pylist()]))
    notes = forecasts(shops.champion, source_of(rare)).notes if rare.num_rows > 30 else ()
    assert any("apart, and the model learnt from rows 1 d apart" in note for note in notes)


def test_keys_keep_their_type(fields: Case) -> None:
    row = fields.predict()[0]
    assert (row["field"], row["year"]) == (0, 2000)
    assert list(row) == ["field", "year", "target", "predicted", "lower", "upper"]


def test_the_command_matches_names_that_begin_with_a_zero(tmp_path: Path) -> None:
    lines = yields(tmp_path).read_text().splitlines()
    table = tmp_path / "fips.csv"
    table.write_text("\n".join([lines[0], *(f"0{line}" for line in lines[1:])]) + "\n")
    # Which field it is comes to the model as a category, under the name that the table has.
    data = YIELDS | {"categories": ["soil", "sky", "field"], "features": ["all", "field"], "split": {"by": ["year"]}}
    data["split"] |= {"validation": 1, "test": 1}
    case = make(tmp_path, table, data)
    place = tmp_path / "made.parquet"
    asked = [case.folder.name, str(table), "--storage", str(case.folder.parent), "--output", str(place)]
    result = CliRunner().invoke(predict_app, asked)
    assert result.exit_code == 0 and "not in what the model learnt" not in result.output, result.output
    made = {f"field={row['field']}, year={row['year']}": row["predicted"] for row in pq.read_table(place).to_pylist()}
    rows = reported(case.folder)
    assert rows and all(row["series"].startswith("field=0") for row in rows)
    same([made[row["series"]] for row in rows], [row["predicted"] for row in rows])


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_times_in_a_zone_come_back_as_they_were_given(tmp_path: Path, ending: str) -> None:
    shown = pa.array(np.arange(120) * 3600 + 1_711_000_000, pa.timestamp("s", "Europe/Berlin"))
    text = [str(one) for one in shown]
    table = pa.table({"at": shown if ending == "parquet" else text, "y": np.sin(np.arange(120.0))})
    place = tmp_path / f"zoned.{ending}"
    if ending == "csv":
        write_csv(place, {name: table[name].to_pylist() for name in table.column_names})
    else:
        pq.write_table(table, place)
    case = make(tmp_path, place, {"time": {"column": "at"}, "target": "y", "lookback": 8, "horizon": 3})
    made = case.predict(every=True)
    assert {row["origin"] for row in made} == set(text[7:])
    assert {row["at"] for row in made if row["origin"] != text[-1]} >= set(text[8:])
    last = [row["at"] for row in made if row["origin"] == text[-1]]
    assert last == [str(one) for one in pa.array(np.arange(120, 123) * 3600 + 1_711_000_000, shown.type)]
    assert {row["time"] for row in reported(case.folder)} <= set(text)
