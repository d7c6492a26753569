from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from xlstm_tune.models.config import FAMILIES
from xlstm_tune.models.forecaster import Forecaster, Shape, build_model
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.losses import loss_of
from xlstm_tune.training.memory import estimate_memory, saved_bytes
from xlstm_tune.training.optimiser import build_optimiser

SHAPE = Shape(features=7, lookback=48, horizon=3, targets=2, target_columns=(0, 4))
MIB = 2**20
Maker = Callable[..., Any]


REGRESSION = Shape(features=5, lookback=48, horizon=1, targets=2, statics=3, varying=True)
OPTIONS: dict[str, tuple[Shape, dict[str, Any], dict[str, Any]]] = {
    "joint patches": (SHAPE, {"patch_length": 6, "patch_stride": 3, "pooling": "flatten"}, {}),
    "independent patches": (
        SHAPE,
        {"patch_length": 4, "channels": "independent", "instance_norm": "reversible", "pooling": "attention"},
        {"loss": "mae"},
    ),
    "trend": (SHAPE, {"decomposition": "trend", "instance_norm": "last"}, {"loss": "huber"}),
    "quantiles": (replace(SHAPE, horizon=24, quantiles=(0.1, 0.5, 0.9)), {"pooling": "mean"}, {"loss": "quantile"}),
    "both ways": (REGRESSION, {"direction": "both", "patch_length": 2}, {}),
    "sequences": (REGRESSION, {"pooling": "attention"}, {}),
    "patched sequences": (REGRESSION, {"pooling": "mean", "patch_length": 5}, {}),
}


def held_bytes(model: Forecaster, config: TrialConfig, shape: Shape) -> int:
    """What the allocator still holds after a forward pass whose graph is alive: inputs and activations."""
    batch = config.training.batch_size
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        x, y = torch.randn(batch, shape.lookback, shape.features), torch.randn(batch, shape.horizon, shape.targets)
        lengths = torch.full((batch,), shape.lookback) if shape.varying else None
        static = torch.randn(batch, shape.statics) if shape.statics else None
        loss = loss_of(config.training)(model(x, lengths, static, every_quantile=True), y)
    assert loss.requires_grad
    return sum(event.self_cpu_memory_usage for event in seen.key_averages())


@pytest.mark.parametrize("family", FAMILIES)
def test_estimate_memory_agrees_with_the_allocator(family: str, make_config: Maker) -> None:
    config = make_config(model={"family": family, "hidden_size": 32, "layers": 2, "dropout": 0.1}, batch_size=20)
    estimate = estimate_memory(config, SHAPE, "cpu")
    model = build_model(config.model, SHAPE).train()
    assert estimate.activations_mib == pytest.approx(held_bytes(model, config, SHAPE) / MIB, rel=0.15)


@pytest.mark.parametrize("samples", [20, 300])
def test_no_batch_is_counted_with_more_samples_than_there_are(samples: int, make_config: Maker) -> None:
    model = {"family": "slstm", "hidden_size": 8}
    whole = estimate_memory(make_config(model=model, batch_size=samples), SHAPE, "cpu")
    assert estimate_memory(make_config(model=model, batch_size=10**6), SHAPE, "cpu", samples) == whole


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_estimate_memory_of_every_option_agrees_with_the_allocator(
    family: str, option: str, make_config: Maker
) -> None:
    shape, options, training = OPTIONS[option]
    model = {"family": family, "hidden_size": 32, "layers": 2, "dropout": 0.1, **options}
    config = make_config(model=model, batch_size=20, **training)
    built = build_model(config.model, shape).train()
    estimate = estimate_memory(config, shape, "cpu")
    assert estimate.activations_mib == pytest.approx(held_bytes(built, config, shape) / MIB, rel=0.15)
    assert estimate.parameters == sum(parameter.numel() for parameter in built.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_estimate_memory_extrapolates_to_any_number_of_patches(family: str, make_config: Maker) -> None:
    model = {"family": family, "patch_length": 6, "patch_stride": 4, "pooling": "flatten", "decomposition": "trend"}
    shape = Shape(features=3, lookback=120, horizon=2, targets=1, target_columns=(0,))
    config = make_config(model=model, batch_size=2)
    measured = saved_bytes(build_model(config.model, shape), config, shape, 2)
    assert estimate_memory(config, shape, "cpu").activations_mib == pytest.approx(measured / MIB, rel=0.05)


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_estimate_memory_extrapolates_to_any_batch(batch: int, make_config: Maker) -> None:
    config = make_config(model={"family": "xlstm", "pattern": "sm", "hidden_size": 32}, batch_size=batch)
    measured = saved_bytes(build_model(config.model, SHAPE), config, SHAPE, batch)
    assert estimate_memory(config, SHAPE, "cpu").activations_mib == pytest.approx(measured / MIB, rel=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_estimate_memory_extrapolates_to_any_lookback(family: str, make_config: Maker) -> None:
    config = make_config(model={"family": family, "conv_kernel": 7, "pooling": "mean"}, batch_size=2)
    shape = Shape(features=3, lookback=90, horizon=2, targets=1)
    measured = saved_bytes(build_model(config.model, shape), config, shape, 2)
    assert estimate_memory(config, shape, "cpu").activations_mib == pytest.approx(measured / MIB, rel=0.05)


@pytest.mark.parametrize(("optimiser", "moments"), [("adamw", 2), ("adam", 2), ("sgd", 1)])
def test_estimate_memory_counts_what_the_optimiser_keeps(optimiser: str, moments: int, make_config: Maker) -> None:
    config = make_config(optimiser=optimiser)
    estimate = estimate_memory(config, SHAPE, "cpu")
    model = build_model(config.model, SHAPE)
    built = build_optimiser(model, config.training)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    built.step()
    kept = [
        value for values in built.state_dict()["state"].values() for name, value in values.items() if name != "step"
    ]
    assert estimate.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert estimate.optimiser_mib == pytest.approx(sum(value.nbytes for value in kept) / MIB)
    assert estimate.weights_mib == estimate.gradients_mib == pytest.approx(4 * estimate.parameters / MIB)
    parts = estimate.weights_mib + estimate.gradients_mib + estimate.optimiser_mib + estimate.activations_mib
    assert estimate.total_mib == pytest.approx(parts)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_estimate_memory_in_bf16_agrees_with_the_allocator(family: str, make_config: Maker) -> None:
    # Not simply half: the cells run in float32, so what enters them is kept in both.
    config = make_config(model={"family": family, "hidden_size": 32, "layers": 2}, batch_size=20, precision="bf16")
    estimate = estimate_memory(config, SHAPE, "cpu").activations_mib
    with torch.autocast("cpu", dtype=torch.bfloat16):
        held = held_bytes(build_model(config.model, SHAPE).train(), config, SHAPE) / MIB
    assert estimate == pytest.approx(held, rel=0.15)
    exact = replace(config, training=config.training.model_copy(update={"precision": "fp32"}))
    assert estimate != estimate_memory(exact, SHAPE, "cpu").activations_mib


def test_estimate_memory_leaves_the_generator_alone(make_config: Maker) -> None:
    config = make_config(model={"family": "xlstm", "pattern": "msm", "hidden_size": 128, "heads": 4}, batch_size=64)
    shape = Shape(features=19, lookback=365, horizon=1, targets=1)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    estimate_memory(config, shape, "cpu")
    assert torch.equal(torch.rand(1), expected)
