"""Weights and states of xlstm 2.0.6 in and out, held against the package itself."""

import pytest
import torch

from xlstm_tune.models.config import ModelConfig
from xlstm_tune.models.official import load_official, load_official_state, to_official, to_official_state
from xlstm_tune.models.stack import XLSTMStack

package = pytest.importorskip(
    "xlstm", reason="the official package is not here: pip install --no-deps xlstm==2.0.6 (make test does it)"
)

STACKS = ("m", "s", "ms", "ssm")
SIZES = [(16, 2, 4), (96, 3, 2), (64, 4, 4), (40, 1, 3)]
"""Width, heads, convolution kernel."""


def package_stack(
    pattern, width=16, heads=2, kernel=4, feed_forward=True, inner_factor=2.0, qkv_block=4, activation="gelu"
):
    """A fresh xLSTMBlockStack."""
    slstm = package.sLSTMBlockConfig(
        slstm=package.sLSTMLayerConfig(backend="vanilla", num_heads=heads, conv1d_kernel_size=kernel),
        feedforward=package.FeedForwardConfig(proj_factor=1.3, act_fn=activation) if feed_forward else None,
    )
    mlstm = package.mLSTMBlockConfig(
        mlstm=package.mLSTMLayerConfig(
            num_heads=heads, conv1d_kernel_size=kernel, proj_factor=inner_factor, qkv_proj_blocksize=qkv_block
        )
    )
    config = package.xLSTMBlockStackConfig(
        slstm_block=slstm if "s" in pattern else None,
        mlstm_block=mlstm if "m" in pattern else None,
        context_length=16,
        num_blocks=len(pattern),
        embedding_dim=width,
        slstm_at=[at for at, kind in enumerate(pattern) if kind == "s"],
    )
    return package.xLSTMBlockStack(config)


def official(pattern, *sizes, **options):
    """The same in float64, with every parameter, R included, moved off its initial value."""
    stack = package_stack(pattern, *sizes, **options).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return stack


def in_cuda_layout(stack):
    """The state_dict as a stack of backend `cuda` would save it, by the package's own conversions."""
    weights = dict(stack.state_dict())
    for at, block in enumerate(stack.blocks):
        if not hasattr(block.xlstm, "slstm_cell"):
            continue
        vanilla = block.xlstm.slstm_cell
        cuda = package.blocks.slstm.cell.sLSTMCell_cuda(vanilla.config, skip_backend_init=True)
        prefix = f"blocks.{at}.xlstm.slstm_cell."
        recurrent = vanilla._recurrent_kernel_int2ext(vanilla._recurrent_kernel_)
        weights[prefix + "_recurrent_kernel_"] = cuda._recurrent_kernel_ext2int(recurrent).detach().clone()
        weights[prefix + "_bias_"] = cuda._bias_ext2int(vanilla._bias_int2ext(vanilla._bias_)).detach().clone()
    return weights


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(tensor, other[name]) and tensor.dtype == other[name].dtype for name, tensor in one.items())


@pytest.mark.slow
@pytest.mark.parametrize(("width", "heads", "kernel"), SIZES)
@pytest.mark.parametrize("pattern", STACKS)
def test_load_official_gives_the_official_outputs_and_gradients(pattern, width, heads, kernel):
    theirs = official(pattern, width, heads, kernel)
    ours = load_official(theirs.state_dict())
    x = torch.randn(3, 13, width, dtype=torch.float64, requires_grad=True)
    y, truth = ours(x)[0], theirs(x)
    torch.testing.assert_close(y, truth, rtol=0, atol=1e-9)
    assert truth.std() > 0.1
    upstream = torch.randn_like(y)
    torch.testing.assert_close(
        *(torch.autograd.grad((out * upstream).sum(), x)[0] for out in (y, truth)), rtol=1e-9, atol=1e-9
    )


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["s", "ms", "ssm"])
def test_load_official_takes_the_cuda_layout(pattern):
    theirs = official(pattern, 96, 3)
    weights = in_cuda_layout(theirs)
    bias = f"blocks.{pattern.index('s')}.xlstm.slstm_cell._bias_"
    assert not torch.equal(weights[bias], theirs.state_dict()[bias])
    x = torch.randn(2, 9, 96, dtype=torch.float64)
    torch.testing.assert_close(load_official(weights)(x)[0], theirs(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("pattern", STACKS)
@pytest.mark.parametrize("layout", ["vanilla", "cuda"])
def test_to_official_gives_back_the_same_bits(pattern, layout):
    theirs = official(pattern, 96, 3)
    weights = in_cuda_layout(theirs) if layout == "cuda" else theirs.state_dict()
    back = to_official(load_official(weights), layout)
    assert same(back, dict(weights))
    if layout == "vanilla":
        theirs.load_state_dict(back, strict=True)


def test_to_official_of_a_fresh_stack_computes_the_same_there():
    ours = XLSTMStack(ModelConfig(pattern="sm", hidden_size=16, heads=2)).double()
    theirs = official("sm")
    theirs.load_state_dict(to_official(ours))
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    torch.testing.assert_close(theirs(x), ours(x)[0], rtol=0, atol=1e-9)


def test_to_official_gives_copies():
    ours = load_official(official("sm").state_dict())
    before = {name: parameter.clone() for name, parameter in ours.named_parameters()}
    for tensor in to_official(ours).values():
        tensor.zero_()
    assert same(dict(ours.named_parameters()), before)


@pytest.mark.parametrize(
    "options",
    [
        {"feed_forward": False},
        {"inner_factor": 1.0, "qkv_block": 8},
        {"inner_factor": 4.5},
        {"activation": "swish"},
        {"activation": "relu"},
    ],
    ids=str,
)
def test_load_official_reads_the_options_from_the_weights(options):
    theirs = official("ms", **options)
    activation = options.get("activation", "gelu").replace("swish", "silu")
    ours = load_official(theirs.state_dict(), activation=activation)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x)[0], theirs(x), rtol=0, atol=1e-9)
    assert same(to_official(ours), dict(theirs.state_dict()))


def test_load_official_of_slstm_without_convolution():
    theirs = official("s", kernel=0)
    ours = load_official(theirs.state_dict())
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x)[0], theirs(x), rtol=0, atol=1e-9)
    _, state = theirs.step(x[:, :1])
    z, _ = ours(x[:, 1:], load_official_state(ours, state))
    torch.testing.assert_close(z, ours(x)[0][:, 1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_load_official_keeps_the_dtype(dtype):
    weights = official("ms").to(dtype).state_dict()
    ours = load_official(weights, dropout=0.2)
    assert {parameter.dtype for parameter in ours.parameters()} == {dtype}
    assert ours.config.dropout == 0.2 and all(parameter.requires_grad for parameter in ours.parameters())
    assert same(to_official(ours), dict(weights))


@pytest.mark.parametrize("pattern", STACKS)
def test_official_state_goes_on_here(pattern):
    """Their steps, then our sequence: as our own sequence, up to the ε that their start from m = 0 shifts."""
    theirs = official(pattern)
    ours = load_official(theirs.state_dict())
    x = torch.randn(3, 12, 16, dtype=torch.float64)
    state = None
    for t in range(7):
        y, state = theirs.step(x[:, t : t + 1], state)
        torch.testing.assert_close(y, ours(x[:, : t + 1])[0][:, -1:], rtol=1e-4, atol=1e-4)
    taken = load_official_state(ours, state)
    rest, _ = ours(x[:, 7:], taken)
    torch.testing.assert_close(rest, ours(x)[0][:, 7:], rtol=1e-4, atol=1e-4)
    for t in range(7, 12):  # from one state, the steps agree to rounding
        y, state = theirs.step(x[:, t : t + 1], state)
        torch.testing.assert_close(rest[:, t - 7 : t - 6], y, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pattern", STACKS)
def test_our_state_goes_on_there(pattern):
    theirs = official(pattern)
    ours = load_official(theirs.state_dict())
    x = torch.randn(3, 12, 16, dtype=torch.float64)
    with torch.no_grad():
        whole, _ = ours(x)
        _, state = ours(x[:, :5])
        kept = [[tensor.clone() for tensor in (layer.conv, *layer.cell)] for layer in state]
        running = to_official_state(ours, state)
        for t in range(5, 12):
            y, running = theirs.step(x[:, t : t + 1], running)
            torch.testing.assert_close(y, whole[:, t : t + 1], rtol=0, atol=1e-9)
        for layer, tensors in zip(state, kept, strict=True):  # their steps write in place
            assert all(torch.equal(one, other) for one, other in zip((layer.conv, *layer.cell), tensors, strict=True))


def test_state_of_the_official_forward_holds_one_input_less():
    theirs = official("s")
    ours = load_official(theirs.state_dict())
    x = torch.randn(2, 8, 16, dtype=torch.float64)
    block = theirs.blocks[0]
    _, state = block.xlstm(block.xlstm_norm(x[:, :6]), return_last_state=True)
    assert state["conv_state"].shape[1] == 3
    rest, _ = ours(x[:, 6:], load_official_state(ours, {"block_0": state}))
    torch.testing.assert_close(rest, theirs(x)[:, 6:], rtol=0, atol=1e-9)


def test_load_official_refuses_what_it_has_no_place_for():
    weights = official("ms").state_dict()
    lacking = {name: tensor for name, tensor in weights.items() if name != "blocks.1.ffn_norm.weight"}
    with pytest.raises(ValueError, match=r"read as a stack 'ms', lacks blocks\.1\.ffn_norm\.weight$"):
        load_official(lacking)
    with pytest.raises(ValueError, match=r"has blocks\.0\.xlstm\.proj_up\.bias, which XLSTMStack has no place for"):
        load_official({**weights, "blocks.0.xlstm.proj_up.bias": torch.zeros(128)})
    with pytest.raises(ValueError, match=r"proj_down\.weight must be \[16, 64\], got \[17, 64\]"):
        load_official({**weights, "blocks.0.xlstm.proj_down.weight": torch.zeros(17, 64)})
    with pytest.raises(ValueError, match=r"must hold blocks\.0 to blocks\.N of an xLSTMBlockStack, got nothing"):
        load_official({})
    with pytest.raises(ValueError, match=r"must hold blocks\.0 to blocks\.N"):
        load_official({name.replace("blocks.0", "blocks.2"): tensor for name, tensor in weights.items()})
    with pytest.raises(ValueError, match="inner width must be a multiple of 64"):
        load_official(
            {
                name: tensor[:24] if name.endswith("learnable_skip") else tensor
                for name, tensor in official("m").state_dict().items()
            }
        )


def test_load_official_of_a_model_asks_for_its_weights():
    with pytest.raises(TypeError, match=r"state_dict must be a mapping .*state_dict\(\).*, got XLSTMStack"):
        load_official(XLSTMStack(ModelConfig(pattern="s", hidden_size=8, heads=2)))


def test_load_official_refuses_mixed_layouts_and_heads_of_width_one():
    theirs = official("ss")
    mixed = {
        name: tensor if name.startswith("blocks.0") else theirs.state_dict()[name]
        for name, tensor in in_cuda_layout(theirs).items()
    }
    with pytest.raises(ValueError, match="layout of 'vanilla', others that of 'cuda'"):
        load_official(mixed)
    with pytest.raises(ValueError, match="makes zeros of heads of width 1"):
        load_official(official("s", 4, 4).state_dict())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"direction": "both"}, "no direction 'both'"),
        ({"norm": "rms"}, "no stack without layer norms"),
        ({"head_norm": False}, "no stack without layer norms and head norms"),
        ({"feed_forward": "plain"}, "no feed-forward without a gate"),
        ({"ff_after": "all"}, "no mLSTM block with a feed-forward"),
        ({"conv_kernel": 0}, "no mLSTM block without a convolution"),
        ({"heads": 16}, "heads of width 1"),
    ],
    ids=str,
)
def test_to_official_refuses_what_has_no_counterpart(options, reason):
    stack = XLSTMStack(ModelConfig(**{"pattern": "ms", "hidden_size": 16, "heads": 2, **options}))
    with pytest.raises(ValueError, match=f"to_official: the official package has .*{reason}"):
        to_official(stack)


def test_to_official_refuses_an_unknown_layout():
    with pytest.raises(ValueError, match="layout must be 'vanilla' or 'cuda', got 'triton'"):
        to_official(XLSTMStack(ModelConfig(pattern="s", hidden_size=8, heads=2)), "triton")


def test_initial_values_are_those_of_the_package():
    """Equal where they are not drawn, else of the same spread."""
    torch.manual_seed(0)
    theirs = package_stack("ssm", width=256, heads=4).state_dict()
    ours = to_official(XLSTMStack(ModelConfig(pattern="ssm", hidden_size=256, heads=4)))
    assert ours.keys() == theirs.keys()
    drawn = 0
    for name, tensor in theirs.items():
        if name.endswith("._bias_") or tensor.std() == 0:
            torch.testing.assert_close(ours[name], tensor, msg=name)
        elif name.endswith("fgate.bias"):
            assert torch.equal(ours[name], tensor), name
        else:
            drawn += 1
            few = 1 - min(1.0, 8 / tensor.numel() ** 0.5)  # the gates' biases are four numbers
            assert few * 0.9 < ours[name].std() / tensor.std() < 1.1 / max(few, 0.01), name
    assert drawn == 2 * (2 + 4 + 2) + (2 + 1 + 3 + 1 + 1)
