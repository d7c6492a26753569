from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest
import torch

from xlstm_tune.data.windows import Batch, Prepared, Windows
from xlstm_tune.models.config import FAMILIES
from xlstm_tune.ranking import METRICS
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.judge import judge, predict
from xlstm_tune.training.loop import (
    Diverged,
    EpochResult,
    autocast_dtype,
    begin,
    shape_of,
    train,
)
from xlstm_tune.training.metrics import score

Maker = Callable[..., Any]


def run(config: TrialConfig, data: Prepared, **given: Any) -> list[EpochResult]:
    return list(train(config, data, device="cpu", **given))


def numbers(result: EpochResult) -> tuple[Any, ...]:
    """All that must be the same in the same run."""
    return result.epoch, result.train_loss, result.validation, result.learning_rate, result.improved, result.finished


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["forecast", "regression"])
def test_train_learns_what_can_be_learnt(
    family: str, task: str, make_forecast: Maker, make_regression: Maker, make_config: Maker
) -> None:
    data, batch_size = (make_forecast(), 16) if task == "forecast" else (make_regression(), 4)
    results = run(make_config(model={"family": family, "pattern": "ms"}, epochs=6, batch_size=batch_size), data)
    assert results[-1].train_loss < 0.6 * results[0].train_loss
    assert results[-1].validation["rmse"] < results[0].validation["rmse"]
    assert [result.epoch for result in results] == list(range(1, 7))
    assert [result.finished for result in results] == [False] * 5 + [True]
    assert set(results[0].validation) == set(METRICS)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_train_twice_gives_the_same_bits(family: str, make_forecast: Maker, make_config: Maker) -> None:
    config = make_config(model={"family": family, "dropout": 0.3, "layers": 2}, epochs=2, seed=5)
    torch.manual_seed(1)
    first = run(config, make_forecast())
    torch.manual_seed(2)  # what the caller does with the global generator does not matter
    second = run(config, make_forecast())
    assert [numbers(result) for result in first] == [numbers(result) for result in second]
    assert same_weights(first[-1].state.model.state_dict(), second[-1].state.model.state_dict())


def test_train_taking_turns_gives_the_same_bits(make_forecast: Maker, make_config: Maker) -> None:
    data, config = make_forecast(), make_config(model={"dropout": 0.3, "layers": 2}, seed=5)
    other = make_config(model={"dropout": 0.1, "layers": 2, "family": "slstm"}, seed=6, epochs=4)
    alone = [numbers(result) for result in run(config, data)]
    turns = list(zip_longest(train(config, data, device="cpu"), train(other, data, device="cpu")))
    assert [numbers(one) for one, _ in turns if one] == alone
    assert [numbers(two) for _, two in turns if two] == [numbers(result) for result in run(other, data)]


def test_train_with_another_seed_differs(make_forecast: Maker, make_config: Maker) -> None:
    losses = {run(make_config(seed=seed, epochs=1), make_forecast())[0].train_loss for seed in (0, 1, 2**63 - 1)}
    assert len(losses) == 3


def test_train_leaves_the_callers_generator_alone(make_forecast: Maker, make_config: Maker) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run(make_config(epochs=1, model={"dropout": 0.3, "layers": 2}), make_forecast())
    assert torch.equal(torch.rand(2), expected)


def test_train_resumed_state_continues(make_forecast: Maker, make_config: Maker) -> None:
    data, config = make_forecast(), make_config(epochs=4, model={"dropout": 0.3, "layers": 2})
    expected = [numbers(result) for result in run(config, data)]
    begun = train(config, data, device="cpu")
    seen = [next(begun), next(begun)]
    begun.close()
    seen += run(config, data, resume=seen[-1].state)
    assert [numbers(result) for result in seen] == expected
    assert run(config, data, resume=seen[-1].state) == []


def test_train_resumed_with_a_state_of_another_run_is_refused(make_forecast: Maker, make_config: Maker) -> None:
    state = begin(make_config(), make_forecast())
    with pytest.raises(ValueError, match="same config"):
        run(make_config(seed=9), make_forecast(), resume=state)
    with pytest.raises(ValueError, match="same data"):
        run(make_config(), make_forecast(rows=200), resume=state)
    with pytest.raises(ValueError, match="same objective"):
        run(make_config(), make_forecast(), resume=state, objective="mae")


def test_train_uses_the_last_smaller_batch(make_forecast: Maker, make_config: Maker) -> None:
    data = make_forecast()
    config = make_config(epochs=1, batch_size=64, optimiser="sgd", learning_rate=1e-12, clip=0.0, schedule="constant")
    assert len(data.parts["train"]) % 64
    # With weights that do not move, the mean over the batches is the mean over the samples.
    result = run(config, data)[0]
    whole = judge(result.state.model, Windows(data, "train"), data.target_std, 1000).result()
    assert result.train_loss == pytest.approx(whole["mse_standardised"], rel=1e-5)


def test_train_sees_every_sample_once_an_epoch_in_an_order_of_its_own(
    make_forecast: Maker, make_config: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[list[int]] = [[]]
    batch = Windows.batch

    def watched(self: Windows, index: torch.Tensor) -> Batch:
        orders[-1] += index.tolist() if torch.is_grad_enabled() else []
        return batch(self, index)

    monkeypatch.setattr(Windows, "batch", watched)
    data = make_forecast()
    for _ in train(make_config(), data, device="cpu"):
        orders.append([])
    orders.pop()
    every = list(range(len(data.parts["train"])))
    assert [sorted(order) for order in orders] == [every] * 3
    assert len({tuple(order) for order in orders} | {tuple(every)}) == 4


def test_train_validates_every_row_without_dropout(make_forecast: Maker, make_config: Maker) -> None:
    data = make_forecast()
    result = run(make_config(epochs=1, model={"dropout": 0.5, "layers": 2}), data)[0]
    windows = Windows(data, "validation")
    predicted = predict(result.state.model, windows)
    actual = windows.batch(torch.arange(len(windows))).y
    assert predicted.shape == (len(data.parts["validation"]), data.horizon, 1)
    assert score(predicted, actual, data.target_std) == pytest.approx(result.validation, rel=1e-6)


def test_predict_does_not_depend_on_the_batch_and_keeps_the_mode(make_forecast: Maker, make_config: Maker) -> None:
    data = make_forecast()
    model = begin(make_config(model={"family": "xlstm", "dropout": 0.5}), data).model
    windows = Windows(data, "test")
    model.train()
    torch.testing.assert_close(predict(model, windows, batch_size=3), predict(model, windows, batch_size=1000))
    assert model.training
    model.eval()
    predict(model, windows)
    assert not model.training


def test_train_keeps_the_best_epochs_weights(make_forecast: Maker, make_config: Maker) -> None:
    data = make_forecast()
    # A rate this high makes validation go up and down.
    config = make_config(model={"forget_bias": 0.0}, epochs=8, learning_rate=0.3, schedule="constant", seed=1)
    results = run(config, data)
    errors = [result.validation["rmse"] for result in results]
    best = int(np.argmin(errors))
    assert best < 7, "the last epoch is the best, which makes this test empty"
    assert [result.improved for result in results] == [
        e < min(errors[:i], default=math.inf) for i, e in enumerate(errors)
    ]
    state = results[-1].state
    assert state.best_epoch == best + 1 and state.best_validation == results[best].validation
    model = begin(config, data).model
    model.load_state_dict(state.best_weights)
    assert judge(model, Windows(data, "validation"), data.target_std, 1000).result()["rmse"] == pytest.approx(
        errors[best]
    )


def test_train_by_another_objective(make_regression: Maker, make_config: Maker) -> None:
    results = run(make_config(epochs=6, learning_rate=0.1), make_regression(), objective="mae_standardised")
    errors = [result.validation["mae_standardised"] for result in results]
    assert results[-1].state.best_epoch == 1 + int(np.argmin(errors))


def test_train_patience_ends_it(make_forecast: Maker, make_config: Maker) -> None:
    config = make_config(epochs=50, learning_rate=0.3, schedule="constant", patience=2, seed=1)
    results = run(config, make_forecast())
    state = results[-1].state
    assert len(results) < 50 and results[-1].finished
    assert state.epoch - state.best_epoch == 2
    assert not any(result.finished for result in results[:-1])
    assert run(config, make_forecast(), resume=state) == []


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_train_with_overflowing_data_diverges(clip: float, make_forecast: Maker, make_config: Maker) -> None:
    data = make_forecast(scale=1e30)
    with pytest.raises(Diverged, match=r"the loss is inf in epoch 1, batch 1 of 7 \(learning rate"):
        run(make_config(clip=clip), data)


def test_train_with_nan_in_the_inputs_diverges(make_forecast: Maker, make_config: Maker) -> None:
    data = make_forecast()
    data.features[3] = np.nan
    with pytest.raises(Diverged, match="the loss is nan in epoch 1"):
        run(make_config(), data)


def test_train_with_sgd_at_rate_10_diverges(make_forecast: Maker, make_config: Maker) -> None:
    config = make_config(optimiser="sgd", learning_rate=10.0, clip=0.0, epochs=30, schedule="constant")
    with pytest.raises(Diverged, match=r"(the loss|gradient).*in epoch \d+.*learning rate 10"):
        run(config, make_forecast())


def test_train_with_nan_in_validation_alone_diverges(make_forecast: Maker, make_config: Maker) -> None:
    data = make_forecast()
    data.features[-30] = np.nan
    assert data.ends[data.parts["train"]].max() + data.horizon <= len(data.features) - 30
    with pytest.raises(Diverged, match="validation predictions are not finite after epoch 1"):
        run(make_config(), data)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
@pytest.mark.parametrize("optimiser", ["adamw", "adam", "sgd"])
def test_train_with_every_loss_and_optimiser_learns(
    loss: str, optimiser: str, make_forecast: Maker, make_config: Maker
) -> None:
    rate = 0.1 if optimiser == "sgd" else 1e-2
    results = run(make_config(loss=loss, optimiser=optimiser, learning_rate=rate, epochs=5), make_forecast())
    assert results[-1].train_loss < results[0].train_loss


def test_train_in_bf16_learns_and_keeps_float32_weights(make_forecast: Maker, make_config: Maker) -> None:
    data = make_forecast()
    results = run(make_config(precision="bf16", epochs=6), data)
    exact = run(make_config(precision="fp32", epochs=6), data)
    assert results[-1].train_loss < 0.6 * results[0].train_loss
    assert numbers(results[0]) != numbers(exact[0])
    assert results[0].train_loss == pytest.approx(exact[0].train_loss, rel=0.05)
    assert {value.dtype for value in results[-1].state.model.state_dict().values()} == {torch.float32}


def test_autocast_dtype_on_a_cpu() -> None:
    assert autocast_dtype("auto", "cpu") is None
    assert autocast_dtype("fp32", "cpu") is None
    assert autocast_dtype("bf16", "cpu") is torch.bfloat16


def test_train_with_a_shorter_lookback(make_forecast: Maker, make_config: Maker) -> None:
    data = make_forecast()
    assert shape_of(data, make_config(lookback=5)).lookback == 5 and shape_of(data).lookback == data.lookback
    short, whole = (run(make_config(lookback=lookback, epochs=1), data)[0] for lookback in (5, None))
    assert short.train_loss != whole.train_loss


def test_train_on_sequences_of_several_lengths_with_static_inputs_learns(
    make_regression: Maker, make_config: Maker
) -> None:
    data = make_regression(lengths=(3, 6, 10), static=True)
    assert data.shortest == 3 and shape_of(data).varying and shape_of(data).statics == 1
    assert not shape_of(data, make_config(lookback=3)).varying
    results = run(make_config(model={"pooling": "mean"}, epochs=12, batch_size=4), data)
    assert results[-1].train_loss < 0.6 * results[0].train_loss
    state = results[-1].state
    assert predict(state.model, Windows(data, "test")).shape == (10, 1, 2)
    assert judge(state.model, Windows(data, "validation"), data.target_std, 3).result() == pytest.approx(
        results[-1].validation
    )


def test_predict_of_a_short_sequence_does_not_depend_on_its_company(make_regression: Maker, make_config: Maker) -> None:
    data = make_regression(lengths=(3, 6, 10), static=True)
    model = begin(make_config(model={"family": "xlstm", "pooling": "attention", "patch_length": 4}), data).model
    together = predict(model, Windows(data, "test"))
    short = [at for at, sample in enumerate(data.parts["test"]) if data.ends[sample] - data.starts[sample] == 3]
    alone = replace(data, parts={**data.parts, "test": data.parts["test"][short]})
    assert short
    torch.testing.assert_close(predict(model, Windows(alone, "test", 3)), together[short], rtol=1e-5, atol=1e-6)


def test_train_reports_cost(make_forecast: Maker, make_config: Maker) -> None:
    result = run(make_config(epochs=1), make_forecast())[0]
    assert 0 < len(make_forecast().parts["train"]) / result.sequences_per_s < result.seconds < 60
    assert result.peak_memory_mib is not None and 50 < result.peak_memory_mib < 100_000
    assert result.parameters == sum(p.numel() for p in result.state.model.parameters())
    assert result.backend == result.state.model.describe_backend()


def test_train_for_an_unknown_objective_is_refused(make_forecast: Maker, make_config: Maker) -> None:
    with pytest.raises(ValueError, match="objective must be one of rmse, mae"):
        run(make_config(), make_forecast(), objective="r2")
