"""What mLSTM's Triton kernels do beyond the conformance suite: both designs at any length and width, 16 bits, single
steps, what is kept for the backward pass, tensors of more than 2^31 numbers.

Memory that is not yet written holds NaN throughout, so that reading it shows.
"""

import os

import pytest
import torch

from xlstm_tune.errors import BackendUnavailable
from xlstm_tune.kernels import MLSTMState, mlstm
from xlstm_tune.kernels.mlstm_reference import mlstm_chunkwise
from xlstm_tune.models.mlstm import MLSTMLayer

pytest.importorskip("triton")
from xlstm_tune.kernels import mlstm_parallel_triton, mlstm_parts_triton, mlstm_states_triton, mlstm_walk_triton
from xlstm_tune.kernels import mlstm_triton as walking
from xlstm_tune.kernels.mlstm_triton import mlstm_triton

DESIGNS = ["walk", "parallel"]
NAMES = ["h", "c", "n", "m", *(f"gradient of {one}" for one in ("q", "k", "v", "i", "f", "c", "n", "m"))]


@pytest.fixture(autouse=True)
def poisoned_memory():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def problem(batch, steps, heads, width, value_width, seed=0):
    """Inputs and an initial state in float32."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    rows = [draw(batch, steps, heads, width) for _ in range(2)] + [draw(batch, steps, heads, value_width)]
    gates = [2 * draw(batch, steps, heads), 2 * draw(batch, steps, heads) + 1]
    return [*rows, *gates, draw(batch, heads, width, value_width), draw(batch, heads, width), draw(batch, heads)]


def results(form, inputs, **options):
    """Outputs, and the gradients of a random weighting of them."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    h, final = form(*inputs[:5], MLSTMState(*inputs[5:]) if inputs[5:] else None, **options)
    outputs = (h, *final)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=generator).to(out.device) for out in outputs]
    loss = sum((out.double() * weight).sum() for out, weight in zip(outputs, weights, strict=True))
    return *outputs, *torch.autograd.grad(loss, inputs)


def assert_near_truth(inputs, tolerance, **options):
    """What `mlstm_triton` gives for `inputs`, against the reference in float64."""
    mine, true = results(mlstm_triton, inputs, **options), results(mlstm_chunkwise, [one.double() for one in inputs])
    names = NAMES[: 4 + len(inputs)]
    for name, one, other in zip(names, mine, true, strict=True):
        scale = other.abs().max().clamp(min=0.01)
        assert (one.double() - other).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("steps", "width", "value_width"), [(1, 5, 16), (17, 1, 1), (64, 16, 5), (100, 5, 1), (257, 8, 3)]
)
@pytest.mark.parametrize("design", DESIGNS)
def test_any_length_and_widths(design, steps, width, value_width, warm):
    inputs = problem(2, steps, 1, width, value_width)
    assert_near_truth(inputs if warm else inputs[:5], 1e-4, design=design)


@pytest.mark.parametrize("design", DESIGNS)
def test_many_chunks_with_shut_gates_and_padding(design):
    inputs = problem(2, 150, 1, 8, 24)
    generator = torch.Generator().manual_seed(2)
    inputs[4] = torch.where(torch.rand(inputs[4].shape, generator=generator) < 0.02, -1e30, inputs[4])
    inputs[3][1, 75:], inputs[4][1, 75:] = -1e30, 1e30
    assert_near_truth(inputs, 1e-4, design=design)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "width", "value_width"), [(1, 512, 130), (17, 512, 16), (17, 16, 512), (65, 130, 70)]
)
def test_wide_heads_go_tile_by_tile(steps, width, value_width):
    assert_near_truth(problem(1, steps, 1, width, value_width), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS)
def test_the_largest_input_may_lie_many_chunks_back(design, monkeypatch):
    monkeypatch.setattr(mlstm_parallel_triton, "CHUNKS_AT_ONCE", 2)
    inputs = problem(2, 260, 1, 4, 4)
    for at in (0, 1, 6):
        inputs[at] = inputs[at].abs()  # no total that cancels to nearly nothing
    inputs[4] += 8.0
    inputs[3][0, 10], inputs[3][0, 130], inputs[7][1] = 30.0, 40.0, 50.0
    assert_near_truth(inputs, 1e-4, design=design)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("design", DESIGNS)
def test_extreme_gates_are_exact(design, warm):
    generator = torch.Generator().manual_seed(0)
    inputs = problem(2, 70, 1, 4, 4)
    for at in (3, 4):
        # A little noise: where two steps weigh exactly the same, the maximum has no one gradient.
        noise = torch.rand(inputs[at].shape, generator=generator)
        inputs[at] = (torch.randint(0, 3, noise.shape, generator=generator) - 1) * 120.0 + noise
    mine = results(mlstm_triton, inputs if warm else inputs[:5], design=design)
    true = results(mlstm_chunkwise, [one.double() for one in (inputs if warm else inputs[:5])])
    assert all(one.isfinite().all() for one in mine)
    for one, other in zip(mine[:4], true[:4], strict=True):
        assert (one.double() - other).abs().max() <= 1e-4 * other.abs().max()


@pytest.mark.parametrize("design", DESIGNS)
def test_gates_of_any_finite_size_give_no_nan(design):
    inputs = problem(2, 40, 1, 4, 4)
    inputs[3][0, ::3], inputs[4][0, 1::3] = -1e30, -1e30
    inputs[3][1], inputs[4][1] = 1e4 * inputs[3][1], 1e4 * inputs[4][1]
    for count in (5, 8):
        assert all(one.isfinite().all() for one in results(mlstm_triton, inputs[:count], design=design))


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS)
def test_open_gates_over_many_steps_keep_their_gradients(design):
    """The forget gate's gradient is a sum over all later steps: no digits are lost to it over the chunks."""
    inputs = problem(1, 257, 1, 8, 8)
    inputs[4] += 5.0
    assert_near_truth(inputs, 1e-4, design=design)


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(("products", "tolerance"), [(torch.float32, 2e-3), (torch.float16, 6e-3)])
def test_16_bits_with_products_in_either_dtype(design, products, tolerance, monkeypatch):
    """float16 stands for bfloat16, whose products the interpreter gets wrong: those are made in 16 bits."""
    monkeypatch.setitem(mlstm_parts_triton.PRODUCTS, torch.float16, (products, "tf32"))
    inputs = problem(2, 70, 1, 20, 24)
    half = [tensor.half() if at < 3 else tensor for at, tensor in enumerate(inputs)]
    assert results(mlstm_triton, half, design=design)[0].dtype == torch.float16
    assert_near_truth(half, tolerance, design=design)


def counted_steps(monkeypatch):
    """A list that grows with each run of the kernel of one step; the kernels of whole sequences are taken away."""
    seen = []
    for module in (walking, mlstm_parallel_triton):
        own = module.step
        monkeypatch.setattr(module, "step", lambda *tensors, own=own: (seen.append(1), own(*tensors)))
    for module in (mlstm_walk_triton, mlstm_states_triton):
        monkeypatch.setattr(module, "forward", None)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("width", "value_width"), [(5, 3), (33, 70), (130, 16)])
def test_a_step_without_gradients_has_its_own_kernel(width, value_width, dtype, monkeypatch):
    seen = counted_steps(monkeypatch)
    q, k, v, i, f = problem(2, 3, 2, width, value_width)[:5]
    q, k, v = (tensor.to(dtype) for tensor in (q, k, v))
    resets = torch.tensor([[False, False, True], [False, False, False]])
    truth, ends = mlstm(*(one.double() for one in (q, k, v, i, f)), None, resets=resets)
    mine, ours = [], None
    for t in range(3):
        now = slice(t, t + 1)
        h, ours = mlstm(
            q[:, now], k[:, now], v[:, now], i[:, now], f[:, now], ours, resets=resets[:, now], backend="triton"
        )
        mine.append(h)
    assert len(seen) == 3
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    for one, other in zip((torch.cat(mine, 1), *ours), (truth, *ends), strict=True):
        assert (one.double() - other).abs().max() <= tolerance * other.abs().max()


def test_a_layer_that_serves_step_by_step_runs_the_kernel_of_a_step(monkeypatch):
    torch.manual_seed(0)
    layer = MLSTMLayer(8, 16, heads=2, backend="triton")
    x = torch.randn(3, 4, 8)
    with torch.no_grad():
        whole, _ = layer(x)
        seen = counted_steps(monkeypatch)
        state, outputs = None, []
        for t in range(4):
            y, state = layer(x[:, t : t + 1], state)
            outputs.append(y)
    assert len(seen) == 4
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=1e-4, atol=1e-6)


def test_a_step_with_gradients_is_a_short_sequence(monkeypatch):
    monkeypatch.setattr(walking, "step", None)
    assert_near_truth(problem(2, 1, 1, 5, 3), 1e-5)


def kept_bytes(design, steps, width, value_width):
    """Bytes of the tensors kept for the backward pass that are neither inputs nor outputs."""
    inputs = [tensor.requires_grad_() for tensor in problem(2, steps, 3, width, value_width)]
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.setdefault(one.data_ptr(), one), lambda one: one):
        h, final = mlstm_triton(*inputs[:5], MLSTMState(*inputs[5:]), design=design)
    for known in (*inputs, h, *final):
        kept.pop(known.data_ptr(), None)
    return sum(one.numel() * one.element_size() for one in kept.values())


@pytest.mark.parametrize(("design", "chunk", "of_step"), [("walk", 16, 0), ("parallel", 64, 4)])
def test_what_is_kept_is_as_stated_and_linear_in_steps(design, chunk, of_step):
    width, value_width = 5, 9
    for chunks in (1, 3):
        of_chunk = 4 * width * value_width + 4 * width + 8
        stated = 2 * 3 * chunks * (of_chunk + of_step * chunk)
        assert kept_bytes(design, chunks * chunk, width, value_width) == stated


def test_heads_that_are_too_wide_are_refused():
    wide = torch.zeros(1, 2, 1, 513)
    gates = torch.zeros(1, 2, 1)
    with pytest.raises(BackendUnavailable, match="heads of up to 512, and these are 513 wide"):
        mlstm(wide, wide, wide, gates, gates, backend="triton")
    with pytest.raises(ValueError, match="design 'walk' takes heads of up to 128, and these are 513 wide"):
        mlstm_triton(wide, wide, wide, gates, gates, design="walk")


@pytest.mark.skipif(os.environ.get("XLSTM_TUNE_TEST_GPU") == "1", reason="of the interpreter")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("design", DESIGNS)
def test_16_bits_are_near_the_truth_by_products_of_a_gpu(design, dtype, bfloat16_products):
    inputs = [one.to(dtype) if at < 3 else one for at, one in enumerate(problem(2, 70, 1, 24, 20))]
    assert_near_truth(inputs, 3e-2, design=design)


@pytest.mark.gpu
@pytest.mark.parametrize("design", DESIGNS)
def test_bfloat16_is_near_the_truth(design):
    inputs = [one.cuda() for one in problem(2, 257, 2, 64, 48)]
    inputs = [one.bfloat16() if at < 3 else one for at, one in enumerate(inputs)]
    assert_near_truth(inputs, 3e-2, design=design)


@pytest.mark.gpu
@pytest.mark.parametrize("design", DESIGNS)
def test_a_cuda_graph_captures_both_passes(design):
    inputs = [one.cuda().requires_grad_() for one in problem(2, 100, 2, 32, 48)]

    def run():
        h, final = mlstm_triton(*inputs[:5], MLSTMState(*inputs[5:]), design=design)
        return h, *torch.autograd.grad(h.sum() + final.c.sum(), inputs)

    # Without the graph behind them: it would hold the inputs' accumulators, and with them the stream of this pass.
    eager = [one.detach().clone() for one in run()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    for mine, true in zip(captured, eager, strict=True):
        assert torch.equal(mine, true)


@pytest.mark.gpu
@pytest.mark.parametrize("design", DESIGNS)
def test_tensors_of_more_than_2_31_numbers(design):
    if torch.cuda.get_device_properties(0).total_memory < 75e9:
        pytest.skip("needs a GPU with 75 GB")
    batch, steps, heads, width = 1040, 4096, 8, 64
    assert batch * steps * heads * width > 2**31
    device = torch.device("cuda")
    torch.use_deterministic_algorithms(False)  # filling memory takes memory
    q, k, v = (torch.randn(batch, steps, heads, width, device=device, dtype=torch.bfloat16) for _ in range(3))
    i, f = torch.randn(batch, steps, heads, device=device), torch.randn(batch, steps, heads, device=device) + 3
    found = {}
    for name, samples in (("all", slice(None)), ("last", slice(-1, None))):
        inputs = [one[samples].detach().requires_grad_() for one in (q, k, v, i, f)]
        h, _ = mlstm_triton(*inputs, design=design)
        h.backward(h.detach())
        found[name] = [h[-1].detach().clone(), *(one.grad[-1].clone() for one in inputs)]
        del h, inputs
    for mine, alone in zip(found["all"], found["last"], strict=True):
        assert torch.equal(mine, alone)
