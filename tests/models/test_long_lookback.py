"""What keeps the linear baselines quick on a long lookback: no product and no decomposition that is not needed."""

from __future__ import annotations

import numpy as np
import pytest
from test_baselines import forecast, named

from xlstm_tune.models.baselines import _Moments


@pytest.mark.parametrize(("length", "horizon"), [(1, 1), (7, 3), (60, 24)])
def test_moments_less_the_last_value_are_those_of_the_map_written_out(length: int, horizon: int) -> None:
    pairs = np.random.default_rng(0).normal(3, 1, (200, length + horizon)).cumsum(axis=1)
    moments = _Moments(pairs.mean(0), np.cov(pairs, rowvar=False, bias=True).reshape(len(pairs[0]), -1))
    by = np.eye(length + horizon)
    by[:, length - 1] -= 1
    less = moments.less(length - 1)
    np.testing.assert_array_equal(less.mean, by @ moments.mean)
    np.testing.assert_array_equal(less.covariance, by @ moments.covariance @ by.T)


def test_nlinear_takes_one_decomposition_and_dlinear_two(monkeypatch: pytest.MonkeyPatch) -> None:
    data = forecast([np.random.default_rng(0).normal(size=(300, 1))], lookback=40, horizon=3)
    eigh, sizes = np.linalg.eigh, []

    def counted(matrix: np.ndarray) -> object:
        sizes.append(len(matrix))
        return eigh(matrix)

    monkeypatch.setattr(np.linalg, "eigh", counted)
    named(data)
    assert sizes == [40] * 3
