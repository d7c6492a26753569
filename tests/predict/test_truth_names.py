"""Categories called like truths or like blanks are those of the search, whatever else a new table holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from champions import finish, write_csv

from xlstm_tune.data.read import read_source
from xlstm_tune.layout import ABOUT
from xlstm_tune.predict.champion import load_champion, read_about
from xlstm_tune.predict.forecasts import Forecasts, forecasts
from xlstm_tune.predict.make import champion_of


def searched(folder: Path, values: list[str]) -> tuple[Path, dict[str, list[Any]]]:
    """A champion of one series with these values of a category, and the table's columns."""
    rng = np.random.default_rng(3)
    cells = [values[int(one)] for one in rng.integers(len(values), size=90)]
    columns: dict[str, list[Any]] = {"y": rng.normal(size=90).round(3).tolist(), "c": cells}
    table = write_csv(folder / "x.csv", columns)
    data = {"source": str(table), "target": "y", "categories": "c", "lookback": 4}
    return champion_of(finish(folder / "searches", "x", data)), columns


def predict(champion: Path, columns: dict[str, list[Any]]) -> Forecasts:
    path = write_csv(champion.parent / "new.csv", columns)
    loaded = load_champion(champion)
    return forecasts(loaded, read_source([str(path)], {}, loaded.data.labels), every=True)


def alike(champion: Path, columns: dict[str, list[Any]], values: list[str]) -> None:
    """The last forecast of rows with these values alone is the same beside rows with others."""
    columns = {name: cells[:8] for name, cells in columns.items()}
    ending = columns["c"][:4] + values
    whole = predict(champion, columns | {"c": ending})
    last = {name: cells[4:] for name, cells in columns.items()} | {"c": values}
    alone = predict(champion, last)
    assert not any("not in what the model learnt" in note for note in (*whole.notes, *alone.notes))
    assert alone.table.column("predicted")[-1].as_py() == pytest.approx(
        whole.table.column("predicted")[-1].as_py(), rel=1e-6
    )


def test_a_table_with_nothing_but_none_has_that_category(tmp_path: Path) -> None:
    champion, columns = searched(tmp_path, ["none", "rain"])
    alike(champion, columns, ["none"] * 4)


def test_a_table_with_nothing_but_truths_has_those_of_the_search(tmp_path: Path) -> None:
    champion, columns = searched(tmp_path, ["True", "False", "unknown"])
    alike(champion, columns, ["True", "True", "False", "True"])


def test_truths_of_an_earlier_program_are_those_of_a_table(tmp_path: Path) -> None:
    champion, columns = searched(tmp_path, ["True", "False", "unknown"])
    before = predict(champion, columns).table
    about = read_about(champion)
    names = about["inputs"]["names"]
    assert {"c=true", "c=false"} < set(names)
    about["inputs"]["names"] = [name.replace("=true", "=True").replace("=false", "=False") for name in names]
    (champion / ABOUT).write_text(json.dumps(about))
    made = predict(champion, columns)
    assert made.table.column("predicted").to_pylist() == before.column("predicted").to_pylist()
    assert not any("not in what the model learnt" in note for note in made.notes)
    alike(champion, columns, ["True", "True", "False", "True"])


def test_two_spellings_of_an_earlier_program_stay_apart(tmp_path: Path) -> None:
    champion, _ = searched(tmp_path, ["True", "other", "unknown"])
    about = read_about(champion)
    names = about["inputs"]["names"]
    about["inputs"]["names"] = [name.replace("=other", "=True") for name in names]
    (champion / ABOUT).write_text(json.dumps(about))
    assert {"c=true", "c=True"} < set(load_champion(champion).scaling.inputs.names)
