import pytest
import torch

from xlstm_tune.kernels import SLSTMState, slstm
from xlstm_tune.kernels.slstm_reference import slstm_steps

NAMES = ("gates", "recurrent", "bias", "h", "c", "n", "m")


def problem(batch, steps, heads, width, dtype=torch.float64, seed=0):
    """Inputs and a warm initial state, all requiring gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    state = [draw(batch, heads, width) for _ in range(4)]
    state[2] = state[2].abs() + 0.3
    tensors = [
        draw(batch, steps, heads, 4, width, scale=1.5),
        draw(heads, 4, width, width, scale=0.5),
        draw(heads, 4, width),
        *state,
    ]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def flat(op, gates, recurrent, bias, *state):
    h, final = op(gates, recurrent, bias, SLSTMState(*state) if state else None)
    return h, *final


def gradients(outputs, inputs, seed=1):
    """Gradients of a random weighting of all outputs."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outputs]
    loss = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
    return torch.autograd.grad(loss, inputs)


def test_slstm_first_step_by_hand():
    gates = torch.tensor([0.7, -0.4, 0.3, 1.1], dtype=torch.float64).view(1, 1, 1, 4, 1)
    h, state = slstm(gates, torch.zeros(1, 4, 1, 1, dtype=torch.float64))
    expected = torch.sigmoid(torch.tensor(1.1, dtype=torch.float64)) * torch.tanh(
        torch.tensor(0.3, dtype=torch.float64)
    )
    torch.testing.assert_close(h.squeeze(), expected)
    assert state.m.item() == 0.7 and state.n.item() == 1.0


def test_slstm_equals_the_unstabilised_equations():
    gates, recurrent, bias, *_ = (tensor.detach() for tensor in problem(3, 12, 2, 4))
    h = c = n = torch.zeros(3, 2, 4, dtype=torch.float64)
    outputs = []
    for step in gates.unbind(1):
        i, f, z, o = (step + torch.einsum("bni,ngoi->bngo", h, recurrent) + bias).unbind(2)
        c = torch.sigmoid(f) * c + torch.exp(i) * torch.tanh(z)
        n = torch.sigmoid(f) * n + torch.exp(i)
        h = torch.sigmoid(o) * c / n
        outputs.append(h)
    torch.testing.assert_close(slstm(gates, recurrent, bias)[0], torch.stack(outputs, 1), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "steps", "heads", "width"), [(2, 4, 2, 3), (1, 1, 1, 1), (3, 2, 1, 2)])
def test_slstm_gradcheck_all_inputs_and_states(batch, steps, heads, width):
    inputs = problem(batch, steps, heads, width)
    assert torch.autograd.gradcheck(lambda *tensors: flat(slstm, *tensors), inputs)


def test_slstm_gradcheck_from_the_empty_state_without_bias():
    gates, recurrent, *_ = problem(2, 4, 2, 3)
    assert torch.autograd.gradcheck(lambda g, r: flat(slstm, g, r, None), (gates, recurrent))


@pytest.mark.parametrize("which", range(5))
def test_slstm_gradient_of_one_output_alone(which):
    inputs = problem(2, 5, 2, 3)
    ours = gradients([flat(slstm, *inputs)[which]], inputs)
    truth = gradients([flat(slstm_steps, *inputs)[which]], inputs)
    for name, mine, true in zip(NAMES, ours, truth, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("batch", "steps", "heads", "width"), [(1, 1, 2, 3), (5, 2, 1, 1), (3, 63, 3, 5), (2, 33, 1, 16)]
)
def test_slstm_equals_step_by_step(batch, steps, heads, width, warm):
    inputs = problem(batch, steps, heads, width)
    inputs = inputs if warm else inputs[:3]
    ours, truth = flat(slstm, *inputs), flat(slstm_steps, *inputs)
    for mine, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-11, atol=1e-12)
    for name, mine, true in zip(NAMES, gradients(ours, inputs), gradients(truth, inputs), strict=False):
        torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_slstm_without_gradient_gives_the_same():
    inputs = problem(3, 9, 2, 4)
    kept = flat(slstm, *inputs)
    with torch.no_grad():
        for mine, true in zip(flat(slstm, *inputs), kept, strict=True):
            assert torch.equal(mine, true)


def test_slstm_batch_innermost_layout_gives_the_same():
    gates, recurrent, bias, *_ = problem(3, 9, 2, 4)
    innermost = gates.detach().permute(1, 2, 3, 4, 0).contiguous().permute(4, 0, 1, 2, 3).requires_grad_()
    assert innermost.stride(0) == 1
    ours, truth = slstm(innermost, recurrent, bias)[0], slstm(gates, recurrent, bias)[0]
    assert torch.equal(ours, truth)
    assert torch.equal(gradients([ours], [innermost])[0], gradients([truth], [gates])[0])


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_slstm_cut_sequence_gives_the_same_outputs_and_gradients(cut):
    inputs = problem(3, 9, 2, 4)
    gates, recurrent, bias, *state = inputs
    first, middle = slstm(gates[:, :cut], recurrent, bias, SLSTMState(*state))
    second, last = slstm(gates[:, cut:], recurrent, bias, middle)
    pieces, whole = (torch.cat([first, second], 1), *last), flat(slstm, *inputs)
    for mine, true in zip(pieces, whole, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-12, atol=1e-12)
    for mine, true in zip(gradients(pieces, inputs), gradients(whole, inputs), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("op", [slstm, slstm_steps])
def test_slstm_fresh_sample_among_warm_ones(op):
    gates, recurrent, bias, *state = problem(4, 6, 2, 3)
    with torch.no_grad():
        gates[1, 0, :, 0] = -90.0  # f' without its bound would overflow here in float32
        for tensor in state:
            tensor[1] = 0.0
    mixed, _ = op(gates.float(), recurrent.float(), bias.float(), SLSTMState(*(tensor.float() for tensor in state)))
    alone, _ = op(gates[1:2].float(), recurrent.float(), bias.float())
    torch.testing.assert_close(mixed[1:2], alone, rtol=1e-5, atol=1e-6)
    assert all(
        torch.isfinite(grad).all() for grad in torch.autograd.grad(mixed.sum(), [gates, recurrent, bias, *state])
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slstm_extreme_gates_are_finite(dtype):
    generator = torch.Generator().manual_seed(0)
    gates = (torch.randint(0, 3, (8, 40, 2, 4, 4), generator=generator) - 1) * 120.0
    _, recurrent, bias, *state = (tensor.detach().to(dtype).requires_grad_() for tensor in problem(8, 1, 2, 4))
    inputs = [gates.to(dtype).requires_grad_(), recurrent, bias, *state]
    outputs = flat(slstm, *inputs)
    assert all(torch.isfinite(out).all() for out in outputs)
    assert all(torch.isfinite(grad).all() for grad in gradients(outputs, inputs))
    start = (state[1] / state[2]).abs().max()
    assert outputs[0].abs().max() <= max(1.0, start), "h is an average of what went in"


def test_slstm_float32_is_near_float64():
    inputs = problem(8, 64, 2, 8)
    truth = flat(slstm, *inputs)
    single = [tensor.detach().float().requires_grad_() for tensor in inputs]
    ours = flat(slstm, *single)
    for mine, true in zip(ours, truth, strict=True):
        assert (mine.double() - true).abs().max() <= 1e-5 * true.abs().max()
    for mine, true in zip(gradients(ours, single), gradients(truth, inputs), strict=True):
        assert (mine.double() - true).abs().max() <= 1e-5 * true.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_slstm_half_precision_keeps_float32_states(dtype):
    gates, recurrent, bias, *_ = (tensor.detach().to(dtype).requires_grad_() for tensor in problem(3, 9, 2, 4))
    h, state = slstm(gates, recurrent, bias)
    assert h.dtype == dtype and all(tensor.dtype == torch.float32 for tensor in state[1:])
    truth, _ = slstm(gates.float(), recurrent.float(), bias.float())
    torch.testing.assert_close(h.float(), truth, rtol=1e-2, atol=1e-2)
    h.sum().backward()
    assert gates.grad.dtype == dtype and torch.isfinite(gates.grad).all()


def test_slstm_gradients_twice_from_one_graph():
    inputs = problem(2, 5, 2, 3)
    outputs = flat(slstm, *inputs)
    first = torch.autograd.grad(outputs[0].sum(), inputs, retain_graph=True)
    second = torch.autograd.grad(outputs[0].sum(), inputs)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def test_slstm_wrong_shapes_say_what_was_wanted():
    gates, recurrent, bias, *state = problem(2, 3, 2, 4)
    with pytest.raises(ValueError, match=r"gates must be \[B, T, N, gates=4, D\].*it has 4 axes and must have 5"):
        slstm(gates[:, 0], recurrent)
    with pytest.raises(ValueError, match=r"recurrent must be \[N=2, gates=4, D_out=4, D_in=4\].*axis 3 \(D_in\) is 3"):
        slstm(gates, recurrent[..., :3])
    with pytest.raises(ValueError, match=r"bias .*axis 0 \(N\) is 1 and must be 2"):
        slstm(gates, recurrent, bias[:1])
    with pytest.raises(ValueError, match=r"axis 1 \(T\) is 0 and must be at least 1"):
        slstm(gates[:, :0], recurrent)
    with pytest.raises(ValueError, match=r"state n .*axis 0 \(B\) is 1 and must be 2"):
        slstm(gates, recurrent, bias, SLSTMState(state[0], state[1], state[2][:1], state[3]))


def test_slstm_forgets_nothing_with_open_forget_gates():
    gates = torch.zeros(1, 50, 1, 4, 1, dtype=torch.float64)
    gates[..., 1, :] = 40.0
    gates[..., 3, :] = 40.0
    z = torch.linspace(-1, 1, 50, dtype=torch.float64)
    gates[0, :, 0, 2, 0] = z
    h, _ = slstm(gates, torch.zeros(1, 4, 1, 1, dtype=torch.float64))
    means = torch.tanh(z).cumsum(0) / torch.arange(1, 51)
    torch.testing.assert_close(h.flatten(), means, rtol=1e-10, atol=1e-12)


def test_slstm_outputs_may_be_changed_in_place():
    inputs = problem(2, 5, 2, 3)
    h, state = slstm(*inputs[:3], SLSTMState(*inputs[3:]))
    truth = torch.autograd.grad(h.sum(), inputs[0], retain_graph=True)[0]
    with torch.no_grad():
        h.zero_()
        state.c.zero_()
    assert torch.equal(torch.autograd.grad(h.sum(), inputs[0])[0], truth)
