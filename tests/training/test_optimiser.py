from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from xlstm_tune.training.config import TrainingConfig
from xlstm_tune.training.optimiser import build_optimiser, clip_gradients, decay_groups, learning_rate_at


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))
        self.gate_bias = nn.Parameter(torch.ones(4, 2, 3))
        self.skip = nn.Parameter(torch.ones(3))
        self.norm = nn.LayerNorm([2, 3])  # whose gain has two dimensions
        self.lstm = nn.LSTM(2, 3)


def test_decay_groups_spares_biases_and_norm_gains_of_any_shape() -> None:
    decayed, spared = decay_groups(_Layer())
    assert set(decayed) == {"weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0"}
    assert set(spared) == {"gate_bias", "skip", "norm.weight", "norm.bias", "lstm.bias_ih_l0", "lstm.bias_hh_l0"}


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_build_optimiser_decays_weights_alone(name: str) -> None:
    model = _Layer()
    optimiser = build_optimiser(model, TrainingConfig(optimiser=name, weight_decay=0.5, learning_rate=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    assert (model.weight < 1).all()
    assert torch.equal(model.gate_bias, torch.ones(4, 2, 3))
    assert torch.equal(model.norm.weight, torch.ones(2, 3))


def test_build_optimiser_holds_every_parameter_once() -> None:
    model = _Layer()
    optimiser = build_optimiser(model, TrainingConfig())
    held = [id(parameter) for group in optimiser.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())


def test_learning_rate_at_cosine_with_warmup() -> None:
    config = TrainingConfig(learning_rate=0.4, schedule="cosine", warmup=0.2)
    rates = [learning_rate_at(config, step, 20) for step in range(20)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[4] == pytest.approx(0.4)
    assert rates[12] == pytest.approx(0.2)  # half of the 16 steps after the warm-up
    assert rates[19] == pytest.approx(0.4 * 0.5 * (1 + math.cos(math.pi * 15 / 16)))
    assert rates[4:] == sorted(rates[4:], reverse=True) and rates[-1] > 0


def test_learning_rate_at_constant_stays() -> None:
    config = TrainingConfig(learning_rate=0.4, schedule="constant", warmup=0.0)
    assert {learning_rate_at(config, step, 7) for step in range(7)} == {0.4}


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.99])
@pytest.mark.parametrize("total", [1, 2, 3, 50])
def test_learning_rate_at_any_length_is_positive_and_at_most_the_given(
    schedule: str, warmup: float, total: int
) -> None:
    config = TrainingConfig(learning_rate=0.4, schedule=schedule, warmup=warmup)
    rates = [learning_rate_at(config, step, total) for step in range(total)]
    assert all(0 < rate <= 0.4 for rate in rates)
    assert max(rates) == pytest.approx(0.4)


@pytest.mark.parametrize("step", [-1, 5])
def test_learning_rate_at_outside_the_run_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=f"got {step}"):
        learning_rate_at(TrainingConfig(), step, 5)


def _with_gradients(*values: float) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in values]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = torch.tensor([value])
    return [*parameters, nn.Parameter(torch.zeros(1))]  # the last one took no part


def test_clip_gradients_scales_to_the_norm() -> None:
    parameters = _with_gradients(3.0, 4.0)
    assert clip_gradients(parameters, 1.0).item() == pytest.approx(5.0)
    assert [p.grad.item() for p in parameters[:2]] == pytest.approx([0.6, 0.8], rel=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("largest", [0.0, 6.0])
def test_clip_gradients_leaves_small_ones_and_none_at_zero(largest: float) -> None:
    parameters = _with_gradients(3.0, 4.0)
    assert clip_gradients(parameters, largest).item() == pytest.approx(5.0)
    assert [p.grad.item() for p in parameters[:2]] == [3.0, 4.0]  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("largest", [0.0, 1.0])
def test_clip_gradients_tells_what_is_not_finite(value: float, largest: float) -> None:
    assert not clip_gradients(_with_gradients(1.0, value), largest).isfinite()
