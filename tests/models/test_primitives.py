import pytest
import torch

from xlstm_tune.models.primitives import matmul, sigmoid, tanh

EXTREMES = [-1000.0, -120.0, -20.0, -1e-8, 0.0, 1e-8, 0.5, 20.0, 120.0, 1000.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("ours", "torchs"), [(sigmoid, torch.sigmoid), (tanh, torch.tanh)])
def test_activation_equals_torch_with_gradient_at_extremes(ours, torchs, dtype):
    x = torch.tensor(EXTREMES, dtype=dtype, requires_grad=True)
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-15}
    mine, true = ours(x), torchs(x)
    assert torch.isfinite(mine).all()
    torch.testing.assert_close(mine, true, **tolerance)
    gradient = torch.autograd.grad(mine.sum(), x)[0]
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(gradient, torch.autograd.grad(true.sum(), x)[0], **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_keeps_its_digits_near_zero(dtype):
    x = torch.logspace(-12, -1, 40, dtype=dtype)
    torch.testing.assert_close(tanh(x), torch.tanh(x), rtol=4 * torch.finfo(dtype).eps, atol=0.0)
    torch.testing.assert_close(tanh(-x), -tanh(x), rtol=0.0, atol=0.0)


def test_activation_gradcheck():
    x = torch.linspace(-5, 5, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sigmoid, x) and torch.autograd.gradcheck(tanh, x)


@pytest.mark.parametrize(("n", "m", "p"), [(1, 1, 1), (3, 5, 2), (700, 33, 64), (2, 0, 3)])
def test_matmul_equals_torch(n, m, p):
    left, right = torch.randn(n, m, dtype=torch.float64), torch.randn(m, p, dtype=torch.float64)
    torch.testing.assert_close(matmul(left, right), left @ right, rtol=1e-12, atol=1e-12)


def test_matmul_gradcheck():
    left = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    right = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(matmul, (left, right))


def test_matmul_backward_over_many_blocks_equals_torch():
    left = torch.randn(3000, 40, dtype=torch.float64, requires_grad=True)
    right = torch.randn(40, 60, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3000, 60, dtype=torch.float64)
    mine = torch.autograd.grad((matmul(left, right) * weights).sum(), (left, right))
    for one, other in zip(mine, (weights @ right.t(), left.t() @ weights), strict=True):
        torch.testing.assert_close(one, other)


def test_matmul_wrong_shapes():
    with pytest.raises(ValueError, match=r"got \[2, 3\] times \[4, 5\]: 3 is not 4"):
        matmul(torch.zeros(2, 3), torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"left must be a matrix \[rows, columns\], got \[3\]"):
        matmul(torch.zeros(3), torch.zeros(3, 5))
