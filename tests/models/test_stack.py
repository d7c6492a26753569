import copy
import pickle

import pytest
import torch

from xlstm_tune.models.config import ModelConfig
from xlstm_tune.models.mlstm import MLSTMLayer
from xlstm_tune.models.slstm import SLSTMLayer
from xlstm_tune.models.stack import XLSTMStack


def stack(pattern, **options):
    return XLSTMStack(ModelConfig(family="xlstm", pattern=pattern, hidden_size=16, heads=2, **options))


def shaken(module):
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return module


def test_pattern_orders_the_blocks_and_only_s_has_a_feed_forward():
    blocks = stack("sms").blocks
    assert [type(block.layer) for block in blocks] == [SLSTMLayer, MLSTMLayer, SLSTMLayer]
    assert [block.feed_forward is not None for block in blocks] == [True, False, True]
    assert blocks[0].feed_forward.down.in_features == 64  # 16 × 1.3 rounded up
    assert blocks[1].layer.inner == 64


def test_blocks_are_residual_and_the_norm_comes_last():
    model = shaken(stack("sm"))
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    s, m = model.blocks
    y = x + s.layer(s.norm(x))[0]
    y = y + s.feed_forward(s.feed_forward_norm(y))
    y = y + m.layer(m.norm(y))[0]
    torch.testing.assert_close(model(x)[0], model.norm(y))


def test_forget_bias_follows_the_place_in_the_stack():
    blocks = stack("sss").blocks
    biases = [block.layer.bias[0, 1] for block in blocks]
    assert torch.equal(biases[0][[0, -1]], torch.tensor([5.0, -7.0]))
    assert biases[0][3] < biases[1][3] < biases[2][3]


@pytest.mark.parametrize("pattern", ["s", "m"])
def test_single_block_has_finite_initial_values(pattern):
    assert all(torch.isfinite(parameter).all() for parameter in stack(pattern).parameters())


@pytest.mark.parametrize("pattern", ["s", "m", "smm", "mss"])
@pytest.mark.parametrize("kernel", [0, 4])
def test_cut_sequence_gives_the_same(pattern, kernel):
    model = shaken(stack(pattern, conv_kernel=kernel))
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    whole, _ = model(x)
    state, pieces = None, []
    for piece in x.split([1, 5, 2, 1], 1):
        y, state = model(piece, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)


def test_batch_rows_are_independent():
    model = shaken(stack("ms"))
    x = torch.randn(4, 6, 16, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(x[order])[0], model(x)[0][order])


def test_dropout_is_off_in_evaluation():
    model = stack("ms", dropout=0.5)
    x = torch.randn(2, 6, 16)
    assert not torch.equal(model(x)[0], model(x)[0])
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])


def test_state_of_another_depth_is_refused():
    _, state = stack("m")(torch.randn(2, 3, 16))
    with pytest.raises(ValueError, match="one entry for each of 2 blocks, got 1"):
        stack("ms")(torch.randn(2, 3, 16), state)
    with pytest.raises(ValueError, match="one entry for each of 2 blocks, got int"):
        stack("ms")(torch.randn(2, 3, 16), 5)


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_input_of_another_dtype_than_the_weights_is_refused(direction):
    model, x = stack("ms", direction=direction), torch.randn(2, 5, 16)
    wanted = "must be torch.float32, as the weights are, got torch.float64"
    with pytest.raises(ValueError, match=rf"XLSTMStack: x {wanted}; x\.float\(\) makes it so"):
        model(x.double())
    _, state = copy.deepcopy(model).double()(x.double())
    with pytest.raises(ValueError, match=rf"XLSTMStack: state\[0\], conv {wanted}; conv\.float\(\) makes it so"):
        model(x, state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = model(x.bfloat16())
        assert model(x, state)[0].isfinite().all()


def test_family_without_blocks_is_refused():
    with pytest.raises(ValueError, match="'lstm' has no xLSTM blocks"):
        XLSTMStack(ModelConfig(family="lstm"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_any_dtype_trains(dtype, direction):
    torch.manual_seed(0)
    model = stack("ms", direction=direction)
    x = torch.randn(3, 7, 16)
    truth, _ = model(x)
    model = model.to(dtype)
    y, state = model(x.to(dtype), lengths=torch.tensor([7, 3, 5]))
    assert y.dtype == dtype
    y.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in model.parameters())
    y, _ = model(x.to(dtype), state)
    assert y.isfinite().all()
    y, _ = model(x.to(dtype))
    assert (y.float() - truth).abs().max() < 0.1


def test_autocast_trains():
    model = stack("ms")
    x = torch.randn(13, 7, 16)
    truth, _ = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = model(x)
        z, _ = model(x, state, resets=torch.rand(13, 7) < 0.2)
    (y.float().square().sum() + z.float().square().sum()).backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in model.parameters())
    assert (y.float() - truth).abs().max() < 0.1


@pytest.mark.parametrize("options", [{}, {"direction": "both", "norm": "rms", "feed_forward": "plain"}], ids=str)
@pytest.mark.parametrize("width", [16, 32])
def test_members_under_vmap_equal_each_alone(options, width):
    """Stacked parameters as torch.func takes them, the backward outside of the vmap."""
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(XLSTMStack(ModelConfig(pattern="sm", hidden_size=width, heads=2, ff_after="all", **options)))
    stacked, _ = torch.func.stack_module_state(models)
    x = torch.randn(3, 5, 6, width)

    def run(parameters, x):
        return torch.func.functional_call(models[0], parameters, (x,))[0]

    y = torch.func.vmap(run)(stacked, x)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    for member, model in enumerate(models):
        alone, _ = model(x[member])
        torch.testing.assert_close(y[member], alone, rtol=1e-4, atol=1e-5)
        (alone * weight[member]).sum().backward()
        for name, parameter in model.named_parameters():
            scale = parameter.grad.abs().max().item()
            torch.testing.assert_close(
                stacked[name].grad[member], parameter.grad, rtol=1e-3, atol=1e-4 * scale, msg=name
            )


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_compiles_without_a_graph_break(direction, masked):
    model = stack("ms", direction=direction)
    x = torch.randn(13, 6, 16)
    options = {"resets": torch.rand(13, 6) < 0.2, "lengths": torch.randint(1, 7, (13,))} if masked else {}
    truth, _ = model(x, **options)
    truth.square().sum().backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    y, _ = torch.compile(model, fullgraph=True, backend="aot_eager")(x, **options)
    torch.testing.assert_close(y, truth)
    y.square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, before[name], rtol=1e-4, atol=1e-5)


def test_deepcopy_and_pickle():
    model = stack("ms", direction="both")
    x = torch.randn(2, 5, 16)
    y, _ = model(x)
    assert torch.equal(copy.deepcopy(model)(x)[0], y)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x)[0], y)


@pytest.mark.parametrize("lengths", [None, [17, 1, 3, 9]], ids=str)
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"conv_kernel": 0, "qkv_block": 8},
        {"head_norm": False, "norm": "rms"},
        {"ff_after": "all", "conv_kernel": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("pattern", ["m", "s", "ms", "sm"])
def test_last_is_what_the_whole_sequence_gives_at_its_end(pattern, options, direction, lengths):
    torch.manual_seed(0)
    model = shaken(stack(pattern, direction=direction, **options))
    x = torch.randn(4, 17, 16, dtype=torch.float64)
    lengths = None if lengths is None else torch.tensor(lengths)
    if lengths is not None:
        for sample, steps in enumerate(lengths):
            x[sample, steps:] = torch.nan
    x.requires_grad_()
    whole, _ = model(x, lengths=lengths)
    at = torch.full((4,), 16) if lengths is None else lengths - 1
    truth = whole[torch.arange(4), torch.zeros_like(at) if direction == "reverse" else at]
    y = model.last(x, lengths)
    torch.testing.assert_close(y, truth, rtol=1e-10, atol=1e-10)
    weight, inputs = torch.randn_like(y), [x, *model.parameters()]
    mine, true = (torch.autograd.grad(one, inputs, weight) for one in (y, truth))
    for one, other in zip(mine, true, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_last_in_float32_is_that_of_float64(steps):
    torch.manual_seed(0)
    exact = shaken(stack("msm"))
    model = copy.deepcopy(exact).float()
    x = torch.randn(19, steps, 16)
    y, truth = model.last(x), exact.last(x.double())
    assert (y - truth).abs().max() <= 1e-4 * truth.abs().max()


def test_last_under_autocast_and_vmap():
    torch.manual_seed(0)
    models = [stack("sm") for _ in range(3)]
    x = torch.randn(3, 5, 9, 16)
    stacked, _ = torch.func.stack_module_state(models)
    y = torch.func.vmap(lambda weights, x: torch.func.functional_call(_Last(models[0]), weights, (x,)))(
        {f"stack.{name}": weight for name, weight in stacked.items()}, x
    )
    for member, model in enumerate(models):
        torch.testing.assert_close(y[member], model.last(x[member]), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = models[0].last(x[0])
    assert (low.float() - y[0]).abs().max() < 0.1 * y[0].abs().max()


class _Last(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.stack = model

    def forward(self, x):
        return self.stack.last(x)


def test_last_of_both_directions_is_refused():
    with pytest.raises(ValueError, match="direction must be forward or reverse"):
        stack("m", direction="both").last(torch.zeros(1, 2, 16))
