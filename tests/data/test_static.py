"""Columns that are constant within a series or sequence: checked, standardised, given once a sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.data.windows import Prepared, Windows
from xlstm_tune.errors import DataError, SpecError
from xlstm_tune.models.baselines import baselines

ZONES = ["dry", "wet", "dry", "dry", "wet", "cold", "dry", "wet"]
SIZES = {"a": 1, "b": 2, "c": 6}
LENGTHS = [4, 3, 4, 2, 4, 4, 4, 3]


def sequences(folder: Path, cells: dict[tuple[int, str], str] | None = None, **keys: Any) -> Prepared:
    """Eight sequences with a size (10 × the number + 5) and a zone; `cells` replaces (line of the file, column)."""
    lines = ["s,day,x,size,zone,y"]
    for s, length in enumerate(LENGTHS):
        for day in range(length):
            row = {"x": str(s + day), "size": str(10 * s + 5), "zone": ZONES[s], "y": str(s * s)}
            row |= {name: text for (line, name), text in (cells or {}).items() if line == len(lines) + 1}
            lines.append(f"{s},{day},{row['x']},{row['size']},{row['zone']},{row['y']}")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    asked: dict[str, Any] = {
        "source": str(folder / "t.csv"),
        "task": "regression",
        "sequence": "s",
        "target": "y",
        "static": "size",
        "exclude": ["day", "zone"],
        "split": {"order": "s", "validation": 2, "test": 2},
    }
    config = DataConfig.parse(asked | keys, "data")
    return prepare(load_table(config), config)


def forecast(folder: Path, **keys: Any) -> Prepared:
    """Three series of 30 rows, with a size and one input column."""
    lines = ["id,x,size,y"]
    lines += [f"{s},{(row * 7) % 11},{size},{(row * 3) % 13}" for s, size in SIZES.items() for row in range(30)]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    asked: dict[str, Any] = {
        "source": str(folder / "t.csv"), "series": "id", "target": "y", "static": "size", "lookback": 4, "horizon": 2,
        "split": {"validation": 6, "test": 6},
    }  # fmt: skip
    config = DataConfig.parse(asked | keys, "data")
    return prepare(load_table(config), config)


def test_static_of_sequences_is_standardised_over_training_sequences_and_no_input_of_steps(tmp_path: Path) -> None:
    data = sequences(tmp_path)
    assert data.feature_names == ("x",) and data.static_names == ("size",)
    assert data.static is not None and data.static.dtype == np.float32 and not data.static.flags.writeable
    train = np.array([10.0 * s + 5 for s in data.parts["train"]])  # each sequence once, however long
    expected = (10.0 * np.arange(8) + 5 - train.mean()) / train.std()
    np.testing.assert_allclose(data.static[:, 0], expected, rtol=1e-6)
    for part, samples in data.parts.items():
        index = torch.arange(len(samples)).flip(0)
        static = Windows(data, part).batch(index).static
        assert static is not None and static.shape == (len(samples), 1)
        np.testing.assert_allclose(static[:, 0], expected[samples][::-1], rtol=1e-6)


def test_static_of_series_belongs_to_every_window_of_its_series(tmp_path: Path) -> None:
    data = forecast(tmp_path)
    assert data.feature_names == ("x", "y") and data.target_columns == (1,)
    expected = (np.array([1.0, 2.0, 6.0]) - 3) / np.std([1, 2, 6])
    for part, samples in data.parts.items():
        static = Windows(data, part).batch(torch.arange(len(samples))).static
        np.testing.assert_allclose(static[:, 0], expected[data.starts[samples] // 30], rtol=1e-6)


def test_static_categories_are_0_1_columns_of_the_values_seen_in_training(tmp_path: Path) -> None:
    data = sequences(tmp_path, static=["size", "zone"], categories="zone", exclude="day")
    seen = sorted({ZONES[s] for s in data.parts["train"]})
    assert data.static_names == ("size", *(f"zone={zone}" for zone in seen))
    assert data.static is not None
    for column, zone in enumerate(seen, start=1):
        here = np.array([one == zone for one in ZONES])
        assert (data.static[here, column] > 0).all() and (data.static[~here, column] < 0).all()
    lost = sorted(set(ZONES) - set(seen))
    assert [note for note in data.notes if "only outside the training part" in note] == [
        f"zone={zone} occurs only outside the training part, so it was left out" for zone in lost
    ]


def test_static_may_be_a_key_of_the_sequences(tmp_path: Path) -> None:
    data = sequences(tmp_path, static="s")
    assert data.static is not None and np.all(np.diff(data.static[:, 0]) > 0)


def test_static_blank_cell_takes_the_value_of_its_sequence(tmp_path: Path) -> None:
    whole = sequences(tmp_path)
    gaps = sequences(tmp_path, {(2, "size"): "", (4, "size"): ""})
    np.testing.assert_array_equal(whole.static, gaps.static)


def test_static_that_changes_is_refused_with_column_and_sequence(tmp_path: Path) -> None:
    message = r"^the static column 'size' changes within s=1 \(row 5 and row 7 differ\); take it out of data\.static"
    with pytest.raises(DataError, match=message):
        sequences(tmp_path, {(8, "size"): "16"})
    with pytest.raises(DataError, match=r"^the static column 'zone' changes within s=0"):
        sequences(tmp_path, {(3, "zone"): "wet"}, static="zone", categories="zone", exclude="day")


def test_static_without_any_value_in_a_sequence_is_refused(tmp_path: Path) -> None:
    blank = {(line, "size"): "" for line in (6, 7, 8)}
    with pytest.raises(DataError, match=r"^the static column 'size' has no value at all in s=1; fill it in or name it"):
        sequences(tmp_path, blank, missing="interpolate")


def test_static_text_that_is_no_category_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'zone' holds text"):
        sequences(tmp_path, static="zone", exclude="day")


def test_static_that_is_also_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'size' is both in 'data\.static' and in 'data\.features'"):
        sequences(tmp_path, features=["x", "size"])
    with pytest.raises(DataError, match=r"column 'y' is both in 'data\.static' and in 'data\.target'"):
        sequences(tmp_path, static="y")
    with pytest.raises(DataError, match=r"'data\.static' names 'sise', .* did you mean 'size'\?"):
        sequences(tmp_path, static="sise")


def test_static_of_a_single_series_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'data\.static' needs 'data\.series' in a forecast"):
        forecast(tmp_path, series=[])


def test_static_constant_in_training_is_noted_and_zero(tmp_path: Path) -> None:
    cells = {(line, "size"): "7" for line in range(2, 15)}
    data = sequences(tmp_path, cells)
    assert set(data.parts["train"]) <= {0, 1, 2, 3}
    assert "the static input 'size' is constant in the training part" in data.notes
    assert data.static is not None and not data.static[data.parts["train"]].any()


def test_static_changes_the_fingerprint(tmp_path: Path) -> None:
    one = sequences(tmp_path).fingerprint
    assert one == sequences(tmp_path).fingerprint
    assert one != sequences(tmp_path, {(line, "size"): "6" for line in range(2, 6)}).fingerprint


def test_linear_baseline_sees_static_inputs_as_it_sees_columns_of_every_step(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = ["s,x,size,y"]
    for s in range(60):
        size = rng.normal()
        rows += [f"{s},{rng.normal()},{size},{3 * size + np.sin(s)}" for _ in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    predictions = []
    for keys in ({"static": "size"}, {}, {"exclude": "size"}):
        raw = {"source": str(tmp_path / "t.csv"), "task": "regression", "sequence": "s", "target": "y", **keys}
        raw["split"] = {"order": "s"}
        config = DataConfig.parse(raw, "data")
        data = prepare(load_table(config), config)
        predictions.append(next(one for one in baselines(data) if one.name == "linear").predictions["test"])
    np.testing.assert_allclose(predictions[0], predictions[1], rtol=1e-4, atol=1e-4)
    assert np.abs(predictions[0] - predictions[2]).mean() > 1
