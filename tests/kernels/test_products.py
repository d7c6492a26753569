import numpy as np
import pytest
from numba import njit

from xlstm_tune.kernels.products import ROWS, copy_in, copy_out, get, onto, padded, put, times, times_each, turn
from xlstm_tune.kernels.simd import LANES, load, prefetch, sum_lanes


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@njit
def product(start, a, row, step, b, columns, inner, scale, each, out):
    for column in range(0, columns, LANES):
        block = times(times_each(get(start, column, columns), each, 0), scale)
        put(onto(block, a, 0, row, step, b, column, columns, inner), out, column, columns)


@pytest.mark.parametrize("turned", [False, True])
def test_onto_adds_a_product_to_scaled_rows(turned):
    inner, columns = 11, 2 * LANES
    start, a, b, each = draw(ROWS, columns), draw(ROWS, inner), draw(inner, columns), draw(ROWS)
    out = np.full((ROWS, columns), np.nan, np.float32)
    stored = (a.T if turned else a).copy().ravel()
    row, step = (1, ROWS) if turned else (inner, 1)
    product(start.ravel(), stored, row, step, b.ravel(), columns, inner, np.float32(0.5), each, out.reshape(-1))
    np.testing.assert_allclose(out, 0.5 * each[:, None] * start + a @ b, rtol=1e-5, atol=1e-5)


def test_copy_pads_with_zeros_and_comes_back():
    rows = draw(3, 2, 19)  # 3 rows of 19, every second one
    wide = padded(19)
    block = np.full((LANES, wide), np.nan, np.float32)
    copy_in(rows.ravel(), 19, 2 * 19, 3, 19, block.reshape(-1), wide, LANES)
    assert np.array_equal(block[:3, :19], rows[:, 1])
    assert not block[3:].any() and not block[:, 19:].any()
    back = np.full((3, 2, 19), np.nan, np.float32)
    copy_out(block.reshape(-1), wide, 3, 19, back.reshape(-1), 19, 2 * 19)
    assert np.array_equal(back[:, 1], rows[:, 1]) and np.isnan(back[:, 0]).all()


def test_turn_transposes_blocks():
    block = draw(2 * LANES, 3 * LANES)
    out = np.full((3 * LANES, 2 * LANES), np.nan, np.float32)
    turn(block.reshape(-1), 3 * LANES, 2 * LANES, 3 * LANES, out.reshape(-1), 2 * LANES)
    assert np.array_equal(out, block.T)


@njit
def _sum(numbers):
    return sum_lanes(load(numbers, 0))


@njit
def _prefetch(numbers, offset):
    prefetch(numbers, offset)


def test_sum_lanes_and_prefetch_anywhere():
    numbers = draw(LANES)
    assert _sum(numbers) == pytest.approx(float(numbers.sum()), rel=1e-5)
    for offset in (0, 10**9, -(10**9)):  # a hint, not an access
        _prefetch(numbers, offset)
