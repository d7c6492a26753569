"""The linear baseline of a regression with more columns than sequences: the same ridge, by way of the sequences."""

from __future__ import annotations

import numpy as np
import pytest

from xlstm_tune.models import baselines as module


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (7, 12), (30, 31), (50, 400)])
def test_few_rows_give_what_the_covariance_gives(rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, columns))
    x[:, 1] = x[:, 0]  # no two need to differ
    x, y = x - x.mean(0), rng.normal(size=(rows, 2))
    cross = x.T @ (y - y.mean(0)) / rows
    whole = module._ridge(x.T @ x / rows, cross)
    values, vectors = module._few_rows(x)
    assert len(values) <= rows - 1 and vectors.shape == (columns, len(values))
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(values)), atol=1e-8)
    few = module._solutions(values, vectors, cross)
    assert [strength for strength, _ in few] == [strength for strength, _ in whole]
    for (_, one), (_, other) in zip(few, whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6 * np.abs(other).max())


def test_hundreds_of_columns_take_no_matrix_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 inputs are 24,000 columns here, whose covariance would be 4.6 GB and take an hour."""
    sizes: list[int] = []
    own = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: (sizes.append(len(matrix)), own(matrix))[1])
    x = np.random.default_rng(0).normal(size=(60, 24_000))
    values, vectors = module._few_rows(x - x.mean(0))
    assert sizes == [60] and vectors.shape == (24_000, len(values))
