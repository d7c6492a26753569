import pytest
import torch
from torch import nn

from xlstm_tune.models.lstm import LSTM, LSTMScratch, LSTMTorch, open_forget_gates


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("warm", [False, True])
def test_scratch_equals_torch_in_outputs_states_and_gradients(layers, bias, warm):
    truth = nn.LSTM(3, 5, layers, bias=bias, batch_first=True).double()
    ours = LSTMScratch(3, 5, layers, bias).double()
    ours.load_state_dict(truth.state_dict())
    x = torch.randn(4, 7, 3, dtype=torch.float64, requires_grad=True)
    state = (torch.randn(layers, 4, 5).double(), torch.randn(layers, 4, 5).double()) if warm else None
    (mine, mine_final), (true, true_final) = ours(x, state), truth(x, state)
    for one, other in zip((mine, *mine_final), (true, *true_final), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    mine_gradients = torch.autograd.grad(mine.square().sum(), [x, *ours.parameters()])
    true_gradients = torch.autograd.grad(true.square().sum(), [x, *truth.parameters()])
    for one, other in zip(mine_gradients, true_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_state_dicts_convert_both_ways():
    torchs, scratch, wrapper = nn.LSTM(3, 5, 2), LSTMScratch(3, 5, 2), LSTM(3, 5, 2)
    assert list(scratch.state_dict()) == list(torchs.state_dict()) == list(wrapper.state_dict())
    torchs.load_state_dict(scratch.state_dict())
    wrapper.load_state_dict(torchs.state_dict())
    x = torch.randn(2, 6, 3)
    torch.testing.assert_close(wrapper(x)[0], scratch(x)[0], rtol=1e-5, atol=1e-6)


def test_scratch_initial_values_are_torchs():
    torch.manual_seed(3)
    truth = nn.LSTM(3, 16, 2)
    torch.manual_seed(3)
    ours = LSTMScratch(3, 16, 2)
    for (name, one), other in zip(ours.named_parameters(), truth.parameters(), strict=True):
        assert one.shape == other.shape, name
        assert one.abs().max() <= 0.25 and abs(one.std() - 0.25 / 3**0.5) < 0.05, name


@pytest.mark.parametrize("kind", [LSTM, LSTMScratch, LSTMTorch])
def test_dropout_stands_between_layers_only(kind, recwarn):
    x = torch.randn(2, 6, 3)
    one = kind(3, 5, 1, dropout=0.5)
    assert torch.equal(one(x)[0], one(x)[0])
    two = kind(3, 5, 2, dropout=0.5)
    assert not torch.equal(two(x)[0], two(x)[0])
    two.eval()
    assert torch.equal(two(x)[0], two(x)[0])
    assert not recwarn.list


@pytest.mark.parametrize("kind", [LSTM, LSTMScratch, LSTMTorch])
def test_cut_sequence_gives_the_same(kind):
    model = kind(3, 5, 2).double()
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    whole, final = model(x)
    first, middle = model(x[:, :4])
    second, last = model(x[:, 4:], middle)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(last, final)


@pytest.mark.parametrize("kind", [LSTM, LSTMScratch, LSTMTorch])
def test_wrong_shapes_say_what_was_wanted(kind):
    model = kind(3, 5, 2)
    with pytest.raises(ValueError, match=r"lstm: x must be \[B, T, F=3\], got \[2, 6, 4\]: axis 2 \(F\) is 4"):
        model(torch.zeros(2, 6, 4))
    with pytest.raises(ValueError, match="it has 2 axes and must have 3"):
        model(torch.zeros(6, 3))
    with pytest.raises(ValueError, match=r"state h must be \[L=2, B=2, D=5\]"):
        model(torch.zeros(2, 6, 3), (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5)))


def test_scratch_trains_at_the_size_people_use():
    model = LSTMScratch(64, 64, 1)
    x = torch.randn(64, 90, 64)
    model(x)[0].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", [LSTM, LSTMScratch, LSTMTorch])
def test_open_forget_gates_raises_the_forget_bias_of_every_layer_alone(kind):
    plain, opened = kind(3, 5, 2), kind(3, 5, 2)
    opened.load_state_dict(plain.state_dict())
    open_forget_gates(opened, 1.5)
    for name, before in plain.state_dict().items():
        change = opened.state_dict()[name] - before
        expected = torch.zeros_like(before)
        if name.startswith("bias_ih"):
            expected[5:10] = 1.5
        torch.testing.assert_close(change, expected)
    open_forget_gates(kind(3, 5, 1, bias=False), 1.5)
