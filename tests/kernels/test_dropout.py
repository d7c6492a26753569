"""Dropout: one mask on every backend, drawn by a hash of seed and place, for each member of a vmap its own."""

import pytest
import torch
from torch.func import vmap

from xlstm_tune.kernels import around
from xlstm_tune.kernels.around import dropout
from xlstm_tune.kernels.dispatch import triton_refusal
from xlstm_tune.kernels.dropout_numba import dropout_numba
from xlstm_tune.kernels.dropout_reference import BLOCK, draws_of, dropout_reference
from xlstm_tune.models.block import Dropout

BACKENDS = {"reference": dropout_reference, "numba": dropout_numba}
if triton_refusal("cpu", torch.float32) is None:  # in its interpreter
    from xlstm_tune.kernels.dropout_triton import dropout_triton

    BACKENDS["triton"] = dropout_triton
SIZES = (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5)
SEED = 0x0123456789ABCDEF

on_every_backend = pytest.mark.parametrize("backend", BACKENDS)


def scalars(rate, seed):
    """As tensors, which vmap can tell apart."""
    return torch.tensor(rate, dtype=torch.float64), torch.tensor(seed)


@pytest.mark.parametrize("seed", [0, SEED, 2**63 - 2])
def test_draws_are_what_the_equations_say(seed):
    def mixed(key):
        key = (key ^ key >> 16) * 0x85EBCA6B % 2**32
        key = (key ^ key >> 13) * 0xC2B2AE35 % 2**32
        return key ^ key >> 16

    draws = draws_of(torch.tensor(seed), 3 * BLOCK + 5)
    for place in (0, 1, 77, BLOCK - 1, BLOCK, 2 * BLOCK + 9, 3 * BLOCK + 4):
        keys = (seed + place // BLOCK * 0x9E3779B97F4A7C15) % 2**64
        low, high = mixed(keys % 2**32), mixed(keys >> 32)
        assert draws[place] == mixed(mixed((place % BLOCK + low) % 2**32) ^ high)


def test_a_seed_drops_what_it_always_did():
    """Checkpoints of a run go on to the same bits in a later version."""
    kept = dropout_reference(torch.ones(5000), 0.5, SEED).nonzero().squeeze(1)
    assert kept[:8].tolist() == [0, 1, 4, 6, 9, 10, 13, 15] and len(kept) == 2465


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("size", SIZES)
@on_every_backend
def test_every_backend_gives_the_same_bits_and_gradients(backend, size, rate):
    x, grad = torch.randn(size), torch.randn(size)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, true = BACKENDS[backend](mine, rate, SEED), dropout_reference(other, *scalars(rate, SEED))
    assert y.equal(true)
    kept = draws_of(torch.tensor(SEED), size) >= rate * 2**32
    torch.testing.assert_close(y, torch.where(kept, x / (1 - rate), 0.0))
    y.backward(grad)
    true.backward(grad)
    assert mine.grad.equal(other.grad)
    torch.testing.assert_close(mine.grad, torch.where(kept, grad / (1 - rate), 0.0))
    if rate == 0:
        assert y.equal(x) and mine.grad.equal(grad)


@pytest.mark.parametrize("rate", [0.5 / 2**32, 1.5 / 2**32, 2.5 / 2**32, 1 - 2.0**-40])
@on_every_backend
def test_rates_between_two_draws_round_alike(backend, rate):
    """A half goes to the even one, and what is dropped is never everything: a draw can be 2³² - 1."""
    count = 2**16
    x = torch.ones(count)
    assert BACKENDS[backend](x, rate, SEED).equal(dropout_reference(x, rate, SEED))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["auto", *(name for name in BACKENDS if name != "numba")])
def test_other_dtypes_drop_the_same(backend, dtype):
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("Triton's kernels take no float64")
    run = BACKENDS.get(backend, dropout)
    x = torch.randn(3, 2000).to(dtype)
    y = run(x, 0.3, 5)
    assert y.dtype == dtype
    assert (y == 0).equal((dropout_numba(torch.ones(3, 2000), 0.3, 5) == 0) | (x == 0))
    if backend != "triton" or dtype != torch.bfloat16:  # the interpreter cuts bits off where a GPU rounds
        assert y.equal(dropout_reference(x, 0.3, 5))
    torch.testing.assert_close(y[y != 0], (x.double() / 0.7).to(dtype)[y != 0])


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


@on_every_backend
def test_places_are_counted_in_order_whatever_lies_in_memory(backend):
    x = torch.randn(7, 3, 500)
    turned = x.permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
    y = BACKENDS[backend](turned, 0.4, 9)
    assert y.equal(dropout_reference(x.flatten(), 0.4, 9).view(x.shape))
    y.backward(torch.ones(()).expand(x.shape))
    assert (turned.grad == 0).equal(y == 0)


@on_every_backend
def test_what_is_dropped_is_zero_whatever_it_was(backend):
    y = BACKENDS[backend](torch.full((9999,), torch.nan), 0.5, 0)
    assert y.isnan().any() and (y == 0).any()


@on_every_backend
def test_no_numbers_make_none(backend):
    assert BACKENDS[backend](torch.zeros(0, 3), 0.5, 0).shape == (0, 3)


RATES = torch.tensor([0.3, 0.0, 0.999, 0.1], dtype=torch.float64)
SEEDS = torch.tensor([0, SEED, 2**63 - 2, 7])


@pytest.mark.parametrize("shape", [(3,), (5, 7, 13), (2, BLOCK), (3, 1365)])
@on_every_backend
def test_members_drop_what_each_drops_alone(backend, shape):
    run = BACKENDS[backend]
    x, grad = torch.randn(4, *shape), torch.randn(4, *shape)
    mine = x.clone().requires_grad_()
    y = vmap(run)(mine, RATES, SEEDS)
    y.backward(grad)
    for at in range(4):
        alone = x[at].clone().requires_grad_()
        own = run(alone, RATES[at].item(), SEEDS[at].item())
        own.backward(grad[at])
        assert y[at].equal(own) and mine.grad[at].equal(alone.grad)
    assert y[1].equal(x[1])


@on_every_backend
def test_members_may_lie_along_any_axis_and_share_what_is_the_same(backend):
    run, x = BACKENDS[backend], torch.randn(6, 4, 700)
    y = vmap(run, in_dims=(1, 0, None))(x, RATES, SEED)
    shared = vmap(run, in_dims=(None, None, 0))(x, 0.5, SEEDS)
    nested = vmap(vmap(run))(x[:4].view(2, 2, 4, 700), RATES.view(2, 2), SEEDS.view(2, 2)).flatten(0, 1)
    for at in range(4):
        assert y[at].equal(run(x[:, at], RATES[at], SEED))
        assert shared[at].equal(run(x, 0.5, SEEDS[at]))
        assert nested[at].equal(run(x[at], RATES[at], SEEDS[at]))


@on_every_backend
def test_a_compiler_follows_rate_and_seed(backend):
    run = BACKENDS[backend]
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for seed in SEEDS[:2]:
        x = torch.randn(3, 2000, requires_grad=True)
        y, true = compiled(x, RATES[0], seed), dropout_reference(x, RATES[0], seed)
        assert y.equal(true)
        of_mine, of_true = (torch.autograd.grad(one.sum(), x)[0] for one in (y, true))
        assert of_mine.equal(of_true)


@on_every_backend
def test_autograd_agrees_with_differences(backend):
    """Exactly, since it is linear."""
    run, x, step = BACKENDS[backend], torch.randn(50, requires_grad=True), torch.eye(50)
    jacobian = torch.stack([run(row, 0.5, 3) for row in step])
    (found,) = torch.autograd.grad(run(x, 0.5, 3).sum(), x)
    assert found.equal(jacobian.sum(1))


def test_the_fastest_that_can_take_it_runs(monkeypatch):
    taken = []
    for name in ("dropout_numba", "dropout_reference"):
        function = getattr(around, name)
        monkeypatch.setattr(
            around, name, lambda *given, name=name, function=function: (taken.append(name), function(*given))[1]
        )
    x = torch.randn(3, 4)
    found = [
        dropout(x, 0.5, 2),
        dropout(x, 0.5, 2, "numba"),
        dropout(x, 0.5, 2, "reference"),
        dropout(x.double(), 0.5, 2),
    ]
    assert taken == ["dropout_numba", "dropout_numba", "dropout_reference", "dropout_reference"]
    assert all((one == 0).equal(found[0] == 0) for one in found)
    assert dropout(torch.ones(()), 0.5, 2).shape == ()


def test_a_rate_of_zero_gives_x_itself():
    x = torch.randn(9)
    assert dropout(x, 0.0, 3) is x
    assert dropout(x, *scalars(0.0, 3)).equal(x)


def test_the_same_generator_gives_the_same_on_any_number_of_threads():
    x, layer, found = torch.randn(5, 4096), Dropout(0.2), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(4)
            found.append((layer(x), layer(x)))
    finally:
        torch.set_num_threads(before)
    assert all(one.equal(other) for pair in found[1:] for one, other in zip(pair, found[0], strict=True))
    assert not found[0][0].equal(found[0][1])
