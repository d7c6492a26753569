"""Each option of the forecaster does what its key says; the rest of the model goes on working with it."""

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from xlstm_tune.errors import SpecError
from xlstm_tune.models.config import FAMILIES, ModelConfig
from xlstm_tune.models.forecaster import Forecaster, Shape, build_model, count_parameters

SHAPE = Shape(features=3, lookback=12, horizon=4, targets=2, target_columns=(2, 0))
VARYING = Shape(features=3, lookback=12, horizon=1, targets=2, statics=2, varying=True)
OPTIONS: dict[str, dict[str, Any]] = {
    "patches": {"patch_length": 4},
    "independent": {"channels": "independent", "instance_norm": "reversible"},
    "trend": {"decomposition": "trend", "trend_kernel": 5, "instance_norm": "last"},
    "attention": {"pooling": "attention"},
    "flatten": {"pooling": "flatten"},
    "all": {
        "patch_length": 5, "patch_stride": 3, "channels": "independent", "decomposition": "trend", "trend_kernel": 3,
        "pooling": "flatten", "instance_norm": "reversible",
    },
}  # fmt: skip


class Operators(TorchDispatchMode):
    """The names of all operators that run meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def config(family: str = "xlstm", **options: Any) -> ModelConfig:
    return ModelConfig(**{"family": family, "pattern": "ms", "hidden_size": 16, "heads": 2, **options})


def shaken(model: Forecaster) -> Forecaster:
    """Every weight away from its first value: zeros hide what a part does."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_option_keeps_shapes_precision_copies_and_functional_calls(family: str, option: str) -> None:
    torch.manual_seed(0)
    model = shaken(build_model(config(family, **OPTIONS[option]), SHAPE)).double()
    x = torch.randn(5, 12, 3, dtype=torch.float64)
    y = model(x)
    assert y.shape == (5, 4, 2) and y.dtype == torch.float64
    torch.testing.assert_close(copy.deepcopy(model).float()(x.float()).double(), y, rtol=1e-3, atol=1e-4)
    assert torch.equal(copy.deepcopy(model)(x), y) and torch.equal(pickle.loads(pickle.dumps(model))(x), y)
    assert not list(model.buffers())
    weights = dict(model.named_parameters())
    torch.testing.assert_close(torch.func.functional_call(model, weights, (x,)), y)
    assert count_parameters(model.config, SHAPE) == sum(weight.numel() for weight in weights.values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.float()(x.float())
    torch.testing.assert_close(half.double(), y, rtol=0.1, atol=0.1 * y.abs().max().item())


@pytest.mark.parametrize("option", OPTIONS)
def test_option_works_on_stacked_members(option: str) -> None:
    torch.manual_seed(0)
    members = [shaken(build_model(config("mlstm", **OPTIONS[option]), SHAPE)) for _ in range(3)]
    weights, _ = torch.func.stack_module_state(members)
    x = torch.randn(4, 12, 3)
    together = torch.func.vmap(lambda own: torch.func.functional_call(members[0], own, (x,)))(weights)
    torch.testing.assert_close(together, torch.stack([member(x) for member in members]), rtol=1e-4, atol=1e-5)


def test_patches_shorten_what_the_body_runs() -> None:
    seen = []
    model = build_model(config("lstm", patch_length=4, patch_stride=2), SHAPE)
    model.embedding.register_forward_hook(lambda _, __, tokens: seen.append(tokens.shape))
    model(torch.randn(5, 12, 3))
    assert seen == [(5, 5, 16)]
    assert model.embedding.in_features == 4 * 3


@pytest.mark.parametrize("length", [2, 5, 7])
def test_patches_see_the_newest_step(length: int) -> None:
    model = shaken(build_model(config("lstm", patch_length=length, patch_stride=length), SHAPE))
    x = torch.randn(2, 12, 3, requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None and (x.grad != 0).all()


def test_independent_channels_see_their_own_history_and_the_other_inputs() -> None:
    model = shaken(build_model(config(channels="independent"), SHAPE))
    x = torch.randn(2, 12, 3)
    y = model(x)
    for target, column in enumerate(SHAPE.target_columns):
        moved = x.clone()
        moved[..., column] += 1
        change = (model(moved) - y).abs().amax((0, 1))
        assert change[target] > 1e-4 and change[1 - target] == 0
    moved = x.clone()
    moved[..., 1] += 1  # a covariate
    assert ((model(moved) - y).abs().amax((0, 1)) > 1e-4).all()


def test_independent_channels_share_one_model() -> None:
    model = shaken(build_model(config(channels="independent"), SHAPE))
    x = torch.randn(2, 12, 3)
    torch.testing.assert_close(model(x[..., [2, 1, 0]]), model(x).flip(-1))
    assert sum(p.numel() for p in model.parameters()) < count_parameters(config(), SHAPE)


def test_joint_channels_see_each_other() -> None:
    model = shaken(build_model(config(), SHAPE))
    x = torch.randn(2, 12, 3)
    moved = x.clone()
    moved[..., 2] += 1
    assert ((model(moved) - model(x)).abs().amax((0, 1)) > 1e-4).all()


@pytest.mark.parametrize("family", ["slstm", "lstm", "lstm_torch", "lstm_scratch"])
def test_last_state_of_each_direction_has_seen_every_step(family: str) -> None:
    x = torch.randn(2, 12, 3, requires_grad=True)
    for direction in ("forward", "reverse", "both"):
        model = shaken(build_model(config(family, direction=direction, conv_kernel=0), SHAPE))
        (gradient,) = torch.autograd.grad(model(x).square().sum(), x)
        assert (gradient != 0).all(), direction


@pytest.mark.parametrize("family", ["lstm", "lstm_torch", "lstm_scratch"])
def test_projection_and_direction_of_an_lstm_decide_what_the_head_sees(family: str) -> None:
    for options, width in (({"projection": 5}, 5), ({"direction": "both"}, 32), ({"direction": "reverse"}, 16)):
        model = build_model(config(family, **options), SHAPE)
        assert model.head.in_features == width == model.body.output_size
        assert model(torch.randn(2, 12, 3)).shape == (2, 4, 2)
    with pytest.raises(SpecError, match=r"model\.projection must be smaller than model\.hidden_size \(16\).*got 16"):
        ModelConfig.parse({"family": family, "hidden_size": 16, "projection": 16}, "model")


def test_backend_of_an_lstm_is_the_one_that_runs_it() -> None:
    for projection in (0, 5):
        model = build_model(config("lstm", projection=projection), SHAPE)
        with Operators() as seen:
            model(torch.randn(2, 12, 3))
        said = model.describe_backend().split()
        assert {name for name in seen.names if name.startswith("xlstm_tune")} == {f"xlstm_tune.lstm_{said[1]}.default"}


@pytest.mark.parametrize("family", ["lstm", "lstm_torch", "lstm_scratch"])
def test_last_state_of_a_bidirectional_lstm_is_both_final_states(family: str) -> None:
    model = build_model(config(family, direction="both", projection=5), SHAPE)
    x = torch.randn(2, 12, 3)
    _, (final, _) = model.body(model.embedding(x))  # [L · directions, B, P]
    assert model.pooling.width == 10
    torch.testing.assert_close(model(x), model.head(torch.cat([*final[-2:]], -1)).view(2, 4, 2))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("patch", [0, 3])
@pytest.mark.parametrize("direction", ["forward", "reverse", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_result_is_independent_of_the_padding(family: str, direction: str, patch: int, pooling: str) -> None:
    torch.manual_seed(0)
    made = config(family, patch_length=patch, pooling=pooling, direction=direction)
    model = shaken(build_model(made, VARYING)).double()
    lengths = torch.tensor([12, 1, 7, 3])
    x, static = torch.randn(4, 12, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    for sample, steps in enumerate(lengths.tolist()):
        x[sample, steps:] = torch.nan
    y = model(x, lengths, static)
    for sample, steps in enumerate(lengths.tolist()):
        one = slice(sample, sample + 1)
        torch.testing.assert_close(model(x[one, :steps], None, static[one]), y[one], rtol=1e-6, atol=1e-8)
    y.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("channels", ["joint", "independent"])
@pytest.mark.parametrize("norm", ["last", "reversible"])
def test_instance_norm_knows_lengths(norm: str, channels: str) -> None:
    model = shaken(build_model(config("slstm", instance_norm=norm, channels=channels), SHAPE)).double()
    x, lengths = torch.randn(3, 12, 3, dtype=torch.float64), torch.tensor([5, 12, 1])
    y = model(x, lengths)
    for sample, steps in enumerate(lengths.tolist()):
        torch.testing.assert_close(model(x[sample : sample + 1, :steps]), y[sample : sample + 1], rtol=1e-6, atol=1e-8)


def test_static_inputs_join_what_the_head_sees_and_start_without_an_effect() -> None:
    model = build_model(config(), VARYING)
    x, static = torch.randn(6, 12, 3), torch.randn(6, 2)
    assert torch.equal(model(x, None, static), model(x, None, torch.zeros(6, 2)))
    torch.nn.init.normal_(model.static.up.weight)
    pooled = model.pooling(model.body(model.embedding(x))[0])
    inner = torch.nn.functional.gelu(
        torch.cat([pooled, static], 1) @ model.static.down.weight.T + model.static.down.bias
    )
    expected = model.head(pooled + inner @ model.static.up.weight.T).view(6, 1, 2)
    torch.testing.assert_close(model(x, None, static), expected)


@pytest.mark.slow
def test_static_inputs_learn_a_product_that_the_model_without_them_cannot() -> None:
    losses = []
    for statics in (0, 1):
        torch.manual_seed(1)
        model = build_model(config("lstm", pooling="mean"), Shape(1, 6, 1, 1, statics=statics))
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(200):
            x, static = torch.randn(64, 6, 1), torch.randn(64, 1)  # new ones each time: nothing can be learnt by heart
            y = (static * x.mean(1)).unsqueeze(1)
            loss = (model(x, None, static if statics else None) - y).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses.append(loss.item())
    assert losses[1] < losses[0] / 10


def test_quantiles_rise_and_the_forecast_is_the_one_nearest_to_the_median() -> None:
    shape = Shape(3, 12, 4, 2, (2, 0), quantiles=(0.05, 0.2, 0.45, 0.9))
    for channels in ("joint", "independent"):
        model = shaken(build_model(config(channels=channels, instance_norm="reversible", decomposition="trend"), shape))
        x = torch.randn(5, 12, 3)
        every = model(x, every_quantile=True)
        assert every.shape == (5, 4, 2, 4) and (every.diff(dim=-1) >= 0).all() and every.diff(dim=-1).any()
        assert torch.equal(model(x), every[..., 2])
    point = build_model(config(), SHAPE)
    assert torch.equal(point(x, every_quantile=True), point(x).unsqueeze(-1))


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"patch_length": 13}, SHAPE, r"model\.patch_length must be at most the lookback of 12 steps, got 13; use"),
        ({"pooling": "flatten"}, VARYING, r"model\.pooling is 'flatten', but the sequences differ in length; use"),
        ({"channels": "independent"}, VARYING, r"'independent', but a regression has no target .* set it to 'joint'"),
        ({"decomposition": "trend"}, VARYING, r"model\.decomposition is 'trend', but a regression .* 'none'"),
        ({"instance_norm": "last"}, VARYING, r"model\.instance_norm is 'last', but a regression .* 'none'"),
    ],
)
def test_model_that_cannot_serve_the_problem_is_refused(options: dict[str, Any], shape: Shape, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build_model(config(**options), shape)


def test_patch_length_1_is_no_patch() -> None:
    assert config(patch_length=1, patch_stride=5).relevant() == config().relevant()
    assert count_parameters(config(patch_length=1), SHAPE) == count_parameters(config(), SHAPE)


def test_relevant_keys_are_those_that_change_the_model() -> None:
    assert "trend_kernel" not in config(trend_kernel=5).relevant()
    assert config(decomposition="trend", trend_kernel=5).relevant()["trend_kernel"] == 5
    assert config(patch_length=16).relevant() == config(patch_length=16, patch_stride=8).relevant()
    assert config(patch_stride=3).relevant() == config().relevant()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_length": 4, "patch_stride": 5}, r"model\.patch_stride must be at most model\.patch_length.*5 and 4"),
        ({"trend_kernel": 24}, r"model\.trend_kernel must be odd, got 24"),
    ],
)
def test_config_that_is_no_model_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ModelConfig.parse(options, "model")


def test_wrong_input_says_what_was_wanted() -> None:
    plain, static = build_model(config(), SHAPE), build_model(config(), VARYING)
    fixed = build_model(config(pooling="flatten"), SHAPE)
    x = torch.zeros(2, 12, 3)
    with pytest.raises(ValueError, match=r"lengths must be \[B=2\], got \[3\]: axis 0 \(B\) is 3 and must be 2"):
        plain(x, torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"static must be None, got \[2, 2\]"):
        plain(x, None, torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"static must be \[B, S=2\], got None"):
        static(x)
    with pytest.raises(ValueError, match=r"static must be \[B=2, S=2\], got \[2, 3\]"):
        static(x, None, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"x must be \[B, T=12, F=3\], got \[2, 11, 3\]: axis 1 \(T\) is 11"):
        fixed(x[:, :11])
    with pytest.raises(ValueError, match="lengths must be None with pooling 'flatten'"):
        fixed(x, torch.tensor([12, 12]))


@pytest.mark.parametrize("options", [{"instance_norm": "last"}, {"patch_length": 4}], ids=str)
def test_lengths_may_be_any_integers_in_reach(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = build_model(config(**options), replace(SHAPE, varying=True)), torch.randn(2, 12, 3)
    for lengths, got in (([0, 4], 0), ([13, 4], 13), ([-1, 4], -1)):
        with pytest.raises(ValueError, match=rf"forecaster: lengths must lie in 1\.\.12 \(the steps\), got {got}"):
            model(x, torch.tensor(lengths))
    with pytest.raises(ValueError, match=r"forecaster: lengths must be integers, .*, got torch.float32"):
        model(x, torch.tensor([5.0, 4.0]))
    wanted = model(x, torch.tensor([5, 12]))
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(model(x, torch.tensor([5, 12], dtype=dtype)), wanted)


@pytest.mark.parametrize("channels", ["joint", "independent"])
def test_forecasts_end_at_the_floor_of_each_target_but_not_in_training(channels):
    torch.manual_seed(0)
    free = build_model(config("lstm", channels=channels), SHAPE)
    with torch.no_grad():
        free.head.bias.normal_()
    held = build_model(config("lstm", channels=channels), replace(SHAPE, floor=(0.2, -0.1)))
    held.load_state_dict(free.state_dict())  # the floor is no weight
    x = torch.randn(50, 12, 3)
    assert torch.equal(held(x), free(x)) and (held(x) < -0.1).any()
    held.eval(), free.eval()
    assert torch.equal(held(x), free(x).maximum(torch.tensor([0.2, -0.1])))
    x[0] = -torch.inf
    assert not held(x)[0].isfinite().any(), "what has diverged is not hidden"
    assert (held(x[1:])[..., 0] >= 0.2).all() and (held(x[1:])[..., 1] == -0.1).any()
    with pytest.raises(ValueError, match=r"Shape.floor must have a number for each of 2 targets, got \(0.2,\)"):
        replace(SHAPE, floor=(0.2,))
