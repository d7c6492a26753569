"""The mLSTM's output at the last step alone, against the cell over the whole sequence."""

import math

import pytest
import torch

from xlstm_tune.kernels import mlstm
from xlstm_tune.kernels.around import pooled_by_last
from xlstm_tune.kernels.mlstm_forms import mlstm_recurrent
from xlstm_tune.kernels.mlstm_last import mlstm_last_weights

BATCH, HEADS, WIDTH = 3, 2, 5


def problem(steps, spread=1.0):
    generator = torch.Generator().manual_seed(steps)
    q, k, v = (
        torch.randn(BATCH, steps, HEADS, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(3)
    )
    i, f = (
        (spread * torch.randn(BATCH, steps, HEADS, generator=generator, dtype=torch.float64)).requires_grad_()
        for _ in range(2)
    )
    return q, k, v, i, f


def last(q, k, v, i, f, lengths=None):
    """[B, N, D]."""
    at = torch.full((BATCH,), q.shape[1] - 1) if lengths is None else lengths - 1
    scores = torch.einsum("bnd,btnd->btn", q[torch.arange(BATCH), at], k) / math.sqrt(WIDTH)
    return torch.einsum("btn,btnd->bnd", mlstm_last_weights(scores, i, f, lengths), v)


def gradients(y, inputs):
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=y.dtype)
    return torch.autograd.grad(y, inputs, weight)


@pytest.mark.parametrize("spread", [1.0, 120.0])
@pytest.mark.parametrize("steps", [1, 2, 17, 64, 257])
def test_weights_give_the_last_output_of_the_recurrence_and_its_gradients(steps, spread):
    inputs = problem(steps, spread)
    one, other = last(*inputs), mlstm_recurrent(*inputs)[0][:, -1]
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    for mine, true in zip(gradients(one, inputs), gradients(other, inputs), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-10)


def test_lengths_choose_each_samples_last_step():
    inputs, lengths = problem(17), torch.tensor([17, 1, 9])
    whole = mlstm(*inputs, lengths=lengths)[0]
    one, other = last(*inputs, lengths), whole[torch.arange(BATCH), lengths - 1]
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    for mine, true in zip(gradients(one, inputs), gradients(other, inputs), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-10)


def test_gradcheck():
    scores, i, f = (tensor.detach().requires_grad_() for tensor in torch.randn(3, BATCH, 6, HEADS).double())
    assert torch.autograd.gradcheck(mlstm_last_weights, (scores, i, f))
    assert torch.autograd.gradcheck(lambda *them: mlstm_last_weights(*them, torch.tensor([6, 1, 4])), (scores, i, f))


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("gate", [-1e30, -120.0, 0.0, 120.0, 1e30])
def test_any_gate_stays_finite(backend, gate):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 20, 16), (4, 16), (16,), (4,), (4, 16), (4, 16), (2, 2, 16)]
    x, taps, bias, gate_bias, *others = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    y = pooled_by_last(x, (taps, bias), gate_bias + gate, *others, backend=backend)
    assert y.isfinite().all()
    for grad in torch.autograd.grad(y.sum(), (x, taps, bias, gate_bias, *others)):
        assert grad.isfinite().all()


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("at", [0, 7, 19])
def test_nan_in_one_sample_stays_there_and_shows(backend, at):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 20, 16), (4, 16), (16,), (4,), (4, 16), (4, 16), (3, 2, 16)]
    x, taps, bias, *others = (torch.randn(shape, generator=generator) for shape in shapes)
    x[1, at, 3] = math.nan
    y = pooled_by_last(x, (taps, bias), *others, backend=backend)
    assert y[1].isnan().any()
    assert y[[0, 2]].isfinite().all()


def test_wrong_shapes_are_refused():
    scores = torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match=r"mlstm_last_weights: i .* T=5"):
        mlstm_last_weights(scores, scores[:, 1:], scores)
    with pytest.raises(ValueError, match=r"lengths must lie in 1\.\.5"):
        mlstm_last_weights(scores, scores, scores, torch.tensor([0, 5]))
