"""A whole mLSTM layer as one op: against its parts in float64, outputs and all gradients, at odd sizes.

Memory that is not yet written holds NaN throughout, so that reading it shows.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

from xlstm_tune.kernels import around
from xlstm_tune.kernels.mlstm_layer_numba import MLSTMLayerWeights, mlstm_layer_fits
from xlstm_tune.models import mlstm
from xlstm_tune.models.mlstm import MLSTMLayer

SIZES = [(1, 12, 16, 16, 1), (3, 13, 16, 32, 2), (2, 40, 32, 32, 1), (17, 24, 16, 48, 3), (5, 33, 48, 64, 2)]
"""(batch, steps, width, inner width, heads)"""


pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture
def whole_only(monkeypatch):
    """The layer's parts are out of reach."""
    monkeypatch.setattr(mlstm, "linear", None)


def problem(batch, steps, width, inner, heads, **options):
    torch.manual_seed(steps)
    layer = MLSTMLayer(width, inner, heads, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return layer, torch.randn(batch, steps, width)


def flat(layer, x, **options):
    y, (past, (c, n, m)) = layer(x, **options)
    return y, c, n, m, past


def results(layer, x, chosen=slice(None), function=flat):
    """The chosen outputs, and the gradients of a random weighting of them."""
    x = x.detach().requires_grad_()
    outputs = function(layer, x)[chosen]
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (out * torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)).sum() for out in outputs
    )
    wanted = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    return *outputs, *torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)


def in_parts(layer):
    layer = copy.deepcopy(layer).double()
    layer.backend = layer.conv.backend = layer.norm.backend = "reference"
    return layer


def assert_near(mine, true, tolerance=2e-5):
    for number, (one, other) in enumerate(zip(mine, true, strict=True)):
        assert one.dtype == torch.float32
        assert (one.double() - other).abs().max() <= tolerance * other.abs().max().clamp(min=0.01), f"result {number}"


@pytest.mark.parametrize("size", SIZES)
def test_one_op_equals_its_parts(size, request):
    layer, x = problem(*size)
    true = results(in_parts(layer), x.double())
    request.getfixturevalue("whole_only")
    assert_near(results(layer, x), true)


@pytest.mark.parametrize("chosen", range(5))
def test_single_outputs_have_their_own_gradients(chosen, request):
    layer, x = problem(3, 40, 16, 32, 2)
    true = results(in_parts(layer), x.double(), slice(chosen, chosen + 1))
    request.getfixturevalue("whole_only")
    assert_near(results(layer, x, slice(chosen, chosen + 1)), true)


@pytest.mark.usefixtures("whole_only")
def test_frozen_parameters_and_no_gradient_give_the_same_bits():
    layer, x = problem(3, 20, 16, 32, 2)
    true = results(layer, x, slice(1))
    with torch.no_grad():
        for one, other in zip(flat(layer, x), flat(layer, x.clone().requires_grad_()), strict=True):
            assert torch.equal(one, other)
        assert torch.equal(flat(layer, x)[0], true[0])
    names = [name for name, _ in layer.named_parameters()]
    layer.conv.requires_grad_(False)
    for name, mine in zip(
        (name for name in names if not name.startswith("conv")), results(layer, x, slice(1))[2:], strict=True
    ):
        assert torch.equal(mine, true[2 + names.index(name)]), name
    y = layer(x)[0]  # x needs no gradient
    y.sum().backward()
    assert layer.up.weight.grad.isfinite().all() and layer.conv.weight.grad is None


@pytest.mark.usefixtures("whole_only")
def test_vmap_over_members_equals_each_alone():
    layers = [problem(3, 13, 16, 32, 2)[0] for _ in range(3)]
    x = torch.stack([problem(3, steps, 16, 32, 2)[1][:, :13] for steps in (13, 14, 15)])
    with torch.no_grad():
        for number, layer in enumerate(layers):
            for parameter in layer.parameters():
                parameter *= 1.0 + 0.1 * number
    weights, _ = torch.func.stack_module_state(layers)
    seen = x.clone().requires_grad_()
    y, *_ = torch.func.vmap(lambda own, one: torch.func.functional_call(layers[0], own, one))(weights, seen)
    y.square().sum().backward()
    for number, layer in enumerate(layers):
        alone = x[number].clone().requires_grad_()
        z = layer(alone)[0]
        z.square().sum().backward()
        torch.testing.assert_close(y[number], z, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(seen.grad[number], alone.grad, rtol=1e-4, atol=1e-5 * alone.grad.abs().max())
        for name, parameter in layer.named_parameters():
            atol = 1e-5 * parameter.grad.abs().max()
            torch.testing.assert_close(weights[name].grad[number], parameter.grad, rtol=1e-4, atol=atol)


@pytest.mark.usefixtures("whole_only")
def test_compile_without_graph_breaks():
    torch._dynamo.reset()
    layer, x = problem(2, 12, 16, 16, 1)
    compiled = torch.compile(flat, fullgraph=True, backend="aot_eager")
    for mine, true in zip(results(layer, x, function=compiled), results(layer, x), strict=True):
        torch.testing.assert_close(mine, true)


@pytest.mark.usefixtures("whole_only")
def test_any_number_of_threads_gives_the_same_bits():
    layer, x = problem(17, 24, 16, 48, 3)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(layer, x))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


@pytest.mark.usefixtures("whole_only")
def test_nan_in_one_sample_stays_there_and_shows():
    layer, x = problem(3, 20, 16, 32, 2)
    x[1, 7, 3] = torch.nan
    y = layer(x)[0]
    assert y[1, 7:].isnan().all() and not y[[0, 2]].isnan().any()


@pytest.mark.parametrize("changed", [{"conv_kernel": 3}, {"conv_kernel": 0}, {"qkv_block": 2}, {"head_norm": False}])
def test_other_layers_run_in_parts(changed):
    layer, x = problem(2, 14, 16, 32, 2, **changed)
    true = flat(copy.deepcopy(layer).double(), x.double())
    for one, other in zip(flat(layer, x), true, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


def test_states_resets_lengths_and_few_steps_run_in_parts(monkeypatch):
    layer, x = problem(2, 30, 16, 32, 2)
    y, state = layer(x)
    monkeypatch.setattr(around, "mlstm_layer_numba", None)
    first, between = layer(x[:, :11])
    torch.testing.assert_close(first, y[:, :11])
    second, end = layer(x[:, 11:], between)
    torch.testing.assert_close(second, y[:, 11:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(end.conv, state.conv)
    resets = torch.zeros(2, 30, dtype=torch.bool)
    torch.testing.assert_close(layer(x, resets=resets)[0], y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x, lengths=torch.tensor([30, 12]))[0][0], y[0], rtol=1e-4, atol=1e-5)


def test_large_weights_run_in_parts():
    def weights(width, outputs, inputs):
        blocks = [torch.zeros(width // 4, 4, 4)] * 3
        gates = [torch.zeros(4, width), torch.zeros(4, width), torch.zeros(4)]
        ends = [torch.zeros(width), torch.zeros(width), torch.zeros(outputs, width)]
        return MLSTMLayerWeights(
            torch.zeros(2 * width, inputs), torch.zeros(4, width), torch.zeros(width), *blocks, *gates, *ends
        )

    assert not mlstm_layer_fits(torch.zeros(2, 12, 512), weights(512, 512, 512))
    assert mlstm_layer_fits(torch.zeros(2, 12, 64), weights(512, 128, 64))
    assert not mlstm_layer_fits(torch.zeros(2, 11, 64), weights(512, 128, 64))
    assert not mlstm_layer_fits(torch.zeros(2, 12, 64), weights(48, 64, 64))  # heads of 24


def last(layer, x):
    return (layer.last(x).squeeze(1),)


def normed_last(layer, x):
    found = layer.normed_last(x, layer.before)
    if found is None:
        seen = F.layer_norm(x, x.shape[2:], layer.before, None, around.NORM_EPSILON)
        found = layer.last(seen), x[:, -1:]
    return tuple(one.squeeze(1) for one in found)


def last_problem(*size, **options):
    layer, x = problem(*size, **options)
    layer.before = torch.nn.Parameter(1.0 + 0.3 * torch.randn(layer.width))
    return layer, x


@pytest.fixture
def last_at_once(monkeypatch):
    """The last output's parts are out of reach."""
    monkeypatch.setattr(mlstm, "pooled_by_last", None)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("function", [last, normed_last])
def test_the_last_output_in_one_op_equals_its_parts(function, size, request):
    layer, x = last_problem(*size)
    true = results(in_parts(layer), x.double(), function=function)
    request.getfixturevalue("last_at_once")
    assert_near(results(layer, x, function=function), true)


@pytest.mark.parametrize("chosen", range(2))
def test_the_last_output_and_the_last_input_have_their_own_gradients(chosen, request):
    layer, x = last_problem(3, 40, 16, 32, 2)
    chosen = slice(chosen, chosen + 1)
    true = results(in_parts(layer), x.double(), chosen, normed_last)
    request.getfixturevalue("last_at_once")
    assert_near(results(layer, x, chosen, normed_last), true)


@pytest.mark.usefixtures("last_at_once")
@pytest.mark.parametrize("function", [last, normed_last])
def test_the_last_output_without_gradients_has_the_same_bits(function):
    layer, x = last_problem(3, 20, 16, 32, 2)
    with torch.no_grad():
        quick = function(layer, x)
    assert all(torch.equal(one, other) for one, other in zip(quick, function(layer, x), strict=True))


@pytest.mark.usefixtures("last_at_once")
@pytest.mark.parametrize("function", [last, normed_last])
def test_vmap_of_the_last_output_equals_each_member_alone(function):
    layers = [last_problem(3, 13, 16, 32, 2)[0] for _ in range(3)]
    with torch.no_grad():
        for number, layer in enumerate(layers):
            for parameter in layer.parameters():
                parameter *= 1.0 + 0.1 * number
    x = torch.randn(3, 3, 13, 16)
    weights, _ = torch.func.stack_module_state(layers)

    class Called(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layers[0]

        def forward(self, x):
            return function(self.layer, x)[0]

    seen = x.clone().requires_grad_()
    named = {f"layer.{name}": weight for name, weight in weights.items()}
    y = torch.func.vmap(lambda own, one: torch.func.functional_call(Called(), own, one))(named, seen)
    y.square().sum().backward()
    for number, layer in enumerate(layers):
        alone = x[number].clone().requires_grad_()
        z = function(layer, alone)[0]
        z.square().sum().backward()
        torch.testing.assert_close(y[number], z, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(seen.grad[number], alone.grad, rtol=1e-4, atol=1e-5 * alone.grad.abs().max())
        for name, parameter in layer.named_parameters():
            if parameter.grad is not None:
                atol = 1e-5 * parameter.grad.abs().max()
                torch.testing.assert_close(weights[name].grad[number], parameter.grad, rtol=1e-4, atol=atol)


@pytest.mark.usefixtures("last_at_once")
@pytest.mark.parametrize("function", [last, normed_last])
def test_compile_of_the_last_output_without_graph_breaks(function):
    torch._dynamo.reset()
    layer, x = last_problem(2, 12, 16, 16, 1)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for mine, true in zip(results(layer, x, function=compiled), results(layer, x, function=function), strict=True):
        torch.testing.assert_close(mine, true)


@pytest.mark.usefixtures("last_at_once")
def test_any_number_of_threads_gives_the_last_output_the_same_bits():
    layer, x = last_problem(17, 24, 16, 48, 3)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(layer, x, function=normed_last))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


@pytest.mark.usefixtures("last_at_once")
def test_nan_in_one_sample_shows_in_its_last_output_alone():
    layer, x = last_problem(3, 20, 16, 32, 2)
    x[1, 7, 3] = torch.nan
    for function in (last, normed_last):
        y = function(layer, x)[0]
        assert y[1].isnan().all() and not y[[0, 2]].isnan().any()
