import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from xlstm_tune.kernels import SLSTMState
from xlstm_tune.kernels.mlstm_forms import MLSTMState, mlstm_recurrent
from xlstm_tune.kernels.slstm_reference import slstm_steps
from xlstm_tune.models.block import BlockDiagonal, HeadNorm, Norm
from xlstm_tune.models.conv import CausalConv
from xlstm_tune.models.mlstm import MLSTMLayer, MLSTMLayerState
from xlstm_tune.models.slstm import SLSTMLayer, SLSTMLayerState, forget_bias

LAYERS = {
    "slstm": lambda kernel=4: SLSTMLayer(8, heads=2, conv_kernel=kernel),
    "mlstm": lambda kernel=4: MLSTMLayer(8, inner=16, heads=2, conv_kernel=kernel),
}


def shaken(module):
    """The module in float64 with every parameter moved off its special initial value."""
    module = module.double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def test_causal_conv_equals_conv1d():
    conv = shaken(CausalConv(6, 4))
    x = torch.randn(3, 9, 6, dtype=torch.float64)
    weight = conv.weight.t().unsqueeze(1)
    truth = F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), weight, conv.bias, groups=6).transpose(1, 2)
    torch.testing.assert_close(conv(x)[0], F.silu(truth))


@pytest.mark.parametrize(
    ("width", "block", "heads"),
    [(64, 4, 4), (12, 4, 1), (16, 16, 2), (128, 32, 1), (128, 4, 1), (36, 4, 6), (16, 1, 16)],
)
def test_block_diagonal_equals_dense(width, block, heads):
    layer = shaken(BlockDiagonal(width, block, heads, width))
    dense = torch.block_diag(*layer.weight)
    x = torch.randn(2, 3, width, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.linear(x, dense).unflatten(2, (heads, -1)))


def test_norm_weighs_one_plus_w():
    norm = shaken(Norm(6))
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(norm(x), F.layer_norm(x, (6,), eps=1e-5) * (1 + norm.weight))


def test_head_norm_is_per_head_and_weighs_one_plus_w():
    norm = shaken(HeadNorm(6, heads=2))
    h = torch.randn(2, 3, 2, 3, dtype=torch.float64)
    truth = torch.cat([F.layer_norm(h[:, :, head], (3,), eps=1e-5) for head in (0, 1)], -1) * (1 + norm.weight)
    torch.testing.assert_close(norm(h).flatten(2), truth)


def test_head_norm_of_heads_of_width_one_passes_the_signal():
    norm = HeadNorm(3, heads=3)
    h = torch.randn(2, 5, 3, 1)
    assert torch.equal(norm(h), h)


@pytest.mark.parametrize("kernel", [0, 1, 4])
def test_slstm_layer_equals_the_equations(kernel):
    layer = shaken(SLSTMLayer(8, heads=2, conv_kernel=kernel))
    x = torch.randn(3, 7, 8, dtype=torch.float64)
    heads = x.view(3, 7, 2, 4)
    convolved = layer.conv(x)[0].view(3, 7, 2, 4) if kernel else heads
    sources = (convolved, convolved, heads, heads)
    gates = torch.stack(
        [torch.einsum("btni,noi->btno", source, layer.input_weight[:, gate]) for gate, source in enumerate(sources)], 3
    )
    h, _ = slstm_steps(gates, layer.recurrent_weight, layer.bias)
    torch.testing.assert_close(layer(x)[0], layer.norm(h).flatten(2))


@pytest.mark.parametrize("kernel", [0, 4])
def test_mlstm_layer_equals_the_equations(kernel):
    layer = shaken(MLSTMLayer(8, inner=16, heads=2, conv_kernel=kernel))
    x = torch.randn(3, 7, 8, dtype=torch.float64)
    inner, z = layer.up(x).chunk(2, -1)
    convolved = layer.conv(inner)[0] if kernel else inner
    q, k, v = (
        F.linear(source, torch.block_diag(*part.weight))
        for source, part in ((convolved, layer.q), (convolved, layer.k), (inner, layer.v))
    )
    gates = layer.gates(torch.cat([q, k, v], -1))
    h, _ = mlstm_recurrent(*(tensor.view(3, 7, 2, 8) for tensor in (q, k, v)), gates[..., :2], gates[..., 2:])
    truth = layer.down((layer.norm(h).flatten(2) + layer.skip * convolved) * F.silu(z))
    torch.testing.assert_close(layer(x)[0], truth)


@pytest.mark.parametrize("kernel", [0, 1, 2, 4])
@pytest.mark.parametrize("cut", [1, 2, 6])
@pytest.mark.parametrize("name", LAYERS)
def test_cut_sequence_gives_the_same_outputs_and_gradients(name, cut, kernel):
    layer = shaken(LAYERS[name](kernel))
    x = torch.randn(3, 8, 8, dtype=torch.float64, requires_grad=True)
    whole, final = layer(x)
    first, middle = layer(x[:, :cut])
    second, last = layer(x[:, cut:], middle)
    pieces = torch.cat([first, second], 1)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(last.conv, final.conv)
    for one, other in zip(last.cell, final.cell, strict=True):
        torch.testing.assert_close(one, other)
    inputs = [x, *layer.parameters()]
    for one, other in zip(
        torch.autograd.grad(pieces.square().sum(), inputs),
        torch.autograd.grad(whole.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", LAYERS)
def test_step_by_step_equals_the_sequence(name):
    layer = shaken(LAYERS[name]())
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    state, outputs = None, []
    for t in range(6):
        y, state = layer(x[:, t : t + 1], state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), layer(x)[0])


def test_fresh_sample_among_warm_ones_starts_anew():
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    for name, make in LAYERS.items():
        layer = shaken(make())
        _, state = layer(torch.randn(3, 4, 8, dtype=torch.float64))
        fresh = torch.tensor([False, True, False])

        def reset(tensor, value=0.0, fresh=fresh):
            return torch.where(fresh.view(-1, *[1] * (tensor.dim() - 1)), value, tensor)

        if name == "slstm":
            state = SLSTMLayerState(reset(state.conv), SLSTMState(*(reset(tensor) for tensor in state.cell)))
        else:
            c, n, m = state.cell
            state = MLSTMLayerState(reset(state.conv), MLSTMState(reset(c), reset(n), reset(m, -torch.inf)))
        torch.testing.assert_close(layer(x, state)[0][1], layer(x)[0][1])


@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_causal(name):
    layer = shaken(LAYERS[name]())
    x = torch.randn(2, 8, 8, dtype=torch.float64)
    later = x.clone()
    later[:, 5:] = torch.randn(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(later)[0][:, :5], layer(x)[0][:, :5], rtol=0, atol=1e-13)
    assert (layer(later)[0][:, 5:] - layer(x)[0][:, 5:]).abs().min() > 0


def test_forget_bias_is_the_official_power_law():
    bias = forget_bias(2, 5, block=1, blocks=3)
    expected = torch.tensor([5.0 - 12.0 * (d / 4) ** (0.3 + 1.3 / 2) for d in range(5)])
    torch.testing.assert_close(bias, expected.expand(2, 5))
    torch.testing.assert_close(forget_bias(1, 3, 0, 1)[0], torch.tensor([5.0, 5.0 - 12.0 * 0.5**0.3, -7.0]))


def test_forget_bias_of_heads_of_width_one_spreads_over_the_heads():
    torch.testing.assert_close(forget_bias(5, 1, 1, 2).flatten(), forget_bias(1, 5, 1, 2).flatten())
    assert forget_bias(1, 1).item() == 5.0


def test_layer_with_heads_of_width_one_trains():
    layer = SLSTMLayer(4, heads=4)
    y, _ = layer(torch.randn(2, 5, 4))
    y.square().sum().backward()
    assert torch.isfinite(y).all() and y.abs().max() > 0
    assert all(torch.isfinite(parameter.grad).all() and parameter.grad.any() for parameter in layer.parameters())


def test_initial_values_are_the_official_ones():
    torch.manual_seed(0)
    slstm, mlstm = SLSTMLayer(256, heads=4), MLSTMLayer(256, inner=512, heads=4, blocks=3)
    assert not slstm.recurrent_weight.any() and not slstm.bias[:, (0, 2, 3)].any() and slstm.bias[:, 1].any()
    projection = (2 / (5 * 256)) ** 0.5
    for weight in (slstm.input_weight, mlstm.up.weight, mlstm.q.weight, mlstm.k.weight, mlstm.v.weight):
        assert abs(weight.std() / projection - 1) < 0.1 and abs(weight.mean()) < 0.1 * projection
    assert abs(mlstm.down.weight.std() / (2 / (3 * 256**0.5)) - 1) < 0.1
    assert not mlstm.gates.weight.any() and mlstm.skip.eq(1).all() and not mlstm.norm.weight.any()
    assert torch.equal(mlstm.gates.bias[4:], torch.linspace(3, 6, 4))
    assert 0 < mlstm.gates.bias[:4].abs().max() < 0.6


@pytest.mark.parametrize("name", LAYERS)
def test_layer_refuses_a_wrong_width(name):
    with pytest.raises(ValueError, match=r"Layer: x must be \[B, T, E=8\], got \[2, 3, 9\]: axis 2 \(E\) is 9"):
        LAYERS[name]()(torch.zeros(2, 3, 9))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_refuses_what_is_no_state(name):
    with pytest.raises(ValueError, match=r"Layer: state must be [SM]LSTMLayerState or a tuple of 2 .*, got 1 of them"):
        LAYERS[name]()(torch.zeros(2, 3, 8), (torch.zeros(2, 3, 8),))
    with pytest.raises(TypeError, match=r"Layer: state must be .*, got Tensor"):
        LAYERS[name]()(torch.zeros(2, 3, 8), torch.zeros(2, 3, 8))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_takes_lengths_of_any_whole_numbers(name):
    layer, x = LAYERS[name](), torch.randn(2, 3, 8)
    wanted, _ = layer(x, lengths=torch.tensor([3, 1]))
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(layer(x, lengths=torch.tensor([3, 1], dtype=dtype))[0], wanted)


def test_layer_refuses_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="heads must divide width, got 3 heads and width 8"):
        SLSTMLayer(8, heads=3)
    with pytest.raises(ValueError, match="inner must be a multiple of heads"):
        MLSTMLayer(8, inner=16, heads=3)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_deepcopy_pickle_functional_call_and_autocast(name):
    layer = LAYERS[name]()
    x = torch.randn(2, 5, 8)
    y, _ = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x)[0], y)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x)[0], y)
    moved = {key: parameter + 0.1 for key, parameter in layer.named_parameters()}
    other = copy.deepcopy(layer)
    other.load_state_dict(moved)
    assert torch.equal(torch.func.functional_call(layer, moved, (x,))[0], other(x)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, _ = layer(x)
    low.float().sum().backward()
    assert torch.isfinite(low).all() and (low.float() - y).abs().max() < 0.2 * y.abs().max()
