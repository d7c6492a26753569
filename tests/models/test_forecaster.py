import copy
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn.utils import prune

from xlstm_tune.errors import BackendUnavailable, SpecError
from xlstm_tune.models.config import FAMILIES, ModelConfig
from xlstm_tune.models.forecaster import Shape, build_model, count_parameters

SHAPE = Shape(features=3, lookback=10, horizon=4, targets=2, target_columns=(2, 0))
REGRESSION = Shape(features=3, lookback=10, horizon=1, targets=1)


def config(family, **options):
    return ModelConfig(**{"family": family, "pattern": "ms", "hidden_size": 16, "heads": 2, **options})


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("norm", ["none", "last", "reversible"])
@pytest.mark.parametrize("family", FAMILIES)
def test_forecaster_shapes_in_both_precisions(family, norm, pooling):
    model = build_model(config(family, instance_norm=norm, pooling=pooling), SHAPE)
    x = torch.randn(5, 10, 3)
    y = model(x)
    assert y.shape == (5, 4, 2) and y.dtype == torch.float32 and torch.isfinite(y).all()
    torch.testing.assert_close(model.double()(x.double()).float(), y, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_gets_a_gradient(family):
    torch.manual_seed(0)
    model = build_model(config(family), SHAPE)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(8, 10, 3), torch.randn(8, 4, 2)
    for _ in range(2):  # zero-initialised weights (recurrence, gates) stop the gradients of others in the first pass
        optimiser.zero_grad()
        (model(x) - y).square().mean().backward()
        optimiser.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_forecaster_learns_a_tiny_problem(family):
    torch.manual_seed(1)
    model = build_model(config(family, layers=1, pattern="ms"), Shape(2, 8, 2, 1, (0,)))
    x = torch.randn(16, 8, 2)
    y = torch.stack([x[:, -1, 0] * x[:, -3, 1], x[:, :, 0].mean(1)], 1).unsqueeze(-1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(150):
        loss = (model(x) - y).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize("family", FAMILIES)
def test_first_forecast_is_near_the_mean_or_the_last_value(family):
    torch.manual_seed(0)
    x = torch.randn(32, 10, 3)
    assert build_model(config(family), SHAPE)(x).square().mean().sqrt() < 0.3
    last = x[:, -1:, [2, 0]]
    around_last = build_model(config(family, instance_norm="last"), SHAPE)(x) - last
    assert around_last.square().mean().sqrt() < 0.3


@pytest.mark.parametrize("norm", ["last", "reversible"])
def test_instance_norm_follows_the_level_of_the_window(norm):
    model = build_model(config("lstm", instance_norm=norm), SHAPE).double()
    x = torch.randn(4, 10, 3, dtype=torch.float64)
    level = torch.tensor([10.0, -3.0, 7.0], dtype=torch.float64)
    torch.testing.assert_close(model(x + level), model(x) + level[[2, 0]])


def test_reversible_norm_follows_the_spread_of_the_window():
    model = build_model(config("lstm", instance_norm="reversible"), SHAPE).double()
    x = torch.randn(4, 10, 3, dtype=torch.float64)
    torch.testing.assert_close(model(1000 * x), 1000 * model(x), rtol=1e-3, atol=1e-2)


def test_constant_window_is_finite():
    model = build_model(config("lstm", instance_norm="reversible"), SHAPE)
    x = torch.full((2, 10, 3), 5.0, requires_grad=True)
    y = model(x)
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()


def test_instance_norm_without_target_among_the_inputs_is_refused():
    with pytest.raises(SpecError, match=r"model\.instance_norm is 'last', but a regression .* set it to 'none'"):
        build_model(config("lstm", instance_norm="last"), REGRESSION)
    assert build_model(config("xlstm"), REGRESSION)(torch.randn(2, 10, 3)).shape == (2, 1, 1)


def test_last_pooling_sees_the_last_step_and_mean_pooling_all():
    x = torch.randn(2, 10, 3)
    for pooling, reduce in (("last", lambda h: h[:, -1]), ("mean", lambda h: h.mean(1))):
        model = build_model(config("mlstm", pooling=pooling), SHAPE)
        states, _ = model.body(model.embedding(x))
        torch.testing.assert_close(model(x), model.head(reduce(states)).view(2, 4, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_count_parameters_allocates_and_draws_nothing(family):
    expected = sum(parameter.numel() for parameter in build_model(config(family), SHAPE).parameters())
    assert count_parameters(config(family), SHAPE) == expected
    generator = torch.get_rng_state()
    assert count_parameters(config(family, hidden_size=8192, layers=4, heads=8), SHAPE) > 10**8
    assert torch.equal(torch.get_rng_state(), generator)


def test_same_seed_gives_the_same_model():
    def weights():
        torch.manual_seed(11)
        return build_model(config("xlstm"), SHAPE).state_dict()

    assert all(torch.equal(one, other) for one, other in zip(weights().values(), weights().values(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_forecaster_deepcopy_pickle_and_functional_call(family):
    model = build_model(config(family), SHAPE)
    x = torch.randn(2, 10, 3)
    y = model(x)
    assert not list(model.buffers())
    assert torch.equal(copy.deepcopy(model)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), y)
    zeros = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    assert not torch.func.functional_call(model, zeros, (x,)).any()


def test_wrong_input_says_what_was_wanted():
    model = build_model(config("xlstm"), SHAPE)
    with pytest.raises(ValueError, match=r"x must be \[B, T, F=3\], got \[2, 10, 4\]: axis 2 \(F\) is 4 and must be 3"):
        model(torch.zeros(2, 10, 4))
    with pytest.raises(ValueError, match="it has 2 axes and must have 3"):
        model(torch.zeros(10, 3))
    with pytest.raises(ValueError, match=r"axis 1 \(T\) is 0"):
        model(torch.zeros(2, 0, 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_input_of_another_dtype_than_the_weights_is_refused(family):
    model = build_model(config(family), replace(SHAPE, statics=2))
    x, static = torch.zeros(2, 10, 3), torch.zeros(2, 2)
    wanted = "must be torch.float32, as the weights are, got torch"
    with pytest.raises(ValueError, match=rf"forecaster: x {wanted}\.float64; x\.float\(\) makes it so"):
        model(x.double(), None, static)
    with pytest.raises(ValueError, match=rf"forecaster: x {wanted}\.int64"):
        model(x.long(), None, static)
    with pytest.raises(ValueError, match=rf"forecaster: static {wanted}\.float64; static\.float\(\) makes"):
        model(x, None, static.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x.bfloat16(), None, static).isfinite().all()
    with pytest.raises(ValueError, match=r"got torch.float32; x\.to\(torch\.bfloat16\) makes it so"):
        model.bfloat16()(x, None, static)


@pytest.mark.filterwarnings("ignore")
def test_an_lstm_can_be_quantised_for_serving():
    model = build_model(config("lstm", layers=1), Shape(3, 8, 2, 1, (0,))).eval()
    x = torch.randn(4, 8, 3)
    small = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    torch.testing.assert_close(small(x), model(x), rtol=0, atol=0.1)


@pytest.mark.parametrize("family", ["lstm", "slstm", "mlstm"])
def test_what_is_hung_on_the_embedding_is_called(family):
    """The xLSTM stacks read its weights and do not write it out, where nobody has changed what it does."""
    model = build_model(config(family, layers=1), Shape(3, 8, 2, 1, (0,)))
    x, seen = torch.randn(4, 8, 3), []
    plain = model(x)
    handle = model.embedding.register_forward_hook(lambda layer, given, made: seen.append(made.shape))
    torch.testing.assert_close(model(x), plain)
    assert seen == [(4, 8, model.embedding.out_features)]
    handle.remove()
    prune.l1_unstructured(model.embedding, "weight", amount=0.3)
    pruned = model(x)
    with torch.no_grad():
        model.embedding.weight_orig.mul_(3)
    assert not torch.allclose(model(x), pruned)
    for _ in range(2):
        model(x).sum().backward()


def test_shape_refuses_what_cannot_be():
    with pytest.raises(ValueError, match=r"Shape\.horizon must be at least 1, got 0"):
        Shape(3, 10, 0, 1)
    with pytest.raises(ValueError, match=r"one input column for each of 2 targets, got \(0,\)"):
        Shape(3, 10, 1, 2, (0,))
    with pytest.raises(ValueError, match=r"must lie in 0\.\.2 .*got 3"):
        Shape(3, 10, 1, 1, (3,))
    for quantiles in ((0.9, 0.5, 0.1), (0.1, 0.1), (0.0, 0.5), (0.5, 1.0), (0.5, float("nan"))):
        with pytest.raises(ValueError, match=r"Shape\.quantiles must lie between 0 and 1 and rise .*, got \("):
            Shape(3, 10, 1, 1, quantiles=quantiles)


def test_backend_is_described_and_an_explicit_one_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    described = build_model(config("xlstm"), SHAPE).describe_backend()
    assert "slstm: " in described and "mlstm: " in described
    assert build_model(config("lstm_torch"), SHAPE).describe_backend() == "lstm_torch: torch.nn.LSTM, in float32"
    assert build_model(config("lstm"), SHAPE).describe_backend().startswith("lstm: ")
    for family in ("xlstm", "mlstm", "slstm"):
        with pytest.raises(BackendUnavailable, match="'triton' was asked for"):
            build_model(config(family), SHAPE, backend="triton")(torch.zeros(2, 10, 3))


@pytest.mark.slow  # a process of its own
def test_count_parameters_does_not_go_through_torch_compile():
    """On torch's meta device each initialiser did, which imports its compiler for seconds to fill no memory."""
    program = """
import sys
from dataclasses import replace
from xlstm_tune.models.config import FAMILIES, ModelConfig
from xlstm_tune.models.forecaster import Shape, count_parameters
for family in FAMILIES:
    count_parameters(ModelConfig(family=family), Shape(1, 8, 1, 1))
print("torch._dynamo" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False"]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_none_gives_none(family, backend):
    """The last of a stream, or what a filter left."""
    for options, shape in (
        ({}, SHAPE),
        ({"channels": "independent", "patch_length": 4, "pooling": "attention"}, SHAPE),
        ({"pooling": "mean", "direction": "both"}, replace(REGRESSION, varying=True)),
    ):
        model = build_model(config(family, **options), shape, backend)
        lengths = torch.zeros(0, dtype=torch.int64) if shape.varying else None
        y = model(torch.zeros(0, 10, 3), lengths)
        assert y.shape == (0, shape.horizon, shape.targets)
        y.sum().backward()
