"""What stands around the cells: the compiled passes against torch in float64, outputs and all gradients, at odd sizes.

Memory that is not yet written holds NaN throughout, so that reading it shows.
"""

import pytest
import torch
import torch.nn.functional as F

from xlstm_tune.kernels import around
from xlstm_tune.kernels.conv_numba import conv_numba
from xlstm_tune.kernels.feed_forward_numba import KINDS, feed_forward_fits
from xlstm_tune.kernels.gates import slstm_gates
from xlstm_tune.kernels.matmul_numba import linear_fits
from xlstm_tune.kernels.simd import LANES

RESETS = torch.rand(5, 9, generator=torch.Generator().manual_seed(4)) < 0.3


def flat(results):
    return torch.cat([result.flatten(1) for result in results], 1)


def sources(*inputs, backend):
    return flat(around.convolved_cell_inputs(*inputs, heads=2, backend=backend))


def pooled(x, taps, bias, gate_bias, by_convolved, by_x, queries, backend):
    # Small enough that the normaliser is not near zero, large enough that both sides of its maximum occur.
    others = (0.2 * by_convolved, 0.2 * by_x, 0.2 * queries)
    return around.pooled_by_last(x, (taps, bias), gate_bias + 2.0, *others, backend=backend)


def source_shapes(steps, gates, width=32):
    """Of x, taps and bias, q, k and v, and what the gates see."""
    blocks = [(width // 4, 4, 4)] * 3
    return [(5, steps, width), (4, width), (width,), *blocks, (gates, width), (gates, width)]


def pooled_shapes(steps, heads, width=32):
    """Of x, taps and bias, the gates' bias and what they see, and queries."""
    gates = 2 * heads
    return [(5, steps, width), (4, width), (width,), (gates,), (gates, width), (gates, width), (5, heads, width)]


CASES = {
    "conv": (around.causal_conv, [(5, 9, 32), (4, 32), (32,)], {}),
    "conv, odd width": (around.causal_conv, [(5, 9, 21), (3, 21), (21,)], {}),
    "conv of 1": (around.causal_conv, [(5, 9, 16), (1, 16), (16,)], {}),
    "conv with past": (around.causal_conv, [(5, 9, 16), (4, 16), (16,), (5, 3, 16)], {}),
    "conv longer than the steps": (around.causal_conv, [(3, 2, 16), (5, 16), (16,), (3, 4, 16)], {}),
    "conv with resets": (around.causal_conv, [(5, 9, 16), (4, 16), (16,), (5, 3, 16)], {"resets": RESETS}),
    "head norm": (around.head_norm, [(3, 5, 2, 16), (2, 16)], {}),
    "head norm, wide": (around.head_norm, [(3, 5, 1, 48), (1, 48)], {}),
    "gated head norm": (around.gated_head_norm, [(3, 5, 2, 32), (2, 32), (3, 5, 2, 32), (2, 32), (3, 5, 2, 32)], {}),
    "linear": (around.linear, [(3, 5, 48), (112, 48)], {}),
    "linear, one block of rows": (around.linear, [(1, 12, 16), (16, 16)], {}),
    "linear, many rows": (around.linear, [(41, 43, 32), (64, 32)], {}),
    **{
        f"feed-forward {kind}": (around.gated_feed_forward, [(3, 5, 32), (2 * 48, 32), (32, 48)], {"activation": kind})
        for kind in KINDS
    },
    "feed-forward, many rows": (
        around.gated_feed_forward, [(37, 29, 64), (2 * 64, 64), (64, 64)], {"activation": "gelu"},
    ),
    "qkv": (
        lambda *inputs, backend: torch.cat(around.project_qkv(*inputs, heads=2, backend=backend), 3),
        [(3, 5, 32), (3, 5, 32), (8, 4, 4), (8, 4, 4), (8, 4, 4)],
        {},
    ),
    **{
        f"mLSTM's sources, {steps} steps, {gates} gates": (sources, source_shapes(steps, gates), {})
        for steps, gates in ((9, 4), (1, 2), (2, 8), (3, 6), (4, 4))
    },
    "mLSTM's sources, wide": (sources, source_shapes(17, 4, 80), {}),
    **{
        f"last of {steps} steps, {heads} heads": (pooled, pooled_shapes(steps, heads), {})
        for steps, heads in ((9, 4), (1, 1), (2, 2), (3, 5), (4, 3), (16, 2), (40, 8))
    },
    "last, wide": (pooled, pooled_shapes(17, 2, 80), {}),
}  # fmt: skip
"""What is called → its function, the shapes of its differentiable inputs, further arguments."""


def inputs_of(name):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in CASES[name][1]]


def results(function, inputs, dtype, **options):
    inputs = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    y = function(*inputs, **options)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return y, *torch.autograd.grad(y, inputs, weight.to(dtype))


@pytest.mark.slow
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("name", CASES)
def test_compiled_pass_equals_torch(name, monkeypatch):
    function, _, options = CASES[name]
    inputs = inputs_of(name)
    truth = results(function, inputs, torch.float64, **options, backend="reference")
    # Torch's own way is out of reach: what is compared is the compiled pass.
    for way in ("silu", "layer_norm", "linear"):
        monkeypatch.setattr(F, way, None)
    monkeypatch.setattr(torch, "bmm", None)
    mine = results(function, inputs, torch.float32, **options, backend="auto")
    for number, (one, other) in enumerate(zip(mine, truth, strict=True)):
        assert one.dtype == torch.float32
        assert (one.double() - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=0.01), f"result {number}"


@pytest.mark.parametrize("name", CASES)
def test_torch_is_exact_to_the_last_gradient(name):
    function, _, options = CASES[name]
    small = [tensor[:2] if tensor.shape[:1] in ((37,), (41,)) else tensor for tensor in inputs_of(name)]
    inputs = [tensor.requires_grad_() for tensor in small]
    assert torch.autograd.gradcheck(
        lambda *them: function(*them, **options, backend="reference"), inputs, fast_mode=True
    )


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 5, 16, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slstm_gates_see_their_sources_head_by_head(heads, width, dtype):
    generator = torch.Generator().manual_seed(3)
    shapes = [(3, 7, heads * width), (3, 7, heads * width), (heads, 4, width, width)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    def plainly(for_if, for_zo, weight):
        sources = [source.view(3, 7, heads, width) for source in (for_if, for_if, for_zo, for_zo)]
        gates = [torch.einsum("btni,noi->btno", source, weight[:, gate]) for gate, source in enumerate(sources)]
        return torch.stack(gates, 3)

    for one, other in zip(results(slstm_gates, inputs, dtype), results(plainly, inputs, torch.float64), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-10)
    assert slstm_gates(*inputs).permute(2, 0, 1, 3, 4).is_contiguous()


@pytest.mark.parametrize("activation", KINDS)
def test_activation_is_near_torchs_everywhere(activation):
    x = torch.cat([torch.linspace(-20, 20, 8000), torch.tensor([0.0, -120.0, 120.0, 1e-20])])
    x = x[: len(x) // LANES * LANES].view(-1, 1, LANES)
    identity = torch.eye(LANES)

    double = torch.cat([identity, identity])  # gate and value are both x
    mine = around.gated_feed_forward(x, double, identity, activation)
    truth = around.ACTIVATIONS[activation](x.double()) * x.double()
    assert (mine.double() - truth).abs().max() <= 1e-6 * truth.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_vmap_over_members_equals_each_alone(name):
    function, _, options = CASES[name]
    members = [torch.stack([tensor, 0.5 * tensor.flip(0), tensor + 0.1]).float() for tensor in inputs_of(name)]
    stacked = [tensor.clone().requires_grad_() for tensor in members]
    y = torch.func.vmap(lambda *them: function(*them, **options, backend="auto"))(*stacked)
    y.square().sum().backward()
    for member in range(3):
        alone = [tensor[member].clone().requires_grad_() for tensor in members]
        z = function(*alone, **options, backend="auto")
        z.square().sum().backward()
        torch.testing.assert_close(y[member], z, rtol=1e-5, atol=1e-5 * z.abs().max().item())
        for one, other in zip(stacked, alone, strict=True):
            scale = other.grad.abs().max().item()
            torch.testing.assert_close(one.grad[member], other.grad, rtol=1e-4, atol=1e-5 * scale)


def test_vmap_shares_what_has_no_members():
    x, weight, bias = (tensor.float() for tensor in inputs_of("conv"))
    members = torch.stack([weight, -weight])
    resets = RESETS
    y = torch.func.vmap(lambda one: around.causal_conv(x, one, bias, resets=resets))(members)
    for member in range(2):
        torch.testing.assert_close(y[member], around.causal_conv(x, members[member], bias, resets=resets))


@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_threads_gives_the_same_bits(threads):
    before = torch.get_num_threads()
    try:
        for name in ("conv", "qkv", "feed-forward, many rows", "linear, many rows"):
            function, _, options = CASES[name]
            torch.set_num_threads(before)
            truth = results(function, inputs_of(name), torch.float32, **options, backend="auto")
            torch.set_num_threads(threads)
            mine = results(function, inputs_of(name), torch.float32, **options, backend="auto")
            assert all(torch.equal(one, other) for one, other in zip(mine, truth, strict=True)), name
    finally:
        torch.set_num_threads(before)


def test_large_weights_are_left_to_torch():
    x = torch.zeros(4, 5, 512)
    assert not linear_fits(x, torch.zeros(512, 512)) and linear_fits(x, torch.zeros(128, 512))
    assert not feed_forward_fits(x, torch.zeros(1024, 512), torch.zeros(512, 512))
    assert not linear_fits(x[:1], torch.zeros(128, 512))  # 5 rows
    torch.testing.assert_close(around.linear(torch.ones(1, 5, 16), torch.ones(3, 16)), torch.full((1, 5, 3), 16.0))


def test_compiled_convolution_pads_odd_widths():
    inputs = [tensor.float() for tensor in inputs_of("conv, odd width")]
    torch.testing.assert_close(conv_numba(*inputs), around.causal_conv(*inputs, backend="reference"))
