import math

import pytest
import torch

from xlstm_tune.kernels import MLSTMState, mlstm
from xlstm_tune.kernels.mlstm_forms import EPSILON, mlstm_empty_state, mlstm_parallel, mlstm_recurrent
from xlstm_tune.kernels.mlstm_numba import mlstm_numba
from xlstm_tune.kernels.mlstm_reference import chunk_length, mlstm_chunkwise

NAMES = ("q", "k", "v", "i", "f", "C", "n", "m")


def problem(batch, steps, heads, width, dtype=torch.float64, seed=0):
    """Inputs and a warm initial state, all requiring gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0, shift=0.0):
        tensor = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale + shift
        return tensor.to(dtype).requires_grad_()

    return [
        *(draw(batch, steps, heads, width) for _ in range(3)),
        draw(batch, steps, heads, scale=2.0),
        draw(batch, steps, heads, scale=2.0, shift=1.0),
        draw(batch, heads, width, width),
        draw(batch, heads, width),
        draw(batch, heads),
    ]


def flat(form, q, k, v, i, f, *state, **options):
    h, final = form(q, k, v, i, f, MLSTMState(*state) if state else None, **options)
    return h, *final


def gradients(outputs, inputs, seed=1):
    """Gradients of a random weighting of all outputs."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outputs]
    loss = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
    return torch.autograd.grad(loss, inputs)


def relative(mine, true):
    """Largest difference over the largest value, which counts as 0.01 at least: a gradient may be all zero."""
    return ((mine.double() - true.double()).abs().max() / true.abs().max().clamp(min=0.01)).item()


def test_mlstm_equals_the_unstabilised_equations():
    q, k, v, i, f, *_ = (tensor.detach() for tensor in problem(2, 10, 2, 4))
    matrix = torch.zeros(2, 2, 4, 4, dtype=torch.float64)
    normaliser = torch.zeros(2, 2, 4, dtype=torch.float64)
    outputs = []
    for t in range(10):
        keep, add = torch.sigmoid(f[:, t])[..., None], torch.exp(i[:, t])[..., None]
        key = k[:, t] / math.sqrt(4)
        matrix = keep[..., None] * matrix + add[..., None] * torch.einsum("bnk,bnv->bnkv", key, v[:, t])
        normaliser = keep * normaliser + add * key
        denominator = (normaliser * q[:, t]).sum(-1).abs().clamp(min=1.0)
        outputs.append(torch.einsum("bnkv,bnk->bnv", matrix, q[:, t]) / denominator[..., None])
    # ε = 1e-6 belongs to the stabilised form only.
    torch.testing.assert_close(mlstm(q, k, v, i, f)[0], torch.stack(outputs, 1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 63, 64, 65, 257])
def test_mlstm_forms_agree_in_outputs_states_and_gradients(steps, warm):
    inputs = problem(2, steps, 2, 4)
    inputs = inputs if warm else inputs[:5]
    truth = flat(mlstm_recurrent, *inputs)
    true_gradients = gradients(truth, inputs)
    forms = {"parallel": flat(mlstm_parallel, *inputs), "chosen": flat(mlstm, *inputs)}
    forms |= {f"chunks of {chunk}": flat(mlstm_chunkwise, *inputs, chunk=chunk) for chunk in (16, 64, 256)}
    for form, outputs in forms.items():
        for name, mine, true in zip(("h", "C", "n", "m"), outputs, truth, strict=True):
            assert relative(mine, true) < 1e-10, f"{form}: {name}"
        for name, mine, true in zip(NAMES, gradients(outputs, inputs), true_gradients, strict=False):
            assert relative(mine, true) < 1e-10, f"{form}: gradient of {name}"


def chunks_of(chunk):
    return lambda *inputs, **options: mlstm_chunkwise(*inputs, **options, chunk=chunk)


@pytest.mark.slow
# Five steps in chunks of 2 with one left over, in equal chunks, and all pairs at once.
@pytest.mark.parametrize("form", [mlstm_recurrent, mlstm_parallel, chunks_of(2), chunks_of(1), chunks_of(5)])
@pytest.mark.parametrize("warm", [False, True])
def test_mlstm_gradcheck_all_inputs_and_states(form, warm):
    inputs = problem(2, 5, 2, 2)
    inputs = inputs if warm else inputs[:5]
    _, _, normaliser, m = flat(form, *inputs)
    larger = (normaliser * inputs[0][:, -1]).sum(-1).abs() > torch.exp(-m)
    assert larger.any() and not larger.all(), "both branches of the normaliser must be in the check"
    assert torch.autograd.gradcheck(lambda *tensors: flat(form, *tensors), inputs)


def test_mlstm_gradient_passes_through_the_normaliser_and_m():
    inputs = problem(2, 5, 2, 2)
    truth = gradients(flat(mlstm, *inputs)[:1], inputs)
    q, k, v, i, f, *state = inputs
    with torch.no_grad():
        _, final = mlstm_recurrent(q, k, v, i, f, MLSTMState(*state))
    moved = (q, k, v, i + 3.0, f, *state)
    assert relative(gradients(flat(mlstm, *moved)[:1], inputs)[3], truth[3]) > 0.01
    # h · (|n · q| + ε) is the numerator: without the normaliser's share dq would be C dh / (|n · q| + ε).
    through_numerator = torch.einsum("bnkv,bnv->bnk", final.c, torch.ones_like(v[:, -1]))
    ours = torch.autograd.grad(mlstm(q, k, v, i, f, MLSTMState(*state))[0][:, -1].sum(), q)[0][:, -1]
    total = (final.n * q[:, -1]).sum(-1)
    branch = total.abs() > torch.exp(-final.m)
    denominator = torch.maximum(total.abs(), torch.exp(-final.m)) + EPSILON
    alone = through_numerator / denominator[..., None]
    torch.testing.assert_close(ours[~branch], alone[~branch])
    assert ((ours - alone).abs().amax(-1) > 1e-3)[branch].all()


@pytest.mark.parametrize("cut", [1, 40, 64])
def test_mlstm_cut_sequence_gives_the_same_outputs_and_gradients(cut):
    inputs = problem(2, 70, 2, 4)
    q, k, v, i, f, *state = inputs
    first, middle = mlstm(*(tensor[:, :cut] for tensor in (q, k, v, i, f)), MLSTMState(*state))
    second, last = mlstm(*(tensor[:, cut:] for tensor in (q, k, v, i, f)), middle)
    pieces, whole = (torch.cat([first, second], 1), *last), flat(mlstm, *inputs)
    for mine, true in zip(pieces, whole, strict=True):
        assert relative(mine, true) < 1e-10
    for mine, true in zip(gradients(pieces, inputs), gradients(whole, inputs), strict=True):
        assert relative(mine, true) < 1e-10


@pytest.mark.parametrize("warm", [False, True])
def test_mlstm_resets_agree_with_the_step_by_step_form(warm):
    inputs = problem(3, 70, 2, 4)
    inputs = inputs if warm else inputs[:5]
    resets = torch.rand(3, 70, generator=torch.Generator().manual_seed(2)) < torch.tensor([[0.05], [0.3], [1.0]])
    resets[0, 0], resets[1, 64] = True, True
    truth = flat(mlstm_recurrent, *inputs, resets=resets)
    true_gradients = gradients(truth, inputs)
    for form in (mlstm_parallel, mlstm):
        outputs = flat(form, *inputs, resets=resets)
        for mine, true in zip(outputs, truth, strict=True):
            assert relative(mine, true) < 1e-10
        for name, mine, true in zip(NAMES, gradients(outputs, inputs), true_gradients, strict=False):
            assert relative(mine, true) < 1e-10, name
    if warm:
        assert not any(
            grad[0].any() or grad[2].any() for grad in gradients(flat(mlstm, *inputs, resets=resets), inputs[5:])
        )


def test_mlstm_lengths_agree_with_each_sample_alone_and_padding_gets_no_gradient():
    inputs = problem(3, 40, 2, 4)
    lengths = torch.tensor([40, 1, 33])
    outputs = flat(mlstm, *inputs, lengths=lengths)
    found = gradients(outputs, inputs)
    alone = []
    for sample, length in enumerate(lengths.tolist()):
        piece = [tensor[sample : sample + 1, :length] for tensor in inputs[:5]]
        h, *final = flat(mlstm, *piece, *(tensor[sample : sample + 1] for tensor in inputs[5:]))
        alone.append((torch.nn.functional.pad(h, (0, 0, 0, 0, 0, 40 - length)), *final))
        assert not any(grad[sample, length:].any() for grad in found[:5])
    together = tuple(torch.cat(parts) for parts in zip(*alone, strict=True))
    for mine, true in zip(outputs, together, strict=True):
        assert relative(mine, true) < 1e-10
    for name, mine, true in zip(NAMES, found, gradients(together, inputs), strict=True):
        assert relative(mine, true) < 1e-10, name


@pytest.mark.parametrize("form", [mlstm_recurrent, mlstm_parallel, mlstm_chunkwise])
def test_mlstm_empty_state_is_no_state(form):
    q, k, v, i, f, *_ = inputs = problem(2, 9, 2, 4)
    given, none = flat(form, *inputs[:5], *mlstm_empty_state(q, v)), flat(form, q, k, v, i, f)
    for mine, true in zip(given, none, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-13, atol=1e-14)
    assert all(torch.isfinite(grad).all() for grad in gradients(given, inputs[:5]))


FORMS = [
    (form, dtype)
    for form in (mlstm_recurrent, mlstm_parallel, mlstm_chunkwise)
    for dtype in (torch.float32, torch.float64)
]
FORMS += [(mlstm_numba, torch.float32)]


@pytest.mark.parametrize(("form", "dtype"), FORMS)
def test_mlstm_extreme_gates_are_finite_and_exact(form, dtype):
    generator = torch.Generator().manual_seed(0)
    inputs = problem(4, 70, 2, 4, torch.float64)
    with torch.no_grad():
        for gate in inputs[3:5]:
            # A little noise: where two steps weigh exactly the same, the maximum has no one gradient.
            noise = torch.rand(gate.shape, generator=generator, dtype=torch.float64)
            gate.copy_((torch.randint(0, 3, gate.shape, generator=generator) - 1) * 120.0 + noise)
        inputs[3][0] = -120.0  # a whole sequence that opens no gate: exp(-m) would overflow in float32
    for count in (5, 8):
        truth = flat(mlstm_recurrent, *inputs[:count])
        mine = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs[:count]]
        outputs = flat(form, *mine)
        found = gradients(outputs, mine)
        assert all(torch.isfinite(tensor).all() for tensor in (*outputs, *found))
        tolerance = 1e-4 if dtype == torch.float32 else 1e-10
        for one, true in zip(outputs, truth, strict=True):
            assert relative(one[1:], true[1:]) < tolerance
        if dtype == torch.float64:
            for name, one, true in zip(NAMES, found, gradients(truth, inputs[:count]), strict=False):
                assert relative(one[1:], true[1:]) < 1e-10, name


@pytest.mark.parametrize("form", [mlstm_chunkwise, mlstm_numba])
def test_mlstm_gates_of_any_finite_size_give_no_nan(form):
    inputs = problem(2, 40, 1, 4, torch.float32)
    with torch.no_grad():
        inputs[3][0, ::3], inputs[4][0, 1::3] = -1e30, -1e30
        inputs[3][1], inputs[4][1] = 1e4 * inputs[3][1], 1e4 * inputs[4][1]
    outputs = flat(form, *inputs)
    assert all(torch.isfinite(tensor).all() for tensor in (*outputs, *gradients(outputs, inputs)))


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("forget", [-4.0, 0.0, 1.0, 5.0])
def test_mlstm_float32_is_near_float64(backend, forget):
    single = problem(4, 96, 2, 8, torch.float32)
    with torch.no_grad():
        single[4] += forget - 1.0
    inputs = [tensor.detach().double().requires_grad_() for tensor in single]
    truth = flat(mlstm, *inputs)
    ours = flat(mlstm, *single, backend=backend)
    for mine, true in zip(ours, truth, strict=True):
        assert relative(mine, true) < 1e-5
    for name, mine, true in zip(NAMES, gradients(ours, single), gradients(truth, inputs), strict=True):
        assert relative(mine, true) < 1e-5, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_mlstm_half_precision_keeps_float32_states(dtype, backend):
    inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in problem(2, 9, 2, 4)[:5]]
    options = {"resets": torch.zeros(2, 9, dtype=torch.bool), "lengths": torch.tensor([9, 4]), "backend": backend}
    options["resets"][0, 3] = True
    h, state = mlstm(*inputs, **options)
    assert h.dtype == dtype and all(tensor.dtype == torch.float32 for tensor in state)
    truth, _ = mlstm(*(tensor.float() for tensor in inputs), **options)
    torch.testing.assert_close(h.float(), truth, rtol=1e-2, atol=1e-2)
    h.sum().backward()
    assert all(tensor.grad.dtype == dtype and torch.isfinite(tensor.grad).all() for tensor in inputs)


def peak_bytes(form, steps):
    """The most memory that tensors hold at once, in a forward and backward pass."""
    inputs = problem(1, steps, 2, 4, torch.float32)[:5]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        form(*inputs)[0].sum().backward()
    held = torch.tensor(
        [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    )
    return held.cumsum(0).max().item()


def saved_bytes(form, steps):
    """Memory of tensors kept from the forward to the backward pass."""
    inputs = problem(1, steps, 1, 4, torch.float32)
    seen = {}

    def note(tensor):
        seen[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = form(*inputs[:5])
    del kept
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("form", [mlstm_chunkwise, mlstm_numba])
def test_mlstm_memory_is_linear_in_steps(form):
    for measure in (saved_bytes, peak_bytes):
        assert measure(form, 2048) < 2.2 * measure(form, 1024)
        assert measure(mlstm_parallel, 1024) > 3 * measure(mlstm_parallel, 512)
    # The Numba kernel keeps inputs and outputs: q, k, v, h, two gates, and the state.
    if form is mlstm_numba:
        assert saved_bytes(form, 1024) < 1024 * 4 * (4 * 4 + 2) + 1000


@pytest.mark.parametrize(
    ("steps", "width", "expected"), [(1, 4, 1), (96, 32, 32), (33, 4, 17), (365, 16, 31), (512, 256, 128)]
)
def test_chunk_length_cuts_evenly(steps, width, expected):
    assert chunk_length(steps, width) == expected


def test_mlstm_wrong_shapes_say_what_was_wanted():
    q, k, v, i, f, *state = problem(2, 3, 2, 4)
    with pytest.raises(ValueError, match=r"mlstm: k must be \[B=2, T=3, N=2, D=4\], got .*axis 3 \(D\) is 3"):
        mlstm(q, k[..., :3], v, i, f)
    with pytest.raises(ValueError, match=r"mlstm: f .*it has 2 axes and must have 3"):
        mlstm(q, k, v, i, f[..., 0])
    with pytest.raises(ValueError, match=r"state c .*axis 0 \(B\) is 1 and must be 2"):
        mlstm(q, k, v, i, f, MLSTMState(state[0][:1], state[1], state[2]))
