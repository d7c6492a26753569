import math

import pytest
import torch

from xlstm_tune.kernels import MLSTMState, mlstm
from xlstm_tune.kernels.mlstm_forms import mlstm_empty_state, mlstm_parallel, mlstm_recurrent
from xlstm_tune.kernels.mlstm_reference import mlstm_chunkwise

NAMES = ("q", "k", "v", "i", "f", "C", "n", "m")


def problem(batch, steps, heads, width, dtype=torch.float64, seed=0):
    """Inputs and a warm initial state, all requiring gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0, shift=0.0):
        tensor = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale + shift
        return tensor.to(dtype).requires_grad_()

    return [
        *(draw(batch, steps, heads, width) for _ in range(3)),
        draw(batch, steps, heads, scale=2.0),
        draw(batch, steps, heads, scale=2.0, shift=1.0),
        draw(batch, heads, width, width),
        draw(batch, heads, width),
        draw(batch, heads),
    ]


def flat(form, q, k, v, i, f, *state, **options):
    h, final = form(q, k, v, i, f, MLSTMState(*state) if state else None, **options)
    return h, *final


def gradients(outputs, inputs, seed=1):
    """Gradients of a random weighting of all outputs."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outputs]
    loss = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
    return torch.autograd.grad(loss, inputs)


def relative(mine, true):
    """Largest difference over the largest value, which counts as 0.01 at least: a gradient may be all zero."""
    return ((mine.double() - true.double()).abs().max() / true.abs().max().clamp(min=0.01)).item()


def test_mlstm_equals_the_unstabilised_equations():
    q, k, v, i, f, *_ = (tensor.detach() for tensor in problem(2, 10, 2, 4))
    matrix = torch.zeros(2, 2, 4, 4, dtype=torch.float64)
    normaliser = torch.zeros(2, 2, 4, dtype=torch.float64)
    outputs = []
    for t in range(10):
        keep, add = torch.sigmoid(f[:, t])[..., None], torch.exp(i[:, t])[..., None]
        key = k[:, t] / math.sqrt(4)
        matrix = keep[..., None] * matrix + add[..., None] * torch.einsum("bnk,bnv->bnkv", key, v[:, t])
        normaliser = keep * normaliser + add * key
        denominator = (normaliser * q[:, t]).sum(-1).abs().clamp(min=1.0)
        outputs.append(torch.einsum("bnkv,bnk->bnv", matrix, q[:, t]) / denominator[..., None])
    # ε = 1e-6 belongs to the stabilised form only.
    torch.testing.assert_close(mlstm(q, k, v, i, f)[0], torch.stack(outputs, 1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 63, 64, 65, 257])
def test_mlstm_forms_agree_in_outputs_states_and_gradients(steps, warm):
    inputs = problem(2, steps, 2, 4)
    inputs = inputs if warm else inputs[:5]
    truth = flat(mlstm_recurrent, *inputs)
    true_gradients = gradients(truth, inputs)
    forms = {"parallel": flat(mlstm_parallel, *inputs), "chosen": flat(mlstm, *inputs)}
    forms |= {f"chunks of {chunk}": flat(mlstm_chunkwise, *inputs, chunk=chunk) for chunk in (16, 64, 256)}
    for form, outputs in forms.items():
        for name, mine, true in zip(("h", "C", "n", "m"), outputs, truth, strict=True):
            assert relative(mine, true) < 1e-10, f"{form}: {name}"
        for name, mine, true in zip(NAMES, gradients(outputs, inputs), true_gradients, strict=False):
            assert relative(mine, true) < 1e-10, f"{form}: gradient of {name}"


@pytest.mark.parametrize("form", [mlstm_recurrent, mlstm_parallel, lambda *inputs: mlstm_chunkwise(*inputs, chunk=2)])
@pytest.mark.parametrize("warm", [False, True])
def test_mlstm_gradcheck_all_inputs_and_states(form, warm):
    inputs = problem(2, 5, 2, 2)
    inputs = inputs if warm else inputs[:5]
    _, _, normaliser, m = flat(form, *inputs)
    larger = (normaliser * inputs[0][:, -1]).sum(-1).abs() > torch.exp(-m)
    assert larger.any() and not larger.all(), "both branches of the normaliser must be in the check"
    assert torch.autograd.gradcheck(lambda *tensors: flat(form, *tensors), inputs)


@pytest.mark.parametrize("cut", [1, 40, 64])
def test_mlstm_cut_sequence_gives_the_same_outputs_and_gradients(cut):
    inputs = problem(2, 70, 2, 4)
    q, k, v, i, f, *state = inputs
    first, middle = mlstm(*(tensor[:, :cut] for tensor in (q, k, v, i, f)), MLSTMState(*state))
    second, last = mlstm(*(tensor[:, cut:] for tensor in (q, k, v, i, f)), middle)
    pieces, whole = (torch.cat([first, second], 1), *last), flat(mlstm, *inputs)
    for mine, true in zip(pieces, whole, strict=True):
        assert relative(mine, true) < 1e-10
    for mine, true in zip(gradients(pieces, inputs), gradients(whole, inputs), strict=True):
        assert relative(mine, true) < 1e-10


@pytest.mark.parametrize("form", [mlstm_recurrent, mlstm_parallel, mlstm_chunkwise])
def test_mlstm_empty_state_is_no_state(form):
    q, k, v, i, f, *_ = inputs = problem(2, 9, 2, 4)
    given, none = flat(form, *inputs[:5], *mlstm_empty_state(q, v)), flat(form, q, k, v, i, f)
    for mine, true in zip(given, none, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-13, atol=1e-14)
    assert all(torch.isfinite(grad).all() for grad in gradients(given, inputs[:5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", [mlstm_recurrent, mlstm_parallel, mlstm_chunkwise])
def test_mlstm_extreme_gates_are_finite(form, dtype):
    generator = torch.Generator().manual_seed(0)
    inputs = problem(4, 70, 2, 4, dtype)
    with torch.no_grad():
        for gate in inputs[3:5]:
            gate.copy_((torch.randint(0, 3, gate.shape, generator=generator) - 1) * 120.0)
        inputs[3][0] = -120.0  # a whole sequence that opens no gate: exp(-m) would overflow in float32
    for count in (5, 8):
        outputs = flat(form, *inputs[:count])
        assert all(torch.isfinite(out).all() for out in outputs)
        assert all(torch.isfinite(grad).all() for grad in gradients(outputs, inputs[:count]))


def test_mlstm_float32_is_near_float64():
    inputs = problem(4, 96, 2, 8)
    truth = flat(mlstm, *inputs)
    single = [tensor.detach().float().requires_grad_() for tensor in inputs]
    ours = flat(mlstm, *single)
    for mine, true in zip(ours, truth, strict=True):
        assert relative(mine, true) < 1e-5
    for mine, true in zip(gradients(ours, single), gradients(truth, inputs), strict=True):
        assert relative(mine, true) < 1e-5


def test_mlstm_half_precision_keeps_float32_states():
    inputs = [tensor.detach().bfloat16().requires_grad_() for tensor in problem(2, 9, 2, 4)[:5]]
    h, state = mlstm(*inputs)
    assert h.dtype == torch.bfloat16 and all(tensor.dtype == torch.float32 for tensor in state)
    truth, _ = mlstm(*(tensor.float() for tensor in inputs))
    torch.testing.assert_close(h.float(), truth, rtol=1e-2, atol=1e-2)
    h.sum().backward()
    assert torch.isfinite(inputs[0].grad).all()


def saved_bytes(form, steps):
    inputs = problem(1, steps, 1, 4)
    seen = {}

    def note(tensor):
        seen[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = form(*inputs[:5])
    del kept
    return sum(size for size, _ in seen.values())


def test_mlstm_chunkwise_memory_is_linear_in_steps():
    assert saved_bytes(mlstm_chunkwise, 1024) < 2.2 * saved_bytes(mlstm_chunkwise, 512)
    assert saved_bytes(mlstm_parallel, 1024) > 3 * saved_bytes(mlstm_parallel, 512)
    assert saved_bytes(mlstm, 1024) < 2.2 * saved_bytes(mlstm, 512)


def test_mlstm_wrong_shapes_say_what_was_wanted():
    q, k, v, i, f, *state = problem(2, 3, 2, 4)
    with pytest.raises(ValueError, match=r"mlstm: k must be \[B=2, T=3, N=2, D=4\], got .*axis 3 \(D\) is 3"):
        mlstm(q, k[..., :3], v, i, f)
    with pytest.raises(ValueError, match=r"mlstm: f .*it has 2 axes and must have 3"):
        mlstm(q, k, v, i, f[..., 0])
    with pytest.raises(ValueError, match=r"state c .*axis 0 \(B\) is 1 and must be 2"):
        mlstm(q, k, v, i, f, MLSTMState(state[0][:1], state[1], state[2]))
