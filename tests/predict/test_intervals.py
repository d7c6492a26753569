"""Intervals of each series by itself, of all by their scales, and how often they hold what comes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from champions import YIELDS, finish, reported, several, write_csv, yields
from safetensors.numpy import load_file, save_file

from xlstm_tune.data.read import read_source
from xlstm_tune.data.table import Table, load_table
from xlstm_tune.predict.champion import load_champion, read_about
from xlstm_tune.predict.forecasts import Forecasts, forecasts
from xlstm_tune.predict.intervals import Residuals, changes, conformal, positive
from xlstm_tune.predict.make import champion_of
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.checkpoint import sha256_of

LEVELS = {"small": 10.0, "large": 1000.0}
DATA: dict[str, Any] = {
    "series": "shop", "target": "sold", "lookback": 6, "horizon": 2, "split": {"validation": 0.2, "test": 0.4}
}  # fmt: skip


def two(folder: Path, rows: int = 400) -> Path:
    """Two series of very different scale, each a level with noise of a tenth of it."""
    rng = np.random.default_rng(3)
    columns: dict[str, list[Any]] = {"shop": [], "sold": []}
    for name, level in LEVELS.items():
        columns["shop"] += [name] * rows
        columns["sold"] += (level + 0.1 * level * rng.normal(size=rows)).round(4).tolist()
    return write_csv(folder / "two.csv", columns)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    return finish(
        folder / "searches",
        "two",
        DATA | {"source": str(two(folder))},
        training={"epochs": 3},
        model={"instance_norm": "last"},
    )


def asked(search: Path, table: Path, level: float = 0.9, every: bool = False) -> Forecasts:
    return forecasts(load_champion(champion_of(search)), read_source([str(table)], {}), level, every)


def covered(search: Path, table: Path, level: float) -> dict[str, tuple[float, float]]:
    """How often the intervals of each series of the test part hold what came, and their mean width by its level."""
    rows = {
        (row["shop"], row["origin"], row["step"]): row for row in asked(search, table, level, True).table.to_pylist()
    }
    held: dict[str, list[bool]] = {name: [] for name in LEVELS}
    width: dict[str, list[float]] = {name: [] for name in LEVELS}
    for row in reported(search):
        name = row["series"].removeprefix("shop=")
        made = rows[name, str(int(row["time"]) - 1), row["step"]]
        held[name].append(made["lower"] <= row["actual"] <= made["upper"])
        width[name].append((made["upper"] - made["lower"]) / LEVELS[name])
    return {name: (float(np.mean(held[name])), float(np.mean(width[name]))) for name in LEVELS}


@pytest.mark.parametrize("level", [0.8, 0.9])
def test_series_of_very_different_scale_are_each_covered_as_promised(search: Path, level: float) -> None:
    for held, width in covered(search, search.parents[1] / "two.csv", level).values():
        assert abs(held - level) < 0.07
        assert width < 2, "the errors of the large one would make the small one's 40 times its level"


def simulated(rng: np.random.Generator, counts: list[int], scales: list[float]) -> Residuals:
    values = [scale * np.abs(rng.normal(size=(n, 1, 1))) for n, scale in zip(counts, scales, strict=True)]
    series = np.repeat(np.arange(len(counts)), counts)
    names = [str(one) for one in range(len(counts))]
    return Residuals.by_series(np.concatenate(values), series, names, np.array(scales)[:, None])


@pytest.mark.parametrize("counts", [[30, 30], [30, 4], [4, 60]])
def test_each_series_is_covered_whether_it_has_enough_windows_or_not(counts: list[int]) -> None:
    rng, scales = np.random.default_rng(0), [1.0, 100.0]
    held = np.zeros((300, 2))
    for draw in range(len(held)):
        widths = simulated(rng, counts, scales).half_widths(0.9, ["0", "1"], np.zeros((2, 1)))[:, 0, 0]
        held[draw] = [
            (scale * np.abs(rng.normal(size=500)) <= w).mean() for scale, w in zip(scales, widths, strict=True)
        ]
    assert np.all(np.abs(held.mean(axis=0) - 0.9) < 0.025)


def test_a_series_has_its_own_residuals_exactly_where_they_are_enough_for_the_level() -> None:
    kept = simulated(np.random.default_rng(1), [9, 8, 0], [1.0, 10.0, 5.0])
    own, scaled, none, new, still = kept.half_widths(
        0.9, ["0", "1", "2", "new", "still"], np.array([[7.0], [7.0], [7.0], [7.0], [0.0]])
    )[:, 0, 0]
    together = kept.unit_widths(0.9)[0, 0]
    assert own == kept.values[:9].max()
    assert (scaled, none) == (10 * together, 5 * together)
    assert (new, still) == (7 * together, 5 * together), "of the rows at hand; the middle one where they do not change"
    assert np.isnan(kept.half_widths(0.99, ["0", "1"], np.ones((2, 1)))).all()


def table_of(folder: Path) -> Table:
    return load_table(SearchSpec.parse({"name": "two", "data": DATA | {"source": str(two(folder, 60))}}).data)


def test_changes_are_the_mean_absolute_steps_within_each_series(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    cells = [table.targets[:60, 0], table.targets[60:, 0]]
    np.testing.assert_allclose(changes(table)[:, 0], [np.abs(np.diff(one)).mean() for one in cells])
    some = changes(table, np.array([20, 61]))[:, 0]
    np.testing.assert_allclose(some, [np.abs(np.diff(cells[0][:20])).mean(), 0])
    assert positive(np.array([[0.0, 0.0], [2.0, 0.0]])).tolist() == [[2, 1], [2, 1]]


def test_a_series_that_the_search_did_not_have_is_told_and_scaled_by_its_own_changes(
    search: Path, tmp_path: Path
) -> None:
    text = (search.parents[1] / "two.csv").read_text()
    (tmp_path / "new.csv").write_text(text.replace("large", "other"))
    made = asked(search, tmp_path / "new.csv")
    assert any(note.startswith("shop=other was not in the search") for note in made.notes)
    rows = [row for row in made.table.to_pylist() if row["shop"] == "other"]
    known = [row for row in asked(search, search.parents[1] / "two.csv").table.to_pylist() if row["shop"] == "large"]
    for row, other in zip(rows, known, strict=True):
        assert 0.5 < (row["upper"] - row["lower"]) / (other["upper"] - other["lower"]) < 4


def test_a_regression_takes_its_sequences_together(tmp_path: Path) -> None:
    table = yields(tmp_path, 90)
    done = finish(tmp_path / "searches", "yields", YIELDS | {"source": str(table)})
    champion = load_champion(champion_of(done))
    assert champion.residuals.names == () and champion.about["intervals"]["unit"] == "the target's"
    errors = sorted(abs(row["actual"] - row["predicted"]) for row in reported(done, "validation"))
    for row in asked(done, table, 0.5).table.to_pylist():
        assert row["upper"] - row["predicted"] == pytest.approx(errors[int(np.ceil((len(errors) + 1) * 0.5)) - 1])


def test_a_champion_of_the_first_schema_still_predicts_with_the_residuals_of_all_series(
    search: Path, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(champion_of(search), tmp_path / "champion"))
    together = np.sort(load_file(place / "residuals.safetensors")["residuals"], axis=0)
    save_file({"residuals": together}, place / "residuals.safetensors")
    about = read_about(place) | {"schema": 1}
    about["intervals"] = {"method": "split conformal", "samples": len(together), "half_widths": {}}
    about["files"]["residuals.safetensors"] = sha256_of(place / "residuals.safetensors")
    (place / "champion.json").write_text(json.dumps(about))
    made = forecasts(load_champion(place), read_source([str(search.parents[1] / "two.csv")], {}), 0.8)
    wanted = conformal(together, 0.8)[:, 0].tolist() * 2
    found = [row["upper"] - row["predicted"] for row in made.table.to_pylist()]
    np.testing.assert_allclose(found, wanted)


def test_quantiles_are_columns_in_rising_order_around_the_forecast(tmp_path: Path) -> None:
    from champions import SEVERAL

    table = several(tmp_path)
    done = finish(tmp_path / "searches", "several", SEVERAL | {"source": str(table)}, training={"loss": "quantile"})
    champion = load_champion(champion_of(done))
    levels = [f"q{level}" for level in champion.config.training.levels]
    assert champion.outputs[-len(levels) - 2 :] == ["lower", "upper", *levels]
    assert [column["name"] for column in champion.about["serving"]["outputs"]] == champion.outputs
    for row in asked(done, table).table.to_pylist():
        told = [row[name] for name in levels]
        assert told == sorted(told) and row["q0.5"] == row["predicted"]
