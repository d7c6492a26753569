"""Every backend of every op against the float64 reference: outputs, final states and all gradients, at odd sizes.

Memory that is not yet written holds NaN throughout, so that reading it shows.
"""

import pytest
import torch

from xlstm_tune.kernels import LSTMState, MLSTMState, SLSTMState, dispatch, lstm, mlstm, slstm
from xlstm_tune.kernels.dispatch import KERNELS

SIZES = [(1, 1, 1, 1), (5, 2, 1, 3), (17, 9, 2, 16), (16, 4, 1, 40), (33, 12, 2, 20)]
SIZES += [pytest.param(size, marks=pytest.mark.slow) for size in [(3, 63, 3, 5), (3, 5, 2, 130)]]
"""(batch, steps, heads, width)"""


pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture(autouse=True)
def design(request, monkeypatch):
    """Where a backend is "triton parallel", every sequence is too long for mLSTM's other design."""
    if "backend" in request.fixturenames and "parallel" in request.getfixturevalue("backend"):
        monkeypatch.setattr(dispatch, "SHORT", 0)


def lstm_problem(draw, batch, steps, heads, width):
    recurrent = draw(heads, 4, width, width) / width**0.5
    return [draw(batch, steps, heads, 4, width), recurrent, draw(heads, 4, width), *draw(2, batch, heads, width)]


def lstm_flat(inputs, **options):
    h, final = lstm(*inputs[:3], LSTMState(*inputs[3:]) if inputs[3:] else None, **options)
    return h, *final


def slstm_problem(draw, batch, steps, heads, width):
    state = [draw(batch, heads, width) for _ in range(4)]
    state[2] = state[2].abs() + 0.3
    scale = 1 / width**0.5
    return [draw(batch, steps, heads, 4, width), draw(heads, 4, width, width) * scale, draw(heads, 4, width), *state]


def slstm_flat(inputs, **options):
    h, final = slstm(*inputs[:3], SLSTMState(*inputs[3:]) if inputs[3:] else None, **options)
    return h, *final


def mlstm_problem(draw, batch, steps, heads, width):
    rows = [draw(batch, steps, heads, width), draw(batch, steps, heads, width), draw(batch, steps, heads, width + 1)]
    gates = [2 * draw(batch, steps, heads), 2 * draw(batch, steps, heads) + 1]
    return [*rows, *gates, draw(batch, heads, width, width + 1), draw(batch, heads, width), draw(batch, heads)]


def mlstm_flat(inputs, backend="auto", **options):
    state = MLSTMState(*inputs[5:]) if inputs[5:] else None
    h, final = mlstm(*inputs[:5], state, backend=backend.split()[0], **options)
    return h, *final


OPS = {
    "lstm": (lstm_problem, lstm_flat, 3),
    "slstm": (slstm_problem, slstm_flat, 3),
    "mlstm": (mlstm_problem, mlstm_flat, 5),
}
"""op → its random inputs, the op on them as a flat tuple, how many inputs are not states."""
BACKENDS = [(op, backend) for op in OPS for backend in ("reference", *KERNELS)]
BACKENDS += [("mlstm", "triton parallel")]
FASTER = [(op, backend) for op, backend in BACKENDS if backend != "reference"]


def problem(op, size, warm=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    make, _, count = OPS[op]
    inputs = make(lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64), *size)
    return inputs if warm else inputs[:count]


def results(op, inputs, dtype, seed=1, **options):
    """Outputs, and the gradients of a random weighting of them."""
    inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    outputs = OPS[op][1](inputs, **options)
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outputs]
    loss = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
    return *outputs, *torch.autograd.grad(loss, inputs)


def few(op, backend, batch):
    """So many samples, or a few: to each one mLSTM's Triton kernels give programs of its own, and the interpreter takes
    milliseconds for each program."""
    return min(batch, 2) if op == "mlstm" and "triton" in backend else batch


def assert_near(mine, true, tolerance):
    for number, (one, other) in enumerate(zip(mine, true, strict=True)):
        scale = other.abs().max().clamp(min=0.01)
        assert (one.double() - other).abs().max() <= tolerance * scale, f"result {number}"


def masks(batch, steps, seed=2):
    generator = torch.Generator().manual_seed(seed)
    resets = torch.rand(batch, steps, generator=generator) < 0.2
    lengths = torch.randint(1, steps + 1, (batch,), generator=generator)
    return resets, lengths


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("op", "backend"), FASTER)
def test_backend_equals_the_reference(op, backend, size, warm):
    if backend == "triton parallel" and size[-1] > dispatch.WALKED:
        pytest.skip("these heads run in this design anyway")
    inputs = problem(op, (few(op, backend, size[0]), *size[1:]), warm)
    true = results(op, inputs, torch.float64, backend="reference")
    assert_near(results(op, inputs, torch.float32, backend=backend), true, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("masked", ["resets", "lengths", "both"])
@pytest.mark.parametrize(("op", "backend"), FASTER)
def test_backend_equals_the_reference_with_masks(op, backend, masked):
    batch = few(op, backend, 19)
    inputs = problem(op, (batch, 23, 2, 4))
    resets, lengths = masks(batch, 23)
    options = {"resets": resets} if masked != "lengths" else {}
    options |= {"lengths": lengths} if masked != "resets" else {}
    true = results(op, inputs, torch.float64, backend="reference", **options)
    assert_near(results(op, inputs, torch.float32, backend=backend, **options), true, 1e-5)


@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_masks_are_segments_run_alone(op, backend):
    batch, steps = 4, 9
    inputs = problem(op, (batch, steps, 2, 4))
    count, run = OPS[op][2], OPS[op][1]
    in_time = [number for number, one in enumerate(inputs[:count]) if one.shape[:2] == (batch, steps)]
    dtype = torch.float64 if backend == "reference" else torch.float32
    inputs = [tensor.to(dtype) for tensor in inputs]
    resets = torch.zeros(batch, steps, dtype=torch.bool)
    resets[0, 3] = resets[1, 0] = resets[1, 2] = resets[3, 7] = True
    lengths = torch.tensor([9, 4, 1, 6])
    outputs, *finals = run(inputs, resets=resets, lengths=lengths, backend=backend)
    for sample, pieces in enumerate([[(0, 3), (3, 9)], [(0, 2), (2, 4)], [(0, 1)], [(0, 6)]]):
        for start, end in pieces:
            piece = [
                one[sample : sample + 1, start:end] if number in in_time else one
                for number, one in enumerate(inputs[:count])
            ]
            warm = start == 0 and not resets[sample, 0]
            piece += [one[sample : sample + 1] for one in inputs[count:]] if warm else []
            alone, *ends = run(piece, backend=backend)
            torch.testing.assert_close(outputs[sample : sample + 1, start:end], alone, rtol=1e-5, atol=1e-6)
        assert not outputs[sample, lengths[sample] :].any()
        for one, other in zip(finals, ends, strict=True):
            torch.testing.assert_close(one[sample : sample + 1], other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_single_outputs_have_their_own_gradients(op, backend):
    inputs = problem(op, (3, 5, 2, 3))
    for number in range(len(OPS[op][1](inputs))):

        def alone(dtype, backend, number=number):
            leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
            out = OPS[op][1](leaves, backend=backend)[number]
            return torch.autograd.grad(out.square().sum(), leaves, allow_unused=True, materialize_grads=True)

        dtype = torch.float64 if backend == "reference" else torch.float32
        assert_near(alone(dtype, backend), alone(torch.float64, "reference"), 1e-5)


@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_without_gradient_the_same_numbers(op, backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    inputs = [tensor.to(dtype).requires_grad_() for tensor in problem(op, (few(op, backend, 18), 9, 2, 4))]
    kept = OPS[op][1](inputs, backend=backend)
    with torch.no_grad():
        for mine, true in zip(OPS[op][1](inputs, backend=backend), kept, strict=True):
            assert torch.equal(mine, true)


@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_nan_in_one_sample_stays_there_and_shows(op, backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    inputs = [tensor.to(dtype) for tensor in problem(op, (4, 6, 2, 4), warm=False)]
    inputs[0][2, 3] = torch.nan
    h = OPS[op][1](inputs, backend=backend)[0]
    assert h[2, 3].isnan().all() and not h[2, :3].isnan().any()
    assert not h[[0, 1, 3]].isnan().any()


@pytest.mark.parametrize("width", [5, 16])
@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_nan_in_one_sample_leaves_the_gradients_of_the_others(op, backend, width):
    """Whatever a sample leaves behind in a kernel's memory."""
    dtype = torch.float64 if backend == "reference" else torch.float32
    clean = problem(op, (3, 9, 2, width))
    own = [place for place, tensor in enumerate(clean) if len(tensor) == 3]
    broken = [tensor.clone() for tensor in clean]
    for place in own:
        broken[place][1] = torch.nan
    true, found = (results(op, inputs, dtype, backend=backend)[-len(clean) :] for inputs in (clean, broken))
    for place in own:
        torch.testing.assert_close(found[place][[0, 2]], true[place][[0, 2]], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_vmap_over_members_equals_each_alone(op, backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    members = [problem(op, (few(op, backend, 4), 6, 2, 4), seed=seed) for seed in range(3)]
    shared = members[0][0].to(dtype).requires_grad_()  # the first input is the same for all members
    stacked = [torch.stack(parts).to(dtype).requires_grad_() for parts in list(zip(*members, strict=True))[1:]]

    def run(*own):
        return OPS[op][1]([shared, *own], backend=backend)

    together = torch.vmap(run)(*stacked)
    sum(out.square().sum() for out in together).backward()
    of_shared, shared.grad = shared.grad, None
    for number in range(3):
        own = [tensor[number].detach().requires_grad_() for tensor in stacked]
        alone = run(*own)
        sum(out.square().sum() for out in alone).backward()
        for mine, true in zip(together, alone, strict=True):
            torch.testing.assert_close(mine[number], true, rtol=1e-5, atol=1e-6)
        for mine, true in zip(stacked, own, strict=True):
            torch.testing.assert_close(mine.grad[number], true.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(of_shared, shared.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_compile_without_graph_breaks(op, backend):
    torch._dynamo.reset()  # each of these is another variant of the same functions
    dtype = torch.float64 if backend == "reference" else torch.float32
    inputs = [tensor.to(dtype).requires_grad_() for tensor in problem(op, (3, 6, 2, 4))]
    resets, lengths = masks(3, 6)

    def run(*tensors):
        return OPS[op][1](tensors, backend=backend, resets=resets, lengths=lengths)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    truth = run(*inputs)
    outputs = compiled(*inputs)
    for mine, true in zip(outputs, truth, strict=True):
        torch.testing.assert_close(mine, true)
    mine = torch.autograd.grad(sum(out.square().sum() for out in outputs), inputs)
    true = torch.autograd.grad(sum(out.square().sum() for out in truth), inputs)
    for one, other in zip(mine, true, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_masks_of_a_wrong_kind_are_refused(op, backend):
    inputs = problem(op, (2, 3, 1, 2))

    def run(**options):
        OPS[op][1](inputs, **options)

    with pytest.raises(ValueError, match=rf"{op}: resets must be \[B=2, T=3\], got \[2, 4\]: axis 1 \(T\)"):
        run(resets=torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"resets must be boolean, True where a sample starts anew, got torch.float32"):
        run(resets=torch.zeros(2, 3))
    for odd in (torch.float32, torch.uint16, torch.bool):
        with pytest.raises(ValueError, match=f"lengths must be integers, such as torch.int64, .* got {odd}"):
            run(lengths=torch.ones(2, dtype=odd))
    with pytest.raises(ValueError, match=r"lengths must lie in 1\.\.3 \(the steps\), got 4"):
        run(lengths=torch.tensor([4, 1]))
    with pytest.raises(ValueError, match=r"lengths must lie in 1\.\.3 \(the steps\), got 0"):
        run(lengths=torch.tensor([0, 1]))


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize(("op", "backend"), BACKENDS)
def test_ops_without_samples_give_empty_results_and_zero_gradients(op, backend, warm):
    inputs = [tensor.float().requires_grad_() for tensor in problem(op, (0, 5, 2, 8), warm)]
    outputs = OPS[op][1](inputs, backend=backend, lengths=torch.zeros(0, dtype=torch.long))
    whole = OPS[op][1](problem(op, (3, 5, 2, 8), warm), backend="reference")
    assert [out.shape for out in outputs] == [torch.Size([0, *out.shape[1:]]) for out in whole]
    gradients = torch.autograd.grad(sum(out.sum() for out in outputs), inputs)
    assert all(torch.equal(found, torch.zeros_like(tensor)) for found, tensor in zip(gradients, inputs, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_ops_take_a_plain_tuple_as_the_state(op):
    inputs = problem(op, (3, 5, 2, 8))
    function, count = {"lstm": lstm, "slstm": slstm, "mlstm": mlstm}[op], OPS[op][2]
    wanted = OPS[op][1](inputs)
    for state in (tuple(inputs[count:]), inputs[count:]):
        h, final = function(*inputs[:count], state)
        assert all(torch.equal(one, other) for one, other in zip((h, *final), wanted, strict=True))
    with pytest.raises(ValueError, match=rf"{op}: initial_state must be .*State or a tuple of \d tensors .*, got 1 of"):
        function(*inputs[:count], (inputs[count],))
    with pytest.raises(TypeError, match=rf"{op}: initial_state must be .*, got Tensor"):
        function(*inputs[:count], inputs[count])
    with pytest.raises(TypeError, match=rf"{op}: state \w must be a torch tensor, got ndarray"):
        function(*inputs[:count], tuple(tensor.numpy() for tensor in inputs[count:]))


@pytest.mark.parametrize("op", OPS)
def test_ops_refuse_what_is_no_floating_point_tensor(op):
    function, count = {"lstm": lstm, "slstm": slstm, "mlstm": mlstm}[op], OPS[op][2]
    names = ("q", "k", "v", "i", "f") if op == "mlstm" else ("gates", "recurrent", "bias")
    inputs = problem(op, (3, 5, 2, 8), warm=False)
    for at, name in enumerate(names):
        changed = [*inputs[:at], inputs[at].long(), *inputs[at + 1 :]]
        with pytest.raises(ValueError, match=rf"{op}: {name} must be floating-point, .* got torch.int64"):
            function(*changed)
        with pytest.raises(TypeError, match=rf"{op}: {name} must be a torch tensor, got ndarray"):
            function(*inputs[:at], inputs[at].numpy(), *inputs[at + 1 : count])
        moved = [*inputs[:at], inputs[at].to("meta"), *inputs[at + 1 :]]  # as weights are that a file left out
        with pytest.raises(ValueError, match=rf"{op}: .* is on .*; move them to one device"):
            function(*moved)
    with pytest.raises(TypeError, match=rf"{op}: lengths must be a torch tensor, got list"):
        function(*inputs, lengths=[5, 5, 5])


SHUTTABLE = [(op, backend) for op, backend in BACKENDS if op != "lstm"]


def shut_until(op, inputs, first, value=-torch.inf):
    """The inputs with the first sample's input gate shut before step `first`."""
    inputs = [tensor.clone() for tensor in inputs]
    gate = inputs[3] if op == "mlstm" else inputs[0][:, :, :, 0]
    gate[0, :first] = value
    return inputs


@pytest.mark.parametrize("value", [-torch.inf, -1e30, -1e9, -1e4])
@pytest.mark.parametrize("width", [5, 16])
@pytest.mark.parametrize(("op", "backend"), SHUTTABLE)
def test_steps_behind_shut_input_gates_are_as_the_first(op, backend, width, value):
    if op == "slstm" and value > -1e20:
        pytest.skip("h of the first step has the sign of its input however little that weighs, and goes round")
    dtype = torch.float64 if backend == "reference" else torch.float32
    inputs = shut_until(op, problem(op, (2, 20, 2, width), warm=False), 6, value)
    leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    h, *final = OPS[op][1](leaves, backend=backend)
    assert not h[0, :6].abs().gt(1e-20).any()
    own = [at for at, tensor in enumerate(inputs) if tensor.shape[:2] == (2, 20)]
    later = [tensor[:1, 6:] if at in own else tensor for at, tensor in enumerate(inputs)]
    later = [tensor.detach().requires_grad_() for tensor in later]
    true_h, *true_final = OPS[op][1](later, backend="reference")
    assert_near([h[:1, 6:], *(one[:1] for one in final)], [true_h, *true_final], 1e-5)
    gradients = torch.autograd.grad(h[0, 6:].square().sum(), leaves)
    truths = torch.autograd.grad(true_h.square().sum(), later)
    assert_near([one[:1, 6:] if at in own else one for at, one in enumerate(gradients)], truths, 1e-5)
    gate = gradients[3] if op == "mlstm" else gradients[0][:, :, :, 0]
    assert not gate[0, :6].any() and all(one.isfinite().all() for one in gradients)


@pytest.mark.parametrize(("op", "backend"), SHUTTABLE)
def test_shut_input_gates_one_step_at_a_time_and_from_an_empty_state(op, backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    inputs = [tensor.to(dtype) for tensor in shut_until(op, problem(op, (2, 9, 2, 4), warm=False), 4)]
    whole, *ends = OPS[op][1](inputs, backend=backend)
    empty = [torch.zeros_like(one) for one in ends]
    if op == "mlstm":
        empty[2].fill_(-torch.inf)
    for start in ([], empty):
        state, pieces = start, []
        for t in range(9):
            now = [one[:, t : t + 1] if one.shape[:2] == (2, 9) else one for one in inputs]
            piece, *state = OPS[op][1]([*now, *state], backend=backend)
            pieces.append(piece)
        for mine, true in zip((torch.cat(pieces, 1), *state), (whole, *ends), strict=True):
            torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("op", "backend"), [one for one in SHUTTABLE if "triton" not in one[1]])
def test_shut_input_gates_of_members_under_vmap(op, backend):
    members = [shut_until(op, problem(op, (2, 9, 2, 4), seed=seed), first) for seed, first in enumerate((0, 4, 9))]
    for count in (OPS[op][2], len(members[0])):
        for member in members:
            for state in member[OPS[op][2] :]:
                state[0] = 0.0
        stacked = [torch.stack(parts).float() for parts in zip(*(member[:count] for member in members), strict=True)]
        together = torch.vmap(lambda *own: OPS[op][1](own, backend=backend))(*stacked)
        for number in range(3):
            alone = OPS[op][1]([one[number] for one in stacked], backend=backend)
            for mine, true in zip(together, alone, strict=True):
                assert true.isfinite().all()
                torch.testing.assert_close(mine[number], true, rtol=1e-5, atol=1e-6)
