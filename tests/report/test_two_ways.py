"""Sequences that hang together by county and by year: how sure a difference is does not hang on which comes first."""

from __future__ import annotations

import numpy as np
import pytest

from xlstm_tune.report.differences import Difference, compare_pairs
from xlstm_tune.report.predictions import Facts, Judged, Model

A, B = Model("a", "lstm", 0), Model("b", None, None)


def difference(counties: int, years: int, keys: tuple[str, str]) -> Difference:
    """Of two models whose errors have a part of each county, of each year, and of each sequence."""
    rng = np.random.default_rng(0)
    n = counties * years
    places, times = np.repeat(np.arange(counties), years), np.tile(np.arange(years), counties)
    gain = 0.15 * np.sqrt(counties / years) * rng.normal(size=counties)[places]
    gain += 0.15 * rng.normal(size=years)[times] + 0.05 * rng.normal(size=n)
    losses = {A: np.full(n, 4.0), B: np.maximum(4.0 + gain, 0.0)}
    named = [{"county": f"county={1000 + c}", "year": f"year={2000 + y}"} for c, y in zip(places, times, strict=True)]
    judged = Judged(
        "test",
        tuple(", ".join(one[key] for key in keys) for one in named),
        tuple(str(2000 + y) for y in times),
        ("cases",),
        np.zeros((n, 1, 1)),
        {model: np.sqrt(loss)[:, None, None] for model, loss in losses.items()},
    )
    found = compare_pairs(judged, [(A, B)], Facts(task="regression", keys=keys, groups=("county",)))
    assert "county or year" in found.resampled or "year or county" in found.resampled
    return found.differences[0]


@pytest.mark.parametrize(("counties", "years"), [(40, 12), (300, 12), (450, 12)])
def test_as_sure_whichever_key_comes_first(counties: int, years: int) -> None:
    first, second = (difference(counties, years, keys) for keys in (("county", "year"), ("year", "county")))
    assert first.gain == pytest.approx(second.gain)
    assert first.high - first.low == pytest.approx(second.high - second.low, rel=1e-6)
    assert first.p == second.p
