import math

import numpy as np
import pytest
import torch
from numba import njit

from xlstm_tune.kernels import simd
from xlstm_tune.kernels.tiles import gather, scatter

SPECIAL = [
    0.0,
    -0.0,
    1e-30,
    -1e-30,
    1e-5,
    -1e-5,
    0.4,
    -0.4,
    88.0,
    -86.9,
    -87.1,
    -1000.0,
    -1e30,
    -math.inf,
    math.nan,
    1.0,
]
TRUTHS = {
    "exp": (torch.exp,),
    "tanh": (torch.tanh,),
    "sigmoid": (torch.sigmoid,),
    "sigmoid_and_slope": (torch.sigmoid, lambda x: torch.sigmoid(-x)),
    "log_sigmoid_and_slope": (torch.nn.functional.logsigmoid, lambda x: torch.sigmoid(-x)),
}


def applied(name, numbers):
    """The function on every number, as its one or two results."""
    function, pair = getattr(simd, name), len(TRUTHS[name]) == 2
    load, store, lanes = simd.load, simd.store, simd.LANES

    @njit(fastmath=simd.CONTRACT)
    def one(source, first, second):
        for at in range(0, source.size, lanes):
            store(first, at, function(load(source, at)))

    @njit(fastmath=simd.CONTRACT)
    def two(source, first, second):
        for at in range(0, source.size, lanes):
            left, right = function(load(source, at))
            store(first, at, left)
            store(second, at, right)

    results = np.empty_like(numbers), np.empty_like(numbers)
    (two if pair else one)(numbers, *results)
    return [torch.from_numpy(result) for result in results[: 1 + pair]]


@pytest.mark.parametrize("name", TRUTHS)
def test_functions_are_right_to_float32_and_keep_nan(name):
    high = 88.0 if name == "exp" else 120.0
    numbers = np.concatenate([np.linspace(-130, high, 2**14), np.linspace(-1, 1, 2**14), SPECIAL]).astype(np.float32)
    truths = [truth(torch.from_numpy(numbers).double()) for truth in TRUTHS[name]]
    for mine, true in zip(applied(name, numbers), truths, strict=True):
        assert torch.equal(mine.isnan(), true.isnan())
        finite = true.isfinite()
        error = (mine.double() - true)[finite].abs()
        # Numbers below float32's smallest normal one may come out as zero.
        assert (error <= 3e-7 * true[finite].abs() + 2 * torch.finfo(torch.float32).tiny).all()


@pytest.mark.parametrize("count", [1, 15, 16])
@pytest.mark.parametrize("width", [1, 16, 21, 48])
def test_gather_and_scatter_are_transpositions(count, width):
    rows = np.arange(20 * 60, dtype=np.float32)
    tile, back = np.full(width * 16, np.nan, np.float32), np.full_like(rows, -1)

    @njit
    def both(rows, tile, back):
        gather(rows, 7, 60, count, width, tile)
        scatter(tile, width, count, back, 7, 60)

    both(rows, tile, back)
    truth = np.stack([rows[7 + 60 * sample : 7 + 60 * sample + width] for sample in range(count)])
    assert (tile.reshape(width, 16)[:, :count] == truth.T).all()
    assert np.isfinite(tile).all()
    for sample in range(count):
        assert (back[7 + 60 * sample : 7 + 60 * sample + width] == truth[sample]).all()
    assert (back >= 0).sum() == count * width
