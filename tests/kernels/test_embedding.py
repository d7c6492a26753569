"""An embedding and what a first layer sees of its norm, in one pass: against torch in float64, at odd sizes.

Memory that is not yet written holds NaN throughout, so that reading it shows.
"""

import pytest
import torch
import torch.nn.functional as F

from xlstm_tune.kernels.embedding_numba import embedding_numba
from xlstm_tune.kernels.norm_numba import EPSILON

SIZES = [(1, 1, 1, 16, 1), (3, 7, 1, 64, 7), (5, 9, 19, 48, 1), (37, 4, 3, 32, 4), (2, 12, 15, 32, 5)]
"""(batch, steps, features, width, steps that are written out)"""


pytestmark = pytest.mark.usefixtures("poisoned_memory")


def in_torch(x, basis, count, kept, rms):
    ones = F.pad(x, (0, 1), value=1.0)
    e = ones @ basis
    spread = e if rms else e - e.mean(-1, keepdim=True)
    rows = ones * torch.rsqrt(spread.square().mean(-1, keepdim=True) + EPSILON)
    return F.pad(rows, (0, count - rows.shape[2])), e[:, -kept:]


def problem(batch, steps, features, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(steps)
    x, basis = (
        torch.randn(*size, dtype=torch.float64, generator=generator)
        for size in ((batch, steps, features), (features + 1, width))
    )
    return x.to(dtype).requires_grad_(), basis.to(dtype).requires_grad_()


def results(function, inputs, *options, chosen=slice(None)):
    outputs = function(*inputs, *options)[chosen]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outputs]
    loss = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
    return *outputs, *torch.autograd.grad(loss, [one for one in inputs if one.requires_grad])


@pytest.mark.parametrize("chosen", [slice(None), slice(0, 1), slice(1, 2)], ids=["both", "rows", "dense"])
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_gradients_are_those_of_torch(size, rms, chosen):
    *sizes, kept = size
    true = results(in_torch, problem(*sizes), 32, kept, rms, chosen=chosen)
    mine = results(embedding_numba, problem(*sizes, torch.float32), 32, kept, rms, chosen=chosen)
    for number, (one, other) in enumerate(zip(mine, true, strict=True)):
        assert one.dtype == torch.float32
        assert (one.double() - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=0.01), f"result {number}"


def test_data_without_gradient_give_the_same_gradient_of_the_basis():
    x, basis = problem(3, 7, 2, 32, torch.float32)
    whole = results(embedding_numba, (x, basis), 16, 7)
    alone = results(embedding_numba, (x.detach(), basis), 16, 7)
    assert torch.equal(whole[-1], alone[-1])


def test_vmap_over_members_equals_each_alone():
    problems = [problem(3, 5, 2, 32, torch.float32) for _ in range(3)]
    x, basis = (torch.stack([(1 + n) * one[at].detach() for n, one in enumerate(problems)]) for at in range(2))
    x.requires_grad_()
    basis.requires_grad_()
    rows, dense = torch.func.vmap(lambda one, other: embedding_numba(one, other, 16, 2))(x, basis)
    (rows.square().sum() + dense.square().sum()).backward()
    for member in range(3):
        mine = (x[member].detach().requires_grad_(), basis[member].detach().requires_grad_())
        alone, written = embedding_numba(*mine, 16, 2)
        (alone.square().sum() + written.square().sum()).backward()
        torch.testing.assert_close(rows[member], alone)
        torch.testing.assert_close(dense[member], written)
        torch.testing.assert_close(x.grad[member], mine[0].grad)
        torch.testing.assert_close(basis.grad[member], mine[1].grad)


def test_any_number_of_threads_gives_the_same_bits():
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(embedding_numba, problem(17, 5, 3, 32, torch.float32), 16, 5))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_compile_without_graph_breaks():
    torch._dynamo.reset()
    inputs = problem(2, 5, 3, 16, torch.float32)
    compiled = torch.compile(embedding_numba, fullgraph=True, backend="aot_eager")
    for mine, true in zip(results(compiled, inputs, 16, 1), results(embedding_numba, inputs, 16, 1), strict=True):
        torch.testing.assert_close(mine, true)
