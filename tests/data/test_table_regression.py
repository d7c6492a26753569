"""Tables for regression: sequences with one target each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from table_files import load_text, one_sentence

from xlstm_tune.data.gaps import lengths_note
from xlstm_tune.data.table import Table
from xlstm_tune.errors import DataError

YEARS = "county,year,day,rain,cases\n" + "".join(
    f"{county},{year},{day},{day * year % 7},{len(county) * year}\n"
    for county in ("Pima", "La Paz")
    for year in (2006, 2007)
    for day in (3, 1, 2)
)


def load_years(folder: Path, text: str = YEARS, **keys: Any) -> Table:
    keys = {"task": "regression", "sequence": ["county", "year"], "time": {"column": "day", "format": "epoch"}} | keys
    return load_text(folder, text, **{"lookback": None} | keys)


def test_load_regression_gives_a_target_per_sequence(tmp_path: Path) -> None:
    table = load_years(tmp_path)
    assert table.features == ("rain",) and table.offsets.tolist() == [0, 3, 6, 9, 12]
    assert table.keys == (("Pima", "2006"), ("Pima", "2007"), ("La Paz", "2006"), ("La Paz", "2007"))
    assert table.targets.tolist() == [[8024], [8028], [12036], [12042]] and table.observed.all()
    assert table.values[:3, 0].tolist() == [2006 * day % 7 for day in (1, 2, 3)]
    assert "in 4 of 4 sequences and were sorted" in table.notes[0]


def test_load_regression_target_that_changes_is_refused(tmp_path: Path) -> None:
    text = YEARS.replace("La Paz,2006,2,1,12036", "La Paz,2006,2,1,5")
    with pytest.raises(DataError) as error:
        load_years(tmp_path, text)
    assert re.search(
        r"the target 'cases' changes within the sequence county=La Paz, year=2006 \(12036 in row 8, 5 in row 9\); "
        r"a regression has one target per sequence",
        one_sentence(error),
    )


def test_load_regression_target_that_changes_a_little_is_told_to_the_last_digit(tmp_path: Path) -> None:
    text = YEARS.replace("La Paz,2006,2,1,12036", "La Paz,2006,2,1,12036.000000001")
    with pytest.raises(DataError, match=r"\(12036\.0 in row 8, 12036\.000000001 in row 9\)"):
        load_years(tmp_path, text)


def test_load_regression_sequence_without_target(tmp_path: Path) -> None:
    text = YEARS.replace(",8028\n", ",\n")
    with pytest.raises(DataError, match=r"'cases' is blank in 1 sequence, first in county=Pima, year=2007"):
        load_years(tmp_path, text)
    table = load_years(tmp_path, text, missing="drop")
    assert len(table.keys) == 3 and table.targets[:, 0].tolist() == [8024, 12036, 12042]
    assert "1 of 4 sequences have no target and were left out" in table.notes
    # A blank beside known values of the same sequence is no blank: the target is one number.
    table = load_years(tmp_path, YEARS.replace(",8028\n", ",\n", 1))
    assert table.targets[1, 0] == 8028
    assert (
        "1 of 4 sequences have the target 'cases' on some of their rows only; it counts for all of them" in table.notes
    )


def test_load_regression_dropped_sequence_takes_its_target_along(tmp_path: Path) -> None:
    text = "\n".join(
        line.rsplit(",", 2)[0] + ",," + line.rsplit(",", 1)[1] if line.startswith("Pima,2006") else line
        for line in YEARS.splitlines()
    )
    table = load_years(tmp_path, text, missing="drop")
    assert table.targets[:, 0].tolist() == [8028, 12036, 12042] and len(table.keys) == 3


def load_days(folder: Path, lacking: dict[int, list[str]], **keys: Any) -> Table:
    """Four years of days for each of two counties, without the days of `lacking`."""
    rows = []
    for county in "ab":
        for year in (2003, 2004, 2005, 2006):
            first = np.datetime64(f"{year}-01-01")
            for day in np.arange(first, np.datetime64(f"{year + 1}-01-01")):
                if str(day)[5:] not in lacking.get(year, []):
                    rows.append(f"{county},{year},{day},{len(rows) % 7},{year}")
    text = "\n".join(["county,year,date,rain,cases", *rows]) + "\n"
    return load_years(folder, text, **{"time": {"column": "date"}} | keys)


def test_load_regression_says_where_sequences_have_gaps_or_are_short(tmp_path: Path) -> None:
    assert load_days(tmp_path, {}).notes == ()
    # Years of 365 days all have the leap day left out.
    assert load_days(tmp_path, {2004: ["02-29"]}).notes == ()
    (note,) = load_days(tmp_path, {2004: ["02-29"], 2005: ["03-01", "07-02"]}).notes
    assert note == (
        "2 of 8 sequences have gaps in 'date', where rows are not 1 d apart, the first: county=a, year=2005, between "
        "2005-02-28 and 2005-03-02; every row counts as one step all the same"
    )
    winter = [f"{month:02d}-{day:02d}" for month in (11, 12) for day in range(1, 32)]
    # Without a calendar, lengths are all there is to say.
    for table in (
        load_days(tmp_path, {2006: winter}),
        load_days(tmp_path, {2006: winter, 2005: ["03-01"]}, time=None, exclude="date"),
    ):
        assert table.notes == ()
        said = lengths_note(table.offsets, table.series_name)
        assert said == "sequences have 304 to 366 rows, the shortest: county=a, year=2006"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"target": "all"}, "'data.target: all' is for forecasts"),
        ({"features": ["rain", "cases"]}, "column 'cases' is both in 'data.target' and in 'data.features'"),
        ({"features": []}, "'data.features' is empty"),
        ({"exclude": "rain"}, "no column is left as an input"),
    ],
)
def test_load_regression_roles_that_cannot_be(tmp_path: Path, keys: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError) as error:
        load_years(tmp_path, **keys)
    assert expected in one_sentence(error)
