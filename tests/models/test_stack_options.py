"""Every architecture option of an xLSTM stack: what it changes, that it trains, that two equal models are one point."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xlstm_tune.errors import SpecError
from xlstm_tune.models.block import ACTIVATIONS, BothWays, FeedForward, Norm, Reversed
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.models.slstm import SLSTMLayer
from xlstm_tune.models.stack import XLSTMStack

OPTIONS = {
    "direction": ["forward", "reverse", "both"],
    "norm": ["layer", "rms", "none"],
    "feed_forward": ["gated", "plain", "none"],
    "ff_after": ["s", "all"],
    "head_norm": [True, False],
    "conv_kernel": [0, 1, 4],
}


def config(**options):
    return ModelConfig(**{"pattern": "ms", "hidden_size": 8, "heads": 2, **options})


def stack(**options):
    torch.manual_seed(0)
    return XLSTMStack(config(**options))


def without_gradient(model, batch=5, steps=7):
    """Parameters whose gradient was zero at each of two steps."""
    idle = {name for name, _ in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        optimiser.zero_grad()
        y, _ = model(torch.randn(batch, steps, model.width))
        (y * torch.randn_like(y)).sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            if parameter.grad.any():
                idle.discard(name)
        optimiser.step()
    return idle


@pytest.mark.slow
@pytest.mark.parametrize("direction", OPTIONS["direction"])
@pytest.mark.parametrize("norm", OPTIONS["norm"])
def test_every_parameter_trains_whatever_is_chosen(direction, norm):
    rest = [OPTIONS[key] for key in ("feed_forward", "ff_after", "head_norm", "conv_kernel")]
    for feed_forward, ff_after, head_norm, kernel in itertools.product(*rest):
        chosen = {"direction": direction, "norm": norm, "feed_forward": feed_forward}
        chosen |= {"ff_after": ff_after, "head_norm": head_norm, "conv_kernel": kernel}
        assert not without_gradient(stack(**chosen)), chosen


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pattern", ["s", "m", "ssm"])
@pytest.mark.parametrize("heads", [1, 8])
def test_every_parameter_trains_with_any_activation_pattern_and_heads(activation, pattern, heads):
    """8 heads: in sLSTM each has width 1."""
    model = stack(activation=activation, pattern=pattern, heads=heads, ff_after="all", qkv_block=8)
    assert not without_gradient(model)


@pytest.mark.parametrize("pattern", ["s", "m"])
def test_heads_of_width_one_are_finite_and_pass_the_signal(pattern):
    model = stack(pattern=pattern, heads={"s": 8, "m": 64}[pattern])
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not without_gradient(model)
    x = torch.randn(2, 6, 8)
    y, _ = model(x)
    assert y.isfinite().all() and (y - model(x + torch.randn_like(x))[0]).abs().max() > 0.1


@pytest.mark.parametrize("key", [key for key in OPTIONS if key != "ff_after"])
def test_each_choice_is_another_model(key):
    x = torch.randn(2, 6, 8)
    outputs, points = [], []
    for value in OPTIONS[key]:
        model = stack(**{key: value})
        outputs.append(model(x)[0])
        points.append(model.config.relevant())
    for (one, first), (other, second) in itertools.combinations(zip(outputs, points, strict=True), 2):
        assert (one - other).abs().max() > 1e-3
        assert first != second


def test_directions_wrap_the_layers():
    assert [type(block.layer) for block in stack(direction="reverse").blocks] == [Reversed, Reversed]
    both = stack(direction="both").blocks[1].layer
    assert isinstance(both, BothWays) and isinstance(both.forth, SLSTMLayer)
    weights = both.forth.input_weight, both.back.layer.input_weight
    assert weights[0].shape == weights[1].shape and not torch.equal(*weights)


def test_reverse_stack_is_the_forward_one_from_the_other_end():
    forward, reverse = stack(), stack(direction="reverse")
    x = torch.randn(2, 6, 8)
    torch.testing.assert_close(reverse(x)[0], forward(x.flip(1))[0].flip(1))


def test_norm_kinds():
    x = torch.randn(3, 4, 8, dtype=torch.float64)
    rms = Norm(8, rms=True).double()
    nn.init.normal_(rms.weight)
    torch.testing.assert_close(rms(x), x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (1 + rms.weight))
    for kind, expected in (("layer", False), ("rms", True)):
        model = stack(norm=kind)
        norms = [model.norm, *(block.norm for block in model.blocks), model.blocks[1].feed_forward_norm]
        assert all(isinstance(norm, Norm) and norm.rms is expected for norm in norms)
    bare = stack(norm="none")
    assert not [name for name, _ in bare.named_parameters() if "norm" in name and ".layer.norm" not in name]
    assert not [name for name, _ in stack(head_norm=False).named_parameters() if ".layer.norm" in name]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_feed_forward_kinds(activation):
    x = torch.randn(2, 3, 8)
    act = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}[activation]
    gated = FeedForward(8, 16, 2, activation=activation)
    gate, up = gated.up.weight.chunk(2)
    torch.testing.assert_close(gated(x), F.linear(act(F.linear(x, gate)) * F.linear(x, up), gated.down.weight))
    plain = FeedForward(8, 16, 2, gated=False, activation=activation)
    assert plain.up.weight.shape == (16, 8)
    torch.testing.assert_close(plain(x), F.linear(act(F.linear(x, plain.up.weight)), plain.down.weight))


@pytest.mark.parametrize(
    ("pattern", "options", "has"),
    [
        ("ms", {}, [False, True]),
        ("ms", {"ff_after": "all"}, [True, True]),
        ("ms", {"ff_after": "all", "feed_forward": "none"}, [False, False]),
        ("mm", {"ff_after": "all"}, [True, True]),
        ("ss", {"feed_forward": "none"}, [False, False]),
    ],
    ids=str,
)
def test_feed_forward_stands_after_the_chosen_blocks(pattern, options, has):
    model = stack(pattern=pattern, ff_factor=9.0 / 8, **options)
    assert [block.feed_forward is not None for block in model.blocks] == has
    assert all(block.feed_forward.down.in_features == 64 for block in model.blocks if block.feed_forward is not None)


def test_qkv_block_sets_the_width_of_the_projections_blocks():
    for block in (1, 4, 16, 64):
        layer = stack(pattern="m", qkv_block=block).blocks[0].layer
        assert {tuple(part.weight.shape) for part in (layer.q, layer.k, layer.v)} == {(64 // block, block, block)}


@pytest.mark.slow
def test_relevant_tells_equal_models_from_different_ones():
    """Two configs are one point if, and only if, their stacks compute the same from the same seed."""
    choices = {
        "pattern": ["s", "m", "ms"],
        "feed_forward": ["gated", "plain", "none"],
        "ff_after": ["s", "all"],
        "ff_factor": [1.0, 8.0],  # 64 and 128 at this width
        "activation": ["gelu", "relu"],
        "qkv_block": [4, 8],
    }
    x = torch.randn(1, 3, 16)
    outputs = {}
    for values in itertools.product(*choices.values()):
        model = stack(hidden_size=16, **dict(zip(choices, values, strict=True)))
        outputs.setdefault(str(model.config.relevant()), []).append(model(x)[0])
    assert all(torch.equal(output, same[0]) for same in outputs.values() for output in same)
    firsts = [same[0] for same in outputs.values()]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(firsts, 2))
    # s: none, or gated and plain × factor × activation; m: the same × block; ms: with the places of the feed-forward
    assert len(firsts) == (1 + 8) + (1 + 8) * 2 + (1 + 8 * 2) * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads must divide model.hidden_size in an sLSTM block, got 3 heads and hidden_size 8"),
        ({"heads": 1, "hidden_size": 1}, "model.norm: layer makes every number 0 where model.hidden_size is 1"),
        ({"pattern": "m", "heads": 3}, r"heads must divide the inner width of an mLSTM block \(64 = .* got 3 heads"),
        ({"qkv_block": 3}, r"qkv_block must divide the inner width of an mLSTM block \(64 = .* got 3"),
        ({"direction": "backward"}, "'model.direction' must be one of 'forward', 'reverse' or 'both', got 'backward'"),
        ({"norm": "batch"}, "'model.norm' must be one of 'layer', 'rms' or 'none', got 'batch'"),
        ({"feed_forward": "moe"}, "'model.feed_forward' must be one of 'gated', 'plain' or 'none', got 'moe'"),
        ({"ff_after": "m"}, "'model.ff_after' must be one of 's' or 'all', got 'm'"),
        ({"activation": "tanh"}, "'model.activation' must be one of 'gelu', 'silu' or 'relu', got 'tanh'"),
        ({"head_norm": 1}, "'model.head_norm' must be true or false, got 1"),
        ({"conv_kernel": -1}, "'model.conv_kernel' must be greater than or equal to 0, got -1"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_sentence(options, message):
    with pytest.raises(SpecError, match=message):
        ModelConfig.parse({"pattern": "ms", "hidden_size": 8, "heads": 2, **options}, "model")


def test_qkv_block_and_heads_count_only_where_they_are_read():
    assert config(pattern="s", qkv_block=3).relevant() == config(pattern="s").relevant()
    assert "norm" not in ModelConfig(family="lstm").relevant()
    assert config(pattern="s", projection=3).relevant() == config(pattern="s").relevant()
