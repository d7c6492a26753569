"""Dropout by Numba: what torch's gives, drawn by a hash of seed and place."""

import pytest
import torch

from xlstm_tune.kernels.around import dropout
from xlstm_tune.kernels.dropout_numba import dropout_numba
from xlstm_tune.models.block import Dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_it_drops_so_many_and_scales_the_rest(rate):
    x = torch.rand(64, 96, 33) + 1
    y = dropout_numba(x, rate, 3)
    kept = y != 0
    torch.testing.assert_close(y[kept], (x / (1 - rate))[kept])
    deviation = (rate * (1 - rate) / x.numel()) ** 0.5
    assert abs(1 - kept.float().mean().item() - rate) < 5 * deviation
    for axis in range(3):  # no row, step or feature is dropped more often than chance has it
        along = (~kept).float().mean([other for other in range(3) if other != axis])
        assert (along - rate).abs().max() < 5.5 * deviation * x.shape[axis] ** 0.5


def test_what_is_dropped_at_one_place_or_seed_says_nothing_of_the_next():
    draws = torch.stack([dropout_numba(torch.ones(2**16), 0.5, seed) for seed in (0, 1, 2, 2**32, 2**62)]) - 1.0
    limit = 5 / 2**8
    assert (torch.corrcoef(draws) - torch.eye(5)).abs().max() < limit
    for lag in (1, 2, 16, 64, 4096):
        assert ((draws[:, lag:] * draws[:, :-lag]).mean(1)).abs().max() < limit


@pytest.mark.parametrize("size", [(1,), (7, 3), (3, 4096), (2, 5, 999)])
def test_the_gradient_passes_where_the_number_did(size):
    x = torch.randn(size, requires_grad=True)
    y = dropout_numba(x, 0.3, 11)
    grad = torch.randn(size)
    y.backward(grad)
    torch.testing.assert_close(x.grad, torch.where(y == 0, 0.0, grad / 0.7))


def test_the_same_generator_gives_the_same_on_any_number_of_threads():
    x, found = torch.randn(5, 4096), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(4)
            found.append((dropout(x, 0.2), dropout(x, 0.2)))
    finally:
        torch.set_num_threads(before)
    assert all(one.equal(other) for pair in found[1:] for one, other in zip(pair, found[0], strict=True))
    assert not found[0][0].equal(found[0][1])


def test_what_is_dropped_is_zero_whatever_it_was():
    y = dropout_numba(torch.full((9999,), torch.nan), 0.5, 0)
    assert y.isnan().any() and (y == 0).any()


def test_the_layer_is_torchs_in_every_other_respect():
    layer, x = Dropout(0.5), torch.randn(4, 100)
    assert (layer(x) == 0).any()
    assert layer.eval()(x) is x
    assert Dropout(0.0)(x).equal(x)
    assert (Dropout(0.5)(x.double()) == 0).any() and (Dropout(0.5, "reference")(x) == 0).any()
    members = torch.func.vmap(layer.train(), randomness="different")(x.view(2, 2, 100))
    assert (members == 0).any() and not (members[0] == 0).equal(members[1] == 0)
    assert (torch.compile(layer, fullgraph=True, backend="eager")(x) == 0).any()
