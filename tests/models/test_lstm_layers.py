import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from xlstm_tune.models.lstm import LSTM, LSTMScratch, LSTMTorch, open_forget_gates
from xlstm_tune.models.steps import flip

KINDS = [LSTM, LSTMScratch, LSTMTorch]
OURS = [LSTM, LSTMScratch]
OPTIONS = [
    {},
    {"layers": 3},
    {"bias": False},
    {"layers": 2, "projection": 2},
    {"layers": 2, "direction": "both"},
    {"layers": 2, "direction": "both", "projection": 2, "bias": False},
]


def torchs(inputs, hidden, layers=1, bias=True, projection=0, direction="forward"):
    return nn.LSTM(
        inputs, hidden, layers, bias, batch_first=True, proj_size=projection, bidirectional=direction == "both"
    ).double()


def make(kind, **options):
    torch.manual_seed(0)
    return kind(3, 5, **options).double()


def inputs(batch=4, steps=7):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, steps, 3, generator=generator, dtype=torch.float64, requires_grad=True)


def warm_state(model, batch=4):
    generator = torch.Generator().manual_seed(2)
    _, (h, c) = model(inputs(batch, 1))
    return tuple(
        torch.randn(one.shape, generator=generator, dtype=torch.float64).mul_(0.5).requires_grad_() for one in (h, c)
    )


def assert_same(ours, truth, our_leaves, true_leaves):
    """(y, (h, c)) twice: the numbers, and the gradients of a random weighting of all of them."""
    ours, truth = (ours[0], *ours[1]), (truth[0], *truth[1])
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in truth]
    for mine, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-12)
    mine, true = (
        torch.autograd.grad(sum((one * weight).sum() for one, weight in zip(outputs, weights, strict=True)), leaves)
        for outputs, leaves in ((ours, our_leaves), (truth, true_leaves))
    )
    for one, other in zip(mine, true, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_torch_in_outputs_states_and_gradients(kind, options, warm):
    truth, ours = torchs(3, 5, **options), make(kind, **options)
    ours.load_state_dict(truth.state_dict())
    x = inputs()
    state = warm_state(ours) if warm else None
    leaves = [x, *(state or ())]
    assert_same(ours(x, state), truth(x, state), [*leaves, *ours.parameters()], [*leaves, *truth.parameters()])


@pytest.mark.parametrize("options", [{}, {"layers": 2, "direction": "both", "projection": 2}])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_equal_torchs_packed_sequences(kind, options):
    truth, ours = torchs(3, 5, **options), make(kind, **options)
    ours.load_state_dict(truth.state_dict())
    x, lengths = inputs(), torch.tensor([3, 7, 1, 6])
    state = warm_state(ours)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    y, final = truth(packed, state)
    y, _ = pad_packed_sequence(y, batch_first=True)
    leaves = [x, *state]
    assert_same(
        ours(x, state, lengths=lengths), (y, final), [*leaves, *ours.parameters()], [*leaves, *truth.parameters()]
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_state_dicts_convert_both_ways(options):
    truth = torchs(3, 5, **options)
    for kind in KINDS:
        model = make(kind, **options)
        assert list(model.state_dict()) == list(truth.state_dict())
        truth.load_state_dict(model.state_dict())
        torch.testing.assert_close(truth(inputs())[0], model(inputs())[0])


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("options", OPTIONS)
def test_initial_values_are_torchs(options, kind):
    torch.manual_seed(3)
    truth = torchs(3, 5, **options)
    torch.manual_seed(3)
    for mine, true in zip(kind(3, 5, **options).parameters(), truth.parameters(), strict=True):
        assert torch.equal(mine.double(), true)


@pytest.mark.parametrize("options", [{}, {"layers": 2, "projection": 2}])
@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 7, 1, 6])])
@pytest.mark.parametrize("kind", KINDS)
def test_reverse_is_forward_through_the_flipped_sequence(kind, lengths, options):
    back, forth = make(kind, direction="reverse", **options), make(kind, **options)
    forth.load_state_dict(back.state_dict())
    x = inputs()
    y, final = forth(flip(x, lengths), lengths=lengths)
    leaves = [x, *back.parameters()], [x, *forth.parameters()]
    assert_same(back(x, lengths=lengths), (flip(y, lengths), final), *leaves)


@pytest.mark.parametrize("direction", ["forward", "reverse", "both"])
@pytest.mark.parametrize("kind", OURS)
def test_resets_and_lengths_are_segments_run_alone(kind, direction):
    model = make(kind, layers=2, direction=direction)
    x, state = inputs(), warm_state(model)
    resets = torch.zeros(4, 7, dtype=torch.bool)
    resets[0, 3] = resets[1, 0] = resets[1, 2] = resets[3, 6] = True
    lengths = torch.tensor([7, 4, 1, 6])
    y, final = model(x, state, resets=resets, lengths=lengths)
    pieces = [[(0, 3), (3, 7)], [(0, 2), (2, 4)], [(0, 1)], [(0, 6)]]
    forth = {"forward": [0, 1], "reverse": [], "both": [0, 2]}[direction]
    back = {"forward": [], "reverse": [0, 1], "both": [1, 3]}[direction]
    expected, finals = torch.zeros_like(y), [torch.zeros_like(one) for one in final]
    for sample, segments in enumerate(pieces):
        row = slice(sample, sample + 1)
        for start, end in segments:
            first, last = start == 0 and not resets[sample, 0], end == lengths[sample]
            before = tuple(torch.zeros_like(one[:, row]) for one in state)
            for own, given in zip(before, state, strict=True):
                own[forth] = given[forth, row] * first
                own[back] = given[back, row] * last
            piece, after = model(x[row, start:end], before)
            expected[row, start:end] = piece
            for own, found in zip(finals, after, strict=True):
                own[forth, row] = found[forth] if last else own[forth, row]
                own[back, row] = found[back] * first if start == 0 else own[back, row]
    leaves = [x, *state, *model.parameters()]
    assert_same((y, final), (expected, tuple(finals)), leaves, leaves)


@pytest.mark.parametrize("cut", [1, 4, 6])
@pytest.mark.parametrize("options", [{"layers": 2}, {"projection": 2}, {"layers": 2, "direction": "reverse"}])
@pytest.mark.parametrize("kind", KINDS)
def test_cut_sequence_gives_the_same_outputs_and_gradients(kind, options, cut):
    model = make(kind, **options)
    x = inputs()
    pieces = [x[:, :cut], x[:, cut:]]
    if options.get("direction") == "reverse":
        second, middle = model(pieces[1])
        first, last = model(pieces[0], middle)
    else:
        first, middle = model(pieces[0])
        second, last = model(pieces[1], middle)
    leaves = [x, *model.parameters()]
    assert_same((torch.cat([first, second], 1), last), model(x), leaves, leaves)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_may_hold_anything(kind):
    model = make(kind, layers=2, direction="both")
    x, lengths = inputs().detach(), torch.tensor([3, 7, 1, 6])
    spoiled = x.clone()
    spoiled[torch.arange(7) >= lengths[:, None]] = torch.nan
    spoiled.requires_grad_()
    y, final = model(spoiled, lengths=lengths)
    truth, true_final = model(x, lengths=lengths)
    assert torch.equal(y, truth) and all(torch.equal(*pair) for pair in zip(final, true_final, strict=True))
    y.sum().backward()
    assert spoiled.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_stands_between_layers_only(kind, recwarn):
    x = inputs()
    one = make(kind, dropout=0.5)
    assert torch.equal(one(x)[0], one(x)[0])
    two = make(kind, layers=2, dropout=0.5)
    assert not torch.equal(two(x)[0], two(x)[0])
    two.eval()
    assert torch.equal(two(x)[0], two(x)[0])
    assert not recwarn.list


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_shapes_say_what_was_wanted(kind):
    model = kind(3, 5, 2, direction="both", projection=2)
    with pytest.raises(ValueError, match=r"lstm: x must be \[B, T, E=3\], got \[2, 6, 4\]: axis 2 \(E\) is 4"):
        model(torch.zeros(2, 6, 4))
    with pytest.raises(ValueError, match="it has 2 axes and must have 3"):
        model(torch.zeros(6, 3))
    with pytest.raises(ValueError, match=r"axis 1 \(T\) is 0 and must be at least 1"):
        model(torch.zeros(2, 0, 3))
    with pytest.raises(ValueError, match=r"state h must be \[L=4, B=2, P=2\], got \[2, 2, 5\]"):
        model(torch.zeros(2, 6, 3), (torch.zeros(2, 2, 5), torch.zeros(2, 2, 5)))
    with pytest.raises(ValueError, match=r"state c must be \[L=4, B=2, D=5\].*axis 2 \(D\) is 2"):
        model(torch.zeros(2, 6, 3), (torch.zeros(4, 2, 2), torch.zeros(4, 2, 2)))
    with pytest.raises(ValueError, match=r"lengths must lie in 1\.\.6 .*got 7"):
        model(torch.zeros(2, 6, 3), lengths=torch.tensor([7, 1]))
    with pytest.raises(ValueError, match=r"projection must be smaller than hidden_size \(5\), or 0 for none, got 5"):
        kind(3, 5, projection=5)


def test_torchs_lstm_refuses_resets():
    with pytest.raises(ValueError, match="takes no resets; cut the sequences there, or use the family lstm"):
        make(LSTMTorch)(inputs(), resets=torch.zeros(4, 7, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", OURS)
def test_dtypes_are_near_float64(kind, dtype):
    model = make(kind, layers=2, projection=2)
    truth = model(inputs())[0]
    model.to(dtype)
    y, state = model(inputs().to(dtype))
    assert y.dtype == dtype
    rtol = {torch.float16: 1e-2, torch.bfloat16: 5e-2}.get(dtype, 1e-5)
    torch.testing.assert_close(y.double(), truth, rtol=rtol, atol=rtol)
    again, _ = model(inputs().to(dtype), state)
    again.sum().backward()
    assert all(one.grad.dtype == dtype and one.grad.isfinite().all() for one in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", OURS)
def test_autocast_trains_and_is_near(kind, dtype):
    model = make(kind, layers=2, direction="both").float()
    x = inputs().detach().float()
    truth = model(x)[0]
    with torch.autocast("cpu", dtype):
        y, _ = model(x, lengths=torch.full((4,), 7))
    torch.testing.assert_close(y.float(), truth, rtol=5e-2, atol=2e-2)
    y.float().square().sum().backward()
    assert all(one.grad.dtype == torch.float32 and one.grad.any() for one in model.parameters())


def test_torchs_lstm_computes_in_its_weights_precision_under_autocast():
    """On a GPU autocast would give it float16, whatever type it is asked for."""
    model = make(LSTMTorch, layers=2).float()
    x, state = inputs().detach().float(), None
    truth, state = model(x)
    carried, _ = model(x, state)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x)[0], truth)
        assert torch.equal(model(x, state)[0], carried)
        y, _ = model(x.bfloat16(), tuple(one.bfloat16() for one in state))
    torch.testing.assert_close(y, carried, rtol=5e-2, atol=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_deepcopy_pickle_and_functional_call(kind):
    model = make(kind, layers=2, direction="both", projection=2)
    x = inputs().detach()
    y = model(x)[0]
    assert not list(model.buffers())
    assert torch.equal(copy.deepcopy(model)(x)[0], y)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x)[0], y)
    zeros = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    assert not functional_call(model, zeros, (x,))[0].any()


@pytest.mark.parametrize("options", [{"layers": 2}, {"layers": 2, "direction": "both", "projection": 2}])
@pytest.mark.parametrize("kind", OURS)
def test_vmap_over_stacked_parameters_equals_members_alone(kind, options):
    members = [kind(3, 5, **options) for _ in range(3)]
    parameters, _ = stack_module_state(members)
    x = inputs().detach().float()
    masks = {"lengths": torch.tensor([3, 7, 1, 6]), "resets": torch.rand(4, 7) < 0.3}

    def run(own):
        y, (h, c) = functional_call(members[0], own, (x,), masks)
        return y.square().sum() + h.sum() + c.sum()

    losses = torch.vmap(run)(parameters)
    losses.sum().backward()
    for number, member in enumerate(members):
        own = dict(member.named_parameters())
        loss = run(own)
        torch.testing.assert_close(losses[number], loss)
        gradients = torch.autograd.grad(loss, list(own.values()))
        for name, gradient in zip(own, gradients, strict=True):
            torch.testing.assert_close(parameters[name].grad[number], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), [(LSTM, {"layers": 2, "direction": "both"}), (LSTMScratch, {})])
def test_compile_without_graph_breaks(kind, options):
    model = make(kind, **options)
    x, masks = inputs(steps=3), {"lengths": torch.tensor([3, 3, 1, 2]), "resets": torch.zeros(4, 3, dtype=torch.bool)}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    leaves = [x, *model.parameters()]
    assert_same(compiled(x, **masks), model(x, **masks), leaves, leaves)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OURS)
def test_learns_to_count_steps_since_the_last_one(kind):
    torch.manual_seed(0)
    model, head = kind(1, 8), nn.Linear(8, 1)
    x = (torch.rand(16, 12, 1) < 0.2).float()
    y = torch.zeros(16, 12, 1)
    for t in range(1, 12):
        y[:, t] = torch.where(x[:, t] > 0, 0.0, y[:, t - 1] + 0.1)
    optimiser = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=0.02)
    losses = []
    for _ in range(60):
        loss = (head(model(x)[0]) - y).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize("kind", KINDS)
def test_open_forget_gates_raises_the_forget_bias_of_every_layer_and_direction_alone(kind):
    opened = make(kind, layers=2, direction="both")
    plain = copy.deepcopy(opened)
    open_forget_gates(opened, 1.5)
    for name, before in plain.state_dict().items():
        change = opened.state_dict()[name] - before
        expected = torch.zeros_like(before)
        if name.startswith("bias_ih"):
            expected[5:10] = 1.5
        torch.testing.assert_close(change, expected)
    open_forget_gates(kind(3, 5, 1, bias=False), 1.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", [(torch.zeros(1, 2, 5),), torch.zeros(1, 2, 5)], ids=["one", "tensor"])
def test_a_state_that_is_no_pair_is_refused(kind, state):
    with pytest.raises(TypeError, match=r"state must be a pair of tensors \(h, c\), got "):
        kind(3, 5, 1)(torch.randn(2, 4, 3), state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_another_dtype_is_taken(kind):
    state = (torch.randn(1, 2, 5).half(), torch.randn(1, 2, 5).half())
    layer, x = kind(3, 5, 1), torch.randn(2, 4, 3)
    y, _ = layer(x, state)
    torch.testing.assert_close(y, layer(x, (state[0].float(), state[1].float()))[0])
