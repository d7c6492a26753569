"""States, resets, lengths and directions of every xLSTM layer: a batch is what its pieces are, each run alone."""

import itertools

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from xlstm_tune.models.block import BothWays, Reversed
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.models.conv import CausalConv
from xlstm_tune.models.mlstm import MLSTMLayer
from xlstm_tune.models.slstm import SLSTMLayer
from xlstm_tune.models.stack import XLSTMStack

WIDTH, STEPS = 8, 9


def slstm(kernel=4):
    return SLSTMLayer(WIDTH, heads=2, conv_kernel=kernel)


def mlstm(kernel=4):
    return MLSTMLayer(WIDTH, inner=16, heads=2, conv_kernel=kernel)


def stack(pattern, **options):
    return XLSTMStack(ModelConfig(pattern=pattern, hidden_size=WIDTH, heads=2, **options))


FORTH = {
    "conv": lambda: CausalConv(WIDTH, 4),
    "conv of 1": lambda: CausalConv(WIDTH, 1),
    "slstm": slstm,
    "slstm without conv": lambda: slstm(0),
    "mlstm": mlstm,
    "mlstm without conv": lambda: mlstm(0),
    "stack ms": lambda: stack("ms"),
    "stack sm, rms, plain": lambda: stack("sm", norm="rms", feed_forward="plain", ff_after="all", head_norm=False),
}
BACK = {
    "reversed slstm": lambda: Reversed(slstm()),
    "reversed mlstm": lambda: Reversed(mlstm()),
    "reversed stack": lambda: stack("ms", direction="reverse"),
}
BOTH = {
    "slstm both ways": lambda: BothWays(slstm(), slstm()),
    "mlstm both ways": lambda: BothWays(mlstm(), mlstm()),
}


def shaken(make):
    torch.manual_seed(3)
    module = make().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


def data(batch=4, steps=STEPS):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, steps, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()


def rows(state, samples):
    """These samples of a state."""
    return tree_map(lambda tensor: tensor[samples], state)


def warm_state(layer):
    """A state of four samples that differ, and that carries gradients to what made it."""
    return layer(data().detach().flip(0) * 0.7)[1]


def assert_same(layer, x, one, other):
    """Outputs, states, and the gradients of a random sum of both with respect to inputs and weights."""
    torch.testing.assert_close(one[0], other[0])
    for left, right in zip(tree_leaves(one[1]), tree_leaves(other[1]), strict=True):
        torch.testing.assert_close(left, right)
    inputs = [x, *layer.parameters()]
    grads = []
    for y, state in (one, other):
        generator = torch.Generator().manual_seed(11)
        leaves = [y, *(leaf for leaf in tree_leaves(state) if leaf.numel() and leaf.isfinite().all())]
        upstream = [torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for leaf in leaves]
        total = sum((leaf * weight).sum() for leaf, weight in zip(leaves, upstream, strict=True))
        grads.append(torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True, retain_graph=True))
    for left, right in zip(*grads, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("cuts", [[1, 8], [4, 5], [8, 1], [2, 1, 3, 3], [1] * 9], ids=str)
@pytest.mark.parametrize("name", FORTH)
def test_sequence_cut_anywhere_gives_the_same(name, cuts):
    layer, x = shaken(FORTH[name]), data()
    start = warm_state(layer)
    state, outputs = start, []
    for piece in x.split(cuts, 1):
        y, state = layer(piece, state)
        outputs.append(y)
    assert_same(layer, x, (torch.cat(outputs, 1), state), layer(x, start))


@pytest.mark.parametrize("cuts", [[1, 8], [4, 5], [2, 1, 3, 3]], ids=str)
@pytest.mark.parametrize("name", BACK)
def test_reverse_direction_runs_its_pieces_from_the_last(name, cuts):
    layer, x = shaken(BACK[name]), data()
    start = warm_state(layer)
    state, outputs = start, []
    for piece in reversed(x.split(cuts, 1)):
        y, state = layer(piece, state)
        outputs.insert(0, y)
    assert_same(layer, x, (torch.cat(outputs, 1), state), layer(x, start))


def each_alone(layer, x, state, resets, lengths, back):
    """The same by running every stretch between resets of every sample by itself."""
    outputs, finals = [], []
    for sample in range(len(x)):
        end = int(lengths[sample]) if lengths is not None else x.shape[1]
        cuts = [t for t in range(end) if t and resets is not None and resets[sample, t]]
        edges = [0, *cuts, end]
        stretches = [x[sample : sample + 1, a:b] for a, b in itertools.pairwise(edges)]
        # The state of the batch is that of the first stretch, unless it starts anew, or of the last if time runs back.
        own = rows(state, slice(sample, sample + 1)) if state is not None else None
        anew = resets is not None and bool(resets[sample, 0])
        entered = len(stretches) - 1 if back else 0
        starts = [own if at == entered and (back or not anew) else None for at in range(len(stretches))]
        results = [layer(stretch, start) for stretch, start in zip(stretches, starts, strict=True)]
        final = results[0 if back else -1][1]
        if back and anew:
            final = tree_map(lambda t: torch.full_like(t, -torch.inf) if t.dim() == 2 else torch.zeros_like(t), final)
        outputs.append(torch.cat([y for y, _ in results] + [x.new_zeros(1, x.shape[1] - end, WIDTH)], 1))
        finals.append(final)
    return torch.cat(outputs), tree_map(lambda *tensors: torch.cat(tensors), *finals)


RESETS = torch.zeros(4, STEPS, dtype=torch.bool)
RESETS[0, [0, 5]] = True
RESETS[1, [1, 2, 6]] = True
RESETS[2, 8] = True
LENGTHS = torch.tensor([9, 1, 7, 2])


def check_alone(make, back, resets, lengths, warm):
    layer, x = shaken(make), data()
    start = warm_state(layer) if warm else None
    truth = each_alone(layer, x, start, resets, lengths, back)
    batch = layer(x, start, resets=resets, lengths=lengths)
    if isinstance(layer, CausalConv):
        pad = torch.arange(STEPS) >= (STEPS if lengths is None else lengths[:, None])
        batch = (batch[0].masked_fill(pad[..., None], 0.0) if lengths is not None else batch[0], batch[1])
    assert_same(layer, x, batch, truth)


@pytest.mark.slow
@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "warm"])
@pytest.mark.parametrize("name", {**FORTH, **BACK})
def test_reset_starts_a_sample_anew(name, warm):
    check_alone({**FORTH, **BACK}[name], name in BACK, RESETS, None, warm)


@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "warm"])
@pytest.mark.parametrize("name", {**FORTH, **BACK})
def test_padded_sample_is_as_alone(name, warm):
    check_alone({**FORTH, **BACK}[name], name in BACK, None, LENGTHS, warm)


@pytest.mark.parametrize("name", {**FORTH, **BACK})
def test_resets_and_lengths_together(name):
    check_alone({**FORTH, **BACK}[name], name in BACK, RESETS, LENGTHS, warm=True)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("resets", [None, RESETS], ids=["", "resets"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["", "lengths"])
def test_both_ways_is_the_sum_of_its_directions(name, resets, lengths):
    layer, x = shaken(BOTH[name]), data()
    start = warm_state(layer)
    y, (left, right) = layer(x, start, resets=resets, lengths=lengths)
    forth = each_alone(layer.forth, x, start[0], resets, lengths, back=False)
    back = each_alone(layer.back, x, start[1], resets, lengths, back=True)
    assert_same(layer, x, (y, (left, right)), (forth[0] + back[0], (forth[1], back[1])))


def test_stack_both_ways_sees_the_whole_sequence():
    layer, x = shaken(lambda: stack("ms", direction="both")), data(1)
    y, _ = layer(x)
    for t in (0, STEPS - 1):
        (grad,) = torch.autograd.grad(y[0, t].square().sum(), x, retain_graph=True)
        assert (grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("name", [name for name in {**FORTH, **BACK, **BOTH} if name not in ("conv", "conv of 1")])
def test_padding_counts_for_nothing_even_if_it_is_nan(name):
    layer, x = shaken({**FORTH, **BACK, **BOTH}[name]), data()
    pad = torch.arange(STEPS) >= LENGTHS[:, None]
    spoilt = x.detach().masked_fill(pad[..., None], torch.nan).requires_grad_()
    y, state = layer(spoilt, lengths=LENGTHS)
    truth, other = layer(x, lengths=LENGTHS)
    assert torch.equal(y, truth) and not y[pad].any()
    for one, two in zip(tree_leaves(state), tree_leaves(other), strict=True):
        assert torch.equal(one, two)
    y[~pad].square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    assert not spoilt.grad[pad].any() and spoilt.grad[~pad].any()


@pytest.mark.parametrize("name", {**FORTH, **BACK, **BOTH})
def test_wrong_resets_lengths_and_states_are_refused(name):
    layer, x = {**FORTH, **BACK, **BOTH}[name]().double(), data().detach()
    with pytest.raises(ValueError, match=r"resets must be \[B=4, T=9\], got \[4, 8\]: axis 1 \(T\) is 8 and must be 9"):
        layer(x, resets=RESETS[:, :8])
    with pytest.raises(ValueError, match="resets must be boolean"):
        layer(x, resets=RESETS.long())
    with pytest.raises(ValueError, match=r"lengths must be \[B=4\], got \[3\]: axis 0 \(B\) is 3 and must be 4"):
        layer(x, lengths=LENGTHS[:3])
    with pytest.raises(ValueError, match="lengths must be integers"):
        layer(x, lengths=LENGTHS.double())
    with pytest.raises(ValueError, match=r"lengths must lie in 1\.\.9 \(the steps\), got 10"):
        layer(x, lengths=LENGTHS + 1)
    if name != "conv of 1":  # whose state is empty for any batch
        _, state = layer(x[:3])
        with pytest.raises(ValueError, match=r"axis 0 \(B\) is 3 and must be 4"):
            layer(x, state)
