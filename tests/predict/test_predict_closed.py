"""What predicting says of a search, a champion, a table or an output that lies in a folder closed to us."""

from __future__ import annotations

from pathlib import Path

import pytest
from champions import SINGLE, finish, single
from closed import closed, refusal

from xlstm_tune.predict.make import champion_of

PREDICT = "xlstm_tune.predict"
DENIED = "cannot be reached (Permission denied); give yourself the right to, or name another"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, single.csv, and the search `single` in searches/, which has its champion."""
    made = tmp_path_factory.mktemp("place")
    champion_of(finish(made / "searches", "single", SINGLE | {"source": str(single(made))}))
    return made


def test_predict_from_a_closed_storage_folder_is_one_sentence(place: Path) -> None:
    with closed(place / "searches"):
        error = refusal(PREDICT, "single", "single.csv", folder=place)
        assert error == f"error: {place / 'searches' / 'single'} {DENIED}"


def test_predict_with_a_champion_below_a_closed_folder_is_one_sentence(place: Path) -> None:
    champion = place / "searches" / "single" / "champion"
    with closed(place / "searches"):
        assert refusal(PREDICT, str(champion), "single.csv", folder=place) == f"error: {champion} {DENIED}"


def test_predict_to_a_place_below_a_closed_folder_is_one_sentence(place: Path) -> None:
    (place / "shut").mkdir(exist_ok=True)
    with closed(place / "shut"):
        error = refusal(PREDICT, "single", "single.csv", "--output", "shut/in/out.csv", folder=place)
    assert error == f"error: --output names a file in {place / 'shut' / 'in'}, which {DENIED}"


@pytest.mark.parametrize("name", ["", "champion", "champion/champion.json", "champion/weights.safetensors"])
def test_predict_with_a_closed_search_or_champion_is_one_sentence(place: Path, name: str) -> None:
    with closed(place / "searches" / "single" / name):
        error = refusal(PREDICT, "single", "single.csv", folder=place)
    assert error.startswith(f"error: {place / 'searches' / 'single' / name}") and "(Permission denied); " in error


def test_predict_from_a_table_below_a_closed_folder_is_one_sentence(place: Path) -> None:
    (place / "shut").mkdir(exist_ok=True)
    with closed(place / "shut"):
        error = refusal(PREDICT, "single", "shut/single.csv", folder=place)
    assert error.startswith("error: 'shut/single.csv' cannot be reached: ") and error.endswith("Permission denied")


@pytest.mark.parametrize("name", ["results/scores", "results/trials"])
def test_predict_without_a_champion_from_closed_results_is_one_sentence(tmp_path: Path, name: str) -> None:
    search = finish(tmp_path / "searches", "single", SINGLE | {"source": str(single(tmp_path))})
    with closed(search / name):
        error = refusal(PREDICT, "single", "single.csv", folder=tmp_path)
    assert str(search / name) in error and error.endswith(
        "cannot be read (Permission denied); give yourself the right to"
    )
