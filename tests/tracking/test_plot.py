"""The picture of a trial's run, from what the trial left."""

from __future__ import annotations

import re
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors.numpy import save_file

from xlstm_tune.tracking.plot import PREDICTED, forecast_picture

SVG = "{http://www.w3.org/2000/svg}"


def write(path: Path, predicted: np.ndarray, actual: np.ndarray, **about: str) -> Path:
    save_file({"predicted": predicted.astype(np.float32), "actual": actual.astype(np.float32)}, path, about)
    return path


def points(line: ElementTree.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]  # type: ignore[misc]


def windows(series: np.ndarray, horizon: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(series, horizon)


@pytest.mark.parametrize(("samples", "horizon"), [(40, 1), (40, 7), (7, 7), (3, 12), (1, 1), (1, 5)])
def test_forecasts_lie_on_what_they_predict(samples: int, horizon: int, tmp_path: Path) -> None:
    series = np.sin(np.arange(samples + horizon - 1))
    actual = windows(series, horizon)
    picture = ElementTree.fromstring(forecast_picture(write(tmp_path / "f", actual, actual, task="forecast")))
    truth, *forecasts = picture.findall(f"{SVG}polyline")
    assert len(points(truth)) == len(series)
    assert len(forecasts) == (1 if horizon == 1 else -(-samples // horizon))
    for forecast in forecasts:
        assert forecast.attrib["stroke"] == PREDICTED
        assert set(points(forecast)) <= set(points(truth)), "a perfect forecast covers the truth"
    assert points(forecasts[-1])[-1] == points(truth)[-1], "the last forecast reaches the end"


def test_sequences_are_points_and_exact_ones_lie_on_the_line(tmp_path: Path) -> None:
    actual = np.array([[3.0], [10.0], [250.0]])
    picture = ElementTree.fromstring(forecast_picture(write(tmp_path / "f", actual, actual, task="regression")))
    (line,) = picture.findall(f"{SVG}polyline")
    (x0, y0), (x1, y1) = points(line)
    for dot in picture.findall(f"{SVG}circle"):
        share = (float(dot.attrib["cx"]) - x0) / (x1 - x0)
        assert float(dot.attrib["cy"]) == pytest.approx(y0 + share * (y1 - y0), abs=0.2)


def test_a_hostile_target_name_is_text(tmp_path: Path) -> None:
    one = np.zeros((2, 1))
    text = forecast_picture(write(tmp_path / "f", one, one, target="<script>alert(1)</script>"))
    assert "<script" not in text
    assert ElementTree.fromstring(text).findtext(f"{SVG}title", "").startswith("<script>alert(1)</script>")
    assert not re.search(r"nan|inf", text)


def test_a_damaged_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="f cannot be read"):
        forecast_picture(tmp_path / "f")
    with pytest.raises(ValueError, match=r"one shape \[m, H\], got \(3,\)"):
        forecast_picture(write(tmp_path / "g", np.zeros(3), np.zeros(3)))


def test_drawing_takes_milliseconds(tmp_path: Path) -> None:
    one = np.random.default_rng(0).normal(size=(256, 8))
    path = write(tmp_path / "f", one, one)
    began = time.perf_counter()
    for _ in range(10):
        assert len(forecast_picture(path)) < 40_000
    assert time.perf_counter() - began < 2
