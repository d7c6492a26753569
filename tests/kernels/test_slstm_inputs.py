"""sLSTM with the gates made in the cell, against the float64 reference of gates that are written out."""

import pytest
import torch

from xlstm_tune.kernels import SLSTMState, slstm, slstm_from_inputs

NAMES = ("for_if", "for_zo", "in_weight", "recurrent", "bias", "h0", "c0", "n0", "m0")


def problem(batch, steps, heads, width, warm=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sources = [draw(batch, steps, heads * width) for _ in range(2)]
    weights = [draw(heads, 4, width, width) / width**0.5 for _ in range(2)]
    state = [draw(batch, heads, width) for _ in range(4)]
    state[2] = state[2].abs() + 0.3
    return [*sources, *weights, draw(heads, 4, width), *(state if warm else [])]


def flat(op, inputs, **options):
    h, final = op(*inputs[:5], SLSTMState(*inputs[5:]) if inputs[5:] else None, **options)
    return h, *final


def written_out(for_if, for_zo, in_weight, recurrent, bias, state, **options):
    heads, _, width, _ = in_weight.shape
    gates = [
        torch.einsum("btni,noi->btno", source.unflatten(2, (heads, width)), in_weight[:, gate])
        for gate, source in enumerate((for_if, for_if, for_zo, for_zo))
    ]
    return slstm(torch.stack(gates, 3), recurrent, bias, state, backend="reference", **options)


def results(op, inputs, dtype, **options):
    inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    outputs = flat(op, inputs, **options)
    loss = sum((out * torch.linspace(-1, 1, out.numel()).view(out.shape).to(dtype)).sum() for out in outputs)
    return *outputs, *torch.autograd.grad(loss, inputs)


def assert_near(mine, true):
    for name, one, other in zip(("h", *NAMES[5:], *NAMES), mine, true, strict=False):
        assert (one.double() - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=0.01), name


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    "size", [(1, 1, 1, 1), (5, 7, 2, 3), (17, 9, 2, 16), (16, 4, 1, 40), (33, 12, 2, 20), (3, 4, 1, 272)]
)
def test_from_inputs_equals_gates_written_out(size, warm):
    inputs = problem(*size, warm=warm)
    assert_near(results(slstm_from_inputs, inputs, torch.float32), results(written_out, inputs, torch.float64))


@pytest.mark.parametrize("outputs", [("h",), ("c", "m")])
def test_from_inputs_gradients_of_some_outputs_alone(outputs):
    def gradients(op, dtype):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in problem(18, 9, 2, 5)]
        found = dict(zip("hHcnm", flat(op, leaves), strict=True))
        return torch.autograd.grad(sum(found[name].square().sum() for name in outputs), leaves)

    mine, true = gradients(slstm_from_inputs, torch.float32), gradients(written_out, torch.float64)
    for name, one, other in zip(NAMES, mine, true, strict=True):
        assert (one.double() - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=0.01), name


def test_from_inputs_with_masks_equals_gates_written_out():
    inputs = problem(5, 9, 2, 4)
    resets = torch.zeros(5, 9, dtype=torch.bool)
    resets[1, 4] = resets[3, 0] = True
    options = {"resets": resets, "lengths": torch.tensor([9, 6, 1, 8, 9])}
    mine = results(slstm_from_inputs, inputs, torch.float32, **options)
    assert_near(mine, results(written_out, inputs, torch.float64, **options))


def test_from_inputs_takes_any_dtype_and_backend():
    inputs = problem(3, 5, 2, 4)
    truth = flat(written_out, inputs)
    for mine, true in zip(flat(slstm_from_inputs, inputs), truth, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-11, atol=1e-12)
    single = [tensor.float() for tensor in inputs]
    for mine, true in zip(flat(slstm_from_inputs, single, backend="reference"), truth, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h, _ = slstm_from_inputs(*single[:5])
    assert h.dtype == torch.bfloat16


def test_from_inputs_under_vmap_and_compile():
    members = [[tensor.float() for tensor in problem(3, 6, 2, 4, seed=seed)] for seed in range(2)]
    stacked = [torch.stack(parts).requires_grad_() for parts in zip(*members, strict=True)]
    together = torch.vmap(lambda *own: flat(slstm_from_inputs, own))(*stacked)
    sum(out.square().sum() for out in together).backward()
    compiled = torch.compile(lambda *own: flat(slstm_from_inputs, own), fullgraph=True, backend="aot_eager")
    for number, own in enumerate(members):
        leaves = [tensor.clone().requires_grad_() for tensor in own]
        alone = compiled(*leaves)
        sum(out.square().sum() for out in alone).backward()
        for mine, true in zip(together, alone, strict=True):
            torch.testing.assert_close(mine[number], true, rtol=1e-5, atol=1e-6)
        for mine, true in zip(stacked, leaves, strict=True):
            torch.testing.assert_close(mine.grad[number], true.grad, rtol=1e-5, atol=1e-5)


def test_from_inputs_wrong_shapes_say_what_was_wanted():
    inputs = [tensor.float() for tensor in problem(2, 3, 2, 4, warm=False)]
    with pytest.raises(ValueError, match=r"for_if must be \[B, T, E=8\].*axis 2 \(E\) is 7 and must be 8"):
        slstm_from_inputs(inputs[0][..., :7], *inputs[1:])
    with pytest.raises(ValueError, match=r"for_zo must be \[B=2, T=3, E=8\].*axis 1 \(T\) is 2"):
        slstm_from_inputs(inputs[0], inputs[1][:, :2], *inputs[2:])
    with pytest.raises(ValueError, match=r"in_weight .*axis 3 \(D_in\) is 3 and must be 4"):
        slstm_from_inputs(*inputs[:2], inputs[2][..., :3], *inputs[3:])


def test_from_inputs_of_no_samples_or_of_no_floats():
    inputs = [tensor.float().requires_grad_() for tensor in problem(0, 7, 2, 16)]
    h, final = slstm_from_inputs(*inputs[:5], tuple(inputs[5:]))
    assert h.shape == (0, 7, 2, 16)
    assert all(one.shape == (0, 2, 16) for one in final)
    assert all(not found.any() for found in torch.autograd.grad(h.sum(), inputs))
    with pytest.raises(TypeError, match="slstm: for_zo must be a torch tensor, got ndarray"):
        slstm_from_inputs(inputs[0], inputs[1].detach().numpy(), *inputs[2:5])
    with pytest.raises(ValueError, match=r"slstm: for_if must be floating-point, .* got torch.int64"):
        slstm_from_inputs(*(tensor.long() for tensor in inputs[:5]))
    with pytest.raises(TypeError, match="slstm: state h must be a torch tensor, got ndarray"):
        slstm_from_inputs(*inputs[:5], tuple(one.detach().numpy() for one in inputs[5:]))
    for what, at, changed in (("for_zo", 1, inputs[1] > 0), ("in_weight", 2, inputs[2] + 0j)):
        with pytest.raises(ValueError, match=rf"slstm: {what} must be floating-point"):
            slstm_from_inputs(*inputs[:at], changed, *inputs[at + 1 : 5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_inputs_of_too_few_axes(dtype):
    inputs = [tensor.to(dtype) for tensor in problem(2, 7, 2, 16)]
    for what, at in (("for_if", 0), ("for_zo", 1), ("in_weight", 2), ("recurrent", 3), ("bias", 4)):
        for few in (inputs[at][0], inputs[at].sum()):
            with pytest.raises(ValueError, match=rf"{what} must be \[.*: it has {few.dim()} axes and must have "):
                slstm_from_inputs(*inputs[:at], few, *inputs[at + 1 : 5])
