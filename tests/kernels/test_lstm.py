import pytest
import torch

from xlstm_tune.kernels import LSTMState, lstm
from xlstm_tune.kernels.lstm_reference import lstm_steps
from xlstm_tune.kernels.masks import SHUT

NAMES = ("gates", "recurrent", "bias", "h", "c", "projection")


def problem(batch, steps, heads, width, out=None, dtype=torch.float64, seed=0):
    """Inputs, a warm initial state and, with `out`, a projection, all requiring gradients, in the order of NAMES."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    p = out or width
    tensors = [
        draw(batch, steps, heads, 4, width, scale=1.5),
        draw(heads, 4, width, p, scale=p**-0.5),
        draw(heads, 4, width),
        draw(batch, heads, p),
        draw(batch, heads, width),
    ]
    tensors += [draw(heads, out, width, scale=width**-0.5)] if out else []
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def flat(op, gates, recurrent, bias, h=None, c=None, projection=None, **options):
    over_time, final = op(gates, recurrent, bias, h if h is None else LSTMState(h, c), projection=projection, **options)
    return over_time, *final


def gradients(outputs, inputs, seed=1):
    """Gradients of a random weighting of all outputs."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outputs]
    loss = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
    return torch.autograd.grad(loss, inputs)


def assert_equal(ours, truth, inputs, rtol=1e-10, atol=1e-11):
    for mine, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, true, rtol=rtol, atol=atol)
    for name, mine, true in zip(NAMES, gradients(ours, inputs), gradients(truth, inputs), strict=False):
        torch.testing.assert_close(mine, true, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def test_lstm_first_step_by_hand():
    gates = torch.tensor([0.7, -0.4, 0.3, 1.1], dtype=torch.float64).view(1, 1, 1, 4, 1)
    h, state = lstm(gates, torch.zeros(1, 4, 1, 1, dtype=torch.float64))
    i, _, g, o = gates.flatten()
    c = torch.sigmoid(i) * torch.tanh(g)
    torch.testing.assert_close(state.c.squeeze(), c)
    torch.testing.assert_close(h.squeeze(), torch.sigmoid(o) * torch.tanh(c))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("out", [None, 2])
@pytest.mark.parametrize(("batch", "steps", "heads", "width"), [(2, 4, 2, 3), (3, 1, 1, 4)])
def test_lstm_gradcheck_all_inputs_and_states(batch, steps, heads, width, out, masked):
    inputs = problem(batch, steps, heads, width, out)
    options = {}
    if masked:
        resets = torch.zeros(batch, steps, dtype=torch.bool)
        resets[0, 0] = resets[1, steps // 2] = True
        options = {"resets": resets, "lengths": torch.arange(batch) % steps + 1}
    assert torch.autograd.gradcheck(lambda *tensors: flat(lstm, *tensors, **options), inputs)


def test_lstm_gradcheck_from_the_empty_state_without_bias():
    gates, recurrent, *_ = problem(2, 4, 2, 3)
    assert torch.autograd.gradcheck(lambda g, r: flat(lstm, g, r, None), (gates, recurrent))


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("out", [None, 3])
@pytest.mark.parametrize(("batch", "steps", "heads", "width"), [(1, 1, 2, 4), (5, 2, 1, 4), (3, 63, 3, 5)])
def test_lstm_equals_step_by_step(batch, steps, heads, width, out, warm):
    inputs = problem(batch, steps, heads, width, out)
    if warm:
        assert_equal(flat(lstm, *inputs), flat(lstm_steps, *inputs), inputs)
    else:
        known = dict(zip(NAMES, inputs, strict=False))
        del known["h"], known["c"]
        assert_equal(flat(lstm, **known), flat(lstm_steps, **known), list(known.values()))


@pytest.mark.parametrize("out", [None, 3])
def test_lstm_with_resets_equals_step_by_step_with_states_set_to_zero(out):
    inputs = problem(4, 9, 2, 4, out)
    resets = torch.zeros(4, 9, dtype=torch.bool)
    resets[0, 0] = resets[1, 4] = resets[1, 5] = resets[3, 8] = True
    shut = torch.zeros(4, 9, 1, 4, 1, dtype=torch.float64)
    shut[resets, :, 1] = SHUT
    gates, *rest = inputs
    truth = flat(lstm_steps, gates + shut, *rest, keep=(~resets).double())
    assert_equal(flat(lstm, *inputs, resets=resets), truth, inputs)


@pytest.mark.parametrize("out", [None, 3])
@pytest.mark.parametrize("cut", [1, 4, 8])
def test_lstm_cut_sequence_gives_the_same_outputs_and_gradients(cut, out):
    inputs = problem(3, 9, 2, 4, out)
    gates, recurrent, bias, h, c, *projection = inputs
    first, *middle = flat(lstm, gates[:, :cut], recurrent, bias, h, c, *projection)
    second, *last = flat(lstm, gates[:, cut:], recurrent, bias, *middle, *projection)
    assert_equal((torch.cat([first, second], 1), *last), flat(lstm, *inputs), inputs)


def test_lstm_batch_innermost_layout_gives_the_same():
    gates, recurrent, bias, *_ = problem(3, 9, 2, 4)
    innermost = gates.detach().permute(1, 2, 3, 4, 0).contiguous().permute(4, 0, 1, 2, 3).requires_grad_()
    assert innermost.stride(0) == 1
    ours, truth = lstm(innermost, recurrent, bias)[0], lstm(gates, recurrent, bias)[0]
    assert torch.equal(ours, truth)
    assert torch.equal(gradients([ours], [innermost])[0], gradients([truth], [gates])[0])


@pytest.mark.parametrize("extreme", [120.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lstm_extreme_gates_are_finite(dtype, extreme):
    generator = torch.Generator().manual_seed(0)
    gates = (torch.randint(0, 3, (8, 40, 2, 4, 4), generator=generator) - 1) * extreme
    inputs = [gates.to(dtype).requires_grad_(), *problem(8, 1, 2, 4, dtype=dtype)[1:]]
    outputs = flat(lstm, *inputs)
    assert all(torch.isfinite(out).all() for out in outputs)
    assert all(torch.isfinite(grad).all() for grad in gradients(outputs, inputs))
    assert outputs[0].abs().max() <= 1.0


@pytest.mark.parametrize("out", [None, 5])
def test_lstm_float32_is_near_float64(out):
    inputs = problem(8, 64, 2, 8, out)
    truth = flat(lstm, *inputs)
    single = [tensor.detach().float().requires_grad_() for tensor in inputs]
    ours = flat(lstm, *single)
    pairs = [*zip(ours, truth, strict=True), *zip(gradients(ours, single), gradients(truth, inputs), strict=True)]
    for mine, true in pairs:
        assert mine.dtype == torch.float32
        assert (mine.double() - true).abs().max() <= 1e-5 * true.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lstm_half_precision_keeps_float32_states(dtype):
    gates, recurrent, bias, *_ = problem(3, 9, 2, 4, dtype=dtype)
    h, state = lstm(gates, recurrent, bias)
    assert h.dtype == dtype and all(tensor.dtype == torch.float32 for tensor in state)
    truth, _ = lstm(gates.float(), recurrent.float(), bias.float())
    torch.testing.assert_close(h.float(), truth, rtol=1e-2, atol=1e-2)
    h.sum().backward()
    assert gates.grad.dtype == dtype and torch.isfinite(gates.grad).all()


def test_lstm_projection_folds_under_vmap():
    members = [problem(3, 5, 2, 4, 2, seed=seed) for seed in range(3)]
    stacked = [torch.stack(parts).detach().requires_grad_() for parts in zip(*members, strict=True)]
    together = torch.vmap(lambda *own: flat(lstm, *own))(*stacked)
    one_by_one = zip(*(flat(lstm, *[tensor[member] for tensor in stacked]) for member in range(3)), strict=True)
    assert_equal(together, [torch.stack(outputs) for outputs in one_by_one], stacked)


def test_lstm_operators_hold_their_promises_to_torch():
    gates, recurrent, bias, h, c, projection = problem(3, 5, 2, 4, 2)
    keep = torch.ones(5, 2, 3, dtype=torch.float64)
    layout = [gates, recurrent, bias, projection]
    states = [state.detach().permute(1, 2, 0).contiguous() for state in (h, c)]
    for constants in (None, keep):
        for train in (True, False):
            arguments = (*layout, *states, constants, train)
            checks = ("test_schema", "test_faketensor", "test_autograd_registration")
            torch.library.opcheck(torch.ops.xlstm_tune.lstm_reference.default, arguments, test_utils=checks)


def test_lstm_outputs_may_be_changed_in_place():
    inputs = problem(2, 5, 2, 3)
    h, state = lstm(*inputs[:3], LSTMState(*inputs[3:]))
    truth = torch.autograd.grad(h.sum(), inputs[0], retain_graph=True)[0]
    with torch.no_grad():
        h.zero_()
        state.c.zero_()
    assert torch.equal(torch.autograd.grad(h.sum(), inputs[0])[0], truth)


def test_lstm_wrong_shapes_say_what_was_wanted():
    gates, recurrent, bias, h, c, projection = problem(2, 3, 2, 4, 3)
    square = torch.zeros(2, 4, 4, 4)
    with pytest.raises(ValueError, match=r"gates must be \[B, T, N, gates=4, D\].*it has 4 axes and must have 5"):
        lstm(gates[0], square)
    with pytest.raises(ValueError, match=r"recurrent must be \[N=2, gates=4, D=4, P=4\].*axis 3 \(P\) is 3"):
        lstm(gates, recurrent)
    with pytest.raises(ValueError, match=r"bias .*axis 0 \(N\) is 1 and must be 2"):
        lstm(gates, square, bias[:1])
    with pytest.raises(ValueError, match=r"projection must be \[N=2, P=3, D=4\].*axis 1 \(P\) is 2"):
        lstm(gates, recurrent, projection=projection[:, :2])
    with pytest.raises(ValueError, match=r"state h must be \[B=2, N=2, P=3\].*axis 2 \(P\) is 4"):
        lstm(gates, recurrent, bias, LSTMState(c, c), projection=projection)
    with pytest.raises(ValueError, match=r"state c .*axis 0 \(B\) is 1 and must be 2"):
        lstm(gates, recurrent, bias, LSTMState(h, c[:1]), projection=projection)
    with pytest.raises(ValueError, match=r"axis 1 \(T\) is 0 and must be at least 1"):
        lstm(gates[:, :0], square)
