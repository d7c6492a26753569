"""Every weight of every model is trained: held by the optimiser, reached by a gradient that is finite and not zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_tune.data.windows import Prepared
from xlstm_tune.models.config import FAMILIES
from xlstm_tune.models.forecaster import Forecaster, Shape, build_model
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.loop import EXPLODED, Diverged, begin, train
from xlstm_tune.training.losses import loss_of
from xlstm_tune.training.optimiser import build_optimiser, clip_gradients

Maker = Callable[..., Any]
FORECAST = Shape(features=3, lookback=12, horizon=4, targets=2, target_columns=(2, 0))
REGRESSION = Shape(features=3, lookback=12, horizon=1, targets=2, statics=2, varying=True)
OPTIONS: dict[str, tuple[Shape, dict[str, Any], dict[str, Any]]] = {
    "plain": (FORECAST, {}, {}),
    "patched": (FORECAST, {"patch_length": 4, "pooling": "flatten", "instance_norm": "reversible"}, {"loss": "mae"}),
    "independent": (FORECAST, {"channels": "independent", "decomposition": "trend", "instance_norm": "last"}, {}),
    "both ways": (REGRESSION, {"direction": "both"}, {}),
    "sequences": (REGRESSION, {"pooling": "attention"}, {"loss": "huber"}),
    "quantiles": (FORECAST, {"pooling": "mean"}, {"loss": "quantile"}),
}


def problem(shape: Shape) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Eight samples: x, y, lengths, static."""
    lengths = torch.tensor([12, 3, 7, 12, 1, 9, 5, 12]) if shape.varying else None
    static = torch.randn(8, shape.statics) if shape.statics else None
    return torch.randn(8, 12, 3), torch.randn(8, shape.horizon, shape.targets), lengths, static


def backward(model: Forecaster, config: TrialConfig, given: tuple[Any, ...]) -> None:
    x, y, lengths, static = given
    loss = loss_of(config.training)(model(x, lengths, static, every_quantile=True), y)
    for parameter in model.parameters():
        parameter.grad = None
    loss.backward()  # type: ignore[no-untyped-call]


def made(option: str, family: str, make_config: Maker) -> tuple[Forecaster, TrialConfig, tuple[Any, ...]]:
    torch.manual_seed(0)
    shape, options, training = OPTIONS[option]
    config = make_config(model={"family": family, "layers": 2, "pattern": "msm", **options}, **training)
    model = build_model(config.model, replace(shape, quantiles=config.training.levels))
    return model, config, problem(shape)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_trained(option: str, family: str, make_config: Maker) -> None:
    model, config, given = made(option, family, make_config)
    optimiser = build_optimiser(model, config.training)
    held = [id(parameter) for group in optimiser.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    # What starts at zero (recurrent weights, gates, static gains) hides what lies behind it from the first gradient, so
    # one step is taken first; what it leaves without a gradient will never be trained.
    backward(model, config, given)
    optimiser.step()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    backward(model, config, given)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} takes no part in the forecast"
        assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), name
    optimiser.step()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), f"{name} did not move"


@pytest.mark.parametrize("family", FAMILIES)
def test_clipping_bounds_the_gradient_of_every_family_and_keeps_its_direction(family: str, make_config: Maker) -> None:
    model, config, given = made("plain", family, make_config)
    backward(model, config, given)
    whole = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    norm = clip_gradients(list(model.parameters()), 1e-3)
    clipped = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert norm.item() == pytest.approx(whole.norm().item(), rel=1e-5) and norm > 1e-3
    torch.testing.assert_close(clipped, whole * (1e-3 / norm), rtol=1e-3, atol=1e-9)


def first_step(data: Prepared, config: TrialConfig) -> Tensor:
    """How far one step of plain descent moves all weights together."""
    before = torch.cat([parameter.detach().flatten() for parameter in begin(config, data).model.parameters()])
    state = next(iter(train(config, data, device="cpu"))).state
    return torch.cat([parameter.detach().flatten() for parameter in state.model.parameters()]) - before


def test_train_clips_what_it_steps_along(make_forecast: Maker, make_config: Maker) -> None:
    data = make_forecast(scale=100.0)
    settings = {"optimiser": "sgd", "schedule": "constant", "warmup": 0.0, "weight_decay": 0.0, "epochs": 1}
    steps = [
        first_step(data, make_config(clip=clip, learning_rate=1e-3, batch_size=1000, **settings)).norm().item()
        for clip in (0.0, 0.5, 1.0)
    ]
    assert steps[1] == pytest.approx(1e-3 * 0.5, rel=1e-3) and steps[2] == pytest.approx(1e-3, rel=1e-3)
    assert steps[0] > 5 * steps[2]


def test_train_whose_loss_explodes_but_stays_finite_diverges(make_forecast: Maker, make_config: Maker) -> None:
    # Clipped steps in the thousands: the weights, and so the forecasts, run away without ever being infinite.
    config = make_config(optimiser="sgd", learning_rate=10.0, clip=1e4, epochs=30, schedule="constant", warmup=0.0)
    with pytest.raises(Diverged) as caught:
        list(train(config, make_forecast(), device="cpu"))
    words = str(caught.value)
    assert "the loss grew from" in words and "learning rate 10" in words
    small, large = (float(word) for word in words.split("grew from ")[1].split(" in ")[0].split(" to "))
    assert math.isfinite(large) and large > EXPLODED * max(small, 1.0)
