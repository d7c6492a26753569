"""Products in registers, with the tiles of every processor: none of them changes a bit."""

import numpy as np
import pytest
from numba import njit

from xlstm_tune.kernels import products, register_products
from xlstm_tune.kernels.simd import CONTRACT, LANES

TILES = {"AVX-512": (16, 4), "AVX2": (6, 1)}
SHAPES = [(6, 4, False), (12, 2, False), (12, 1, False), (4, 4, True), (8, 2, True), (16, 1, True), (1, 1, True)]
"""(rows, vectors, whether they are added to what is there) of the products that kernels use."""


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("rows", "vectors", "onto"), SHAPES)
def test_product_is_that_of_numpy_with_every_tile(rows, vectors, onto, monkeypatch):
    count, columns = 5, vectors * LANES
    x, weight, before = numbers(rows, count), numbers(count, columns), numbers(rows, columns)
    true = x.astype(np.float64) @ weight + (before if onto else 0)
    found = []
    for tile in TILES.values():
        for name, value in zip(("_ROWS", "_VECTORS"), tile, strict=True):
            monkeypatch.setattr(register_products, name, value)
        product = register_products._product(rows, vectors, onto)

        @njit
        def run(x, weight, out, product=product):
            product(x, 0, count, 1, count, weight, 0, columns, out, 0, columns)

        out = before.copy()
        run(x.ravel(), weight.ravel(), out.reshape(-1))
        np.testing.assert_allclose(out, true, rtol=1e-5, atol=1e-5)
        found.append(out)
    np.testing.assert_array_equal(*found)


def test_eight_rows_are_the_same_at_once_and_in_two_halves(monkeypatch):
    a, b, before = numbers(8, 5), numbers(5, LANES), numbers(8, LANES)
    found = []
    for wide in (True, False):
        monkeypatch.setattr(products, "WIDE", wide)
        onto = njit(fastmath=CONTRACT)(products.onto.py_func)

        @njit
        def run(a, b, out, onto=onto):
            products.put(onto(products.get(out, 0, LANES), a, 0, 5, 1, b, 0, LANES, 5), out, 0, LANES)

        out = before.copy()
        run(a.ravel(), b.ravel(), out.reshape(-1))
        np.testing.assert_allclose(out, a.astype(np.float64) @ b + before, rtol=1e-5, atol=1e-5)
        found.append(out)
    np.testing.assert_array_equal(*found)
