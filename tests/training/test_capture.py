"""Steps over buffers, as a CUDA graph replays them, give the numbers of steps that run as they are."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from xlstm_tune.data.windows import Prepared
from xlstm_tune.models.lstm import LSTMTorch
from xlstm_tune.training import capture
from xlstm_tune.training.capture import WARM_UP, Captured, refusal
from xlstm_tune.training.checkpoint import load, save
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.loop import EpochResult, train
from xlstm_tune.training.population import train_population

Maker = Callable[..., Any]
CPU = torch.device("cpu")
EXACT = {"learning_rate": 2.0**-7, "schedule": "constant", "warmup": 0.0}
"""A learning rate that is the same number in float32, which tensors of it have."""


class Graphs:
    """Stands for CUDA graphs on a CPU: what is recorded runs at each replay, over the buffers, and not before."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.recorded, self.replayed = error, 0, 0

    def record(self, step: Callable[..., Any], buffers: tuple[Tensor, ...], stream: Any, pool: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.recorded += 1
        rates = next(one for one in buffers if one.is_floating_point())
        outputs = torch.full_like(rates, torch.nan), torch.full_like(rates, torch.nan)

        def replay() -> None:
            self.replayed += 1
            for output, found in zip(outputs, step(*buffers), strict=True):
                output.copy_(found)

        return replay, outputs


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    made = Graphs()
    monkeypatch.setattr(capture, "possible", lambda device: True)
    monkeypatch.setattr(capture, "record", made.record)
    capture._tell.cache_clear()
    return made


def run(config: TrialConfig, data: Prepared, device: str = "cpu", **given: Any) -> list[EpochResult]:
    return list(train(config, data, device=device, **given))


def run_together(configs: list[TrialConfig], data: Prepared, device: str = "cpu") -> list[EpochResult]:
    epochs = list(train_population(configs, data, device=device))
    return [one.result for epoch in epochs for one in epoch if one.result is not None]


def assert_same(mine: list[EpochResult], true: list[EpochResult], tolerance: float = 0.0) -> None:
    assert len(mine) == len(true)
    for one, other in zip(mine, true, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=tolerance, abs=0)
        assert one.validation == pytest.approx(other.validation, rel=tolerance, abs=0)
    weights, there = mine[-1].state.model.state_dict(), true[-1].state.model.state_dict()
    for name, value in weights.items():
        torch.testing.assert_close(value, there[name], rtol=tolerance, atol=tolerance)


def members(config: TrialConfig) -> list[TrialConfig]:
    return [
        replace(
            config,
            model=config.model.model_copy(update={"dropout": dropout}),
            training=config.training.model_copy(update={"seed": seed, "clip": 0.1 * seed}),
        )
        for seed, dropout in enumerate((0.0, 0.3, 0.5))
    ]


MODELS: list[dict[str, Any]] = [
    {"family": "lstm", "layers": 2, "dropout": 0.3},
    {"family": "xlstm", "pattern": "ms", "hidden_size": 16, "dropout": 0.2},
]


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_train_over_buffers_gives_the_same_bits(
    model: dict[str, Any], optimiser: str, make_forecast: Maker, make_config: Maker, request: pytest.FixtureRequest
) -> None:
    data, config = make_forecast(rows=90), make_config(model=model, epochs=5, optimiser=optimiser, **EXACT)
    true = run(config, data)
    graphs = request.getfixturevalue("graphs")
    mine = run(config, data)
    assert_same(mine, true)
    assert mine[-1].captured and not true[-1].captured
    assert mine[-1].backend == f"{true[-1].backend}; steps replayed from a CUDA graph"
    batches, last = divmod(len(data.parts["train"]), 16)
    assert batches > 1 and last  # a smaller last batch, with a graph of its own
    assert graphs.recorded == 2
    assert graphs.replayed == 5 * (batches + 1) - 2 * WARM_UP


def test_a_population_over_buffers_gives_the_same_bits(
    make_forecast: Maker, make_config: Maker, request: pytest.FixtureRequest
) -> None:
    data = make_forecast(rows=90)
    configs = members(make_config(model=MODELS[1], epochs=5, batch_size=16, **EXACT))
    true = run_together(configs, data)
    graphs = request.getfixturevalue("graphs")
    assert_same(run_together(configs, data), true)
    assert graphs.recorded == 2  # once for all epochs: the pack stays


def test_padded_sequences_over_buffers_give_the_same_bits(
    make_regression: Maker, make_config: Maker, request: pytest.FixtureRequest
) -> None:
    data = make_regression(lengths=(10, 7, 3), static=True)
    config = make_config(model={"family": "slstm", "dropout": 0.3}, epochs=4, **EXACT)
    true = run(config, data)
    graphs = request.getfixturevalue("graphs")
    assert_same(run(config, data), true)
    assert graphs.replayed


def test_a_checkpoint_goes_on_with_and_without_graphs(
    tmp_path: Any, make_forecast: Maker, make_config: Maker, request: pytest.FixtureRequest
) -> None:
    data, config = make_forecast(rows=90), make_config(model=MODELS[0], epochs=4, **EXACT)
    true = run(config, data)
    running = train(config, data, device="cpu")
    next(running)
    save(next(running).state, tmp_path / "eager")
    request.getfixturevalue("graphs")
    assert_same(run(config, data, resume=load(tmp_path / "eager", config, data, "cpu")), true[2:])
    running = train(config, data, device="cpu")
    next(running)
    save(next(running).state, tmp_path / "captured")
    request.getfixturevalue("monkeypatch").undo()
    assert_same(run(config, data, resume=load(tmp_path / "captured", config, data, "cpu")), true[2:])


@pytest.mark.parametrize("together", [False, True])
def test_a_refused_capture_leaves_training_as_it_was_and_is_told_once(
    together: bool,
    make_forecast: Maker,
    make_config: Maker,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data, config = make_forecast(rows=90), make_config(model=MODELS[0], epochs=2, batch_size=16, **EXACT)
    true = run_together(members(config), data) if together else run(config, data)
    graphs = request.getfixturevalue("graphs")
    graphs.error = torch.OutOfMemoryError("CUDA out of memory.\nMore about it")
    for _ in range(2):
        found = run_together(members(config), data) if together else run(config, data)
        assert_same(found, true)
        assert "; no CUDA graph: capturing one failed (OutOfMemoryError" in found[-1].backend
    assert [record.message for record in caplog.records] == [
        "Training steps run without a CUDA graph: capturing one failed (OutOfMemoryError: CUDA out of memory.)."
    ]


@pytest.mark.slow
def test_memory_that_runs_out_ends_the_capture(
    graphs: Graphs, make_forecast: Maker, make_config: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    from training.test_micro import holding

    with holding(8):
        found = run(make_config(epochs=3), make_forecast(rows=90))
    assert found[-1].micro_batch == 8 and not graphs.recorded
    assert [record.message for record in caplog.records] == [
        f"Training steps run without a CUDA graph: {capture.NO_MEMORY}."
    ]


def test_off_is_heeded_and_other_words_are_refused(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x

    assert Captured(step, step, CPU).active
    monkeypatch.setenv(capture.VARIABLE, "off")
    off = Captured(step, step, CPU)
    for _ in range(WARM_UP + 1):
        off(torch.ones(()))
    assert not off.active and not graphs.recorded and "is off" in off.describe()
    monkeypatch.setenv(capture.VARIABLE, "on")
    with pytest.raises(ValueError, match="XLSTM_TUNE_CAPTURE must be auto or off, got 'on'"):
        Captured(step, step, CPU)


def test_a_cpu_captures_nothing_and_says_nothing(
    make_forecast: Maker, make_config: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    found = run(make_config(epochs=1), make_forecast(rows=70))
    assert not caplog.records and "graph" not in found[0].backend
    assert isinstance(found[0].state.optimiser.param_groups[0]["lr"], float)


def test_torchs_lstm_is_captured_only_where_the_host_has_no_part() -> None:
    assert refusal(LSTMTorch(2, 4), padded=False) is None
    assert "lengths" in str(refusal(LSTMTorch(2, 4), padded=True))
    assert "dropout" in str(refusal(LSTMTorch(2, 4, layers=2, dropout=0.1), padded=False))


class HostCalls(TorchDispatchMode):
    """Collects the operators that read a device's numbers or bring the host's: a capture would break at them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(word in name for word in ("_local_scalar_dense", "nonzero", "lift_fresh")):
            callers = [frame.name for frame in traceback.extract_stack()]
            # On a GPU lengths are checked there; torch's fused optimisers read a learning rate that is on the CPU.
            if "check_masks" not in callers and "_fused_adam" not in callers:
                self.found.append(f"{name} in {callers[-2]}")
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        {"family": "lstm", "layers": 2, "dropout": 0.3, "pooling": "mean"},
        {"family": "xlstm", "pattern": "ms", "dropout": 0.3},
        {"family": "xlstm", "pattern": "sm", "direction": "both", "pooling": "attention"},
        {"family": "lstm_scratch"},
    ],
    ids=str,
)
def test_a_step_leaves_the_host_out(
    model: dict[str, Any],
    padded: bool,
    graphs: Graphs,
    make_forecast: Maker,
    make_regression: Maker,
    make_config: Maker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from xlstm_tune.kernels import around

    monkeypatch.setattr(around, "_one_pass", lambda *given: False)  # torch's operators, as a GPU runs them
    calls = HostCalls()

    def watched(self: Captured, *inputs: Any) -> Any:
        with calls:
            return self._whole(*inputs)

    monkeypatch.setattr(Captured, "__call__", watched)
    data = make_regression(lengths=(10, 7, 3), static=True) if padded else make_forecast(rows=60)
    config = make_config(model=model, epochs=1, batch_size=32)
    run(config, data)
    run_together(members(config), data)
    assert not calls.found


@pytest.mark.gpu
@pytest.mark.parametrize("optimiser", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("model", [*MODELS, {"family": "lstm_torch"}, {"family": "mlstm"}], ids=str)
def test_train_captured_gives_the_numbers_of_eager_training(
    model: dict[str, Any],
    optimiser: str,
    make_forecast: Maker,
    make_config: Maker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, config = make_forecast(rows=90), make_config(model=model, epochs=6, optimiser=optimiser)
    mine = run(config, data, "cuda")
    monkeypatch.setenv(capture.VARIABLE, "off")
    assert_same(mine, run(config, data, "cuda"), tolerance=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_population_captured_gives_the_numbers_of_eager_training(
    model: dict[str, Any], make_forecast: Maker, make_config: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, configs = make_forecast(rows=90), members(make_config(model=model, epochs=6))
    mine = run_together(configs, data, "cuda")
    monkeypatch.setenv(capture.VARIABLE, "off")
    assert_same(mine, run_together(configs, data, "cuda"), tolerance=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_capture_is_not_refused(
    model: dict[str, Any], make_forecast: Maker, make_config: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    capture._tell.cache_clear()
    config = make_config(model=model, epochs=6)
    assert run(config, make_forecast(rows=90), "cuda")[-1].captured
    assert all(one.captured for one in run_together(members(config), make_forecast(rows=90), "cuda")[-3:])
    assert not caplog.records


@pytest.mark.gpu
@pytest.mark.parametrize("what", ["memory", "error"])
def test_a_step_that_fails_while_it_is_captured_ends_no_process(
    what: str, make_forecast: Maker, make_config: Maker
) -> None:
    data, config = make_forecast(rows=90), make_config(model=MODELS[1], epochs=2, precision="fp32")
    first = run(config, data, device="cuda")  # a graph that lives, or lived, beside it
    device = torch.device("cuda", torch.cuda.current_device())

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * 2
        if torch.cuda.is_current_stream_capturing():
            if what == "error":
                raise RuntimeError("by a test")
            torch.empty(2**45, dtype=torch.uint8, device=x.device)
        return y.sum(), y.norm()

    captured = Captured(step, step, device)
    for number in range(WARM_UP + 3):
        loss, _ = captured(torch.full((4,), float(number), device=device))
        assert loss.item() == 8.0 * number
    assert not captured.active and not captured.replaying
    del captured
    gc.collect()
    assert_same(run(config, data, device="cuda"), first)


@pytest.mark.gpu
def test_a_capture_that_breaks_leaves_torch_usable(caplog: pytest.LogCaptureFixture) -> None:
    weight = torch.ones(4, device="cuda", requires_grad=True)

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        weight.grad = None
        (weight * x).sum().backward()
        assert weight.grad is not None
        if float(x) < 0:  # the host waits, which breaks a capture
            raise ValueError
        return weight.grad.norm().detach(), x

    capture._tell.cache_clear()
    stepped = Captured(step, step, torch.device("cuda", torch.cuda.current_device()))
    stream = torch.cuda.current_stream()
    for number in range(WARM_UP + 3):
        found, _ = stepped(torch.tensor(float(number), device="cuda"))
        assert found.item() == 2 * number
    assert not stepped.active and len(caplog.records) == 1
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    assert torch.zeros(2**20, device="cuda").sum().item() == 0
    assert torch.randn(4, device="cuda").isfinite().all()


@pytest.mark.gpu
def test_a_checkpoint_of_a_captured_run_goes_on_on_a_cpu(
    tmp_path: Any, make_forecast: Maker, make_config: Maker
) -> None:
    data, config = make_forecast(rows=90), make_config(model=MODELS[0], epochs=6, precision="fp32")
    true = run(config, data, "cuda")
    running = train(config, data, device="cuda")
    for _ in range(4):
        state = next(running).state
    save(state, tmp_path)
    for device, tolerance in (("cuda", 1e-5), ("cpu", 1e-2)):
        rest = run(config, data, device, resume=load(tmp_path, config, data, device))
        assert [one.train_loss for one in rest] == pytest.approx([one.train_loss for one in true[4:]], rel=tolerance)
