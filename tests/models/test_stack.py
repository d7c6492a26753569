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
