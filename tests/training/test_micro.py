"""Out of memory: batches go on in pieces, with the same mathematics."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xlstm_tune.data.windows import Windows
from xlstm_tune.models.forecaster import Forecaster
from xlstm_tune.training.checkpoint import STATE, load, save
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.judge import judge, predict
from xlstm_tune.training.loop import EpochResult, begin, train
from xlstm_tune.training.micro import backward, fitting, out_of_memory

Maker = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
FULL = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


class Full(nn.Module):
    """Stands for a device that holds so many samples; counts what it refused."""

    def __init__(self, holds: int, error: Exception) -> None:
        super().__init__()
        self.holds, self.error, self.seen = holds, error, []

    def __call__(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        self.seen.append(len(given[0]))
        if len(given[0]) > self.holds:
            raise self.error


@contextmanager
def holding(holds: int, error: Exception | None = None) -> Any:
    """Every forward pass of more than `holds` samples runs out of memory, in training and in evaluation."""
    full = Full(holds, error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"))

    def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
        if isinstance(module, Forecaster):
            full(module, given)

    handle = nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield full
    finally:
        handle.remove()


def run(config: TrialConfig, data: Any, **given: Any) -> list[EpochResult]:
    return list(train(config, data, device="cpu", **given))


def close(one: EpochResult, other: EpochResult, rtol: float = 1e-5) -> None:
    """The same weights and figures, up to the rounding of float32."""
    assert one.train_loss == pytest.approx(other.train_loss, rel=1e-6)
    assert one.validation == pytest.approx(other.validation, rel=1e-6)
    there = other.state.model.state_dict()
    for name, value in one.state.model.state_dict().items():
        torch.testing.assert_close(value, there[name], rtol=rtol, atol=1e-6 * float(there[name].abs().max()))


@pytest.mark.slow
# Not a divisor of the batch of 16, nor is 16 of the 103 samples; sgd, since adam divides by gradients near zero.
@pytest.mark.parametrize(("family", "holds"), [("lstm", 15), ("lstm", 1), ("slstm", 5), ("mlstm", 5)])
def test_train_in_pieces_gives_the_weights_of_whole_batches(
    family: str, holds: int, make_forecast: Maker, make_config: Maker
) -> None:
    config = make_config(model={"family": family}, epochs=2, optimiser="sgd", batch_size=16)
    whole = run(config, make_forecast(rows=70))
    with holding(holds):
        pieces = run(config, make_forecast(rows=70))
    assert len(pieces) == 2 and whole[-1].micro_batch is None
    assert pieces[-1].micro_batch == {15: 8, 5: 4, 1: 1}[holds]
    close(pieces[-1], whole[-1])


@pytest.mark.slow
def test_train_in_pieces_with_clipping_and_another_optimiser(make_forecast: Maker, make_config: Maker) -> None:
    config = make_config(epochs=3, optimiser="adam", clip=0.1)
    whole = run(config, make_forecast(rows=70))
    with holding(3):
        pieces = run(config, make_forecast(rows=70))
    close(pieces[-1], whole[-1], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"loss": "quantile"}, {"loss": "mae"}, {"loss": "huber"}])
def test_train_in_pieces_of_sequences_with_every_loss(
    options: dict[str, Any], make_regression: Maker, make_config: Maker
) -> None:
    config = make_config(epochs=2, optimiser="sgd", model={"pooling": "mean"}, **options)
    data = make_regression(lengths=(3, 6, 10), static=True)
    whole = run(config, data)
    with holding(7):
        pieces = run(config, data)
    assert pieces[-1].micro_batch == 4
    close(pieces[-1], whole[-1])


def test_train_out_of_memory_does_the_same_batch_again_and_keeps_the_size(
    make_forecast: Maker, make_config: Maker
) -> None:
    config = make_config(epochs=1, batch_size=64)
    with holding(40) as full:
        result = run(config, make_forecast())[0]
    assert result.micro_batch == 32
    assert full.seen == [64, 32, 32, 32, 6, 22]  # two batches of 64 and 38, then validation


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        MemoryError("Unable to allocate 2.00 GiB for an array"),
        RuntimeError(f"{FULL} 8589934592 bytes. Error code 12 (Cannot allocate memory)"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_train_takes_every_word_for_no_memory(error: Exception, make_forecast: Maker, make_config: Maker) -> None:
    assert out_of_memory(error)
    with holding(8, error):
        assert run(make_config(epochs=1), make_forecast(rows=70))[0].micro_batch == 8


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), ValueError("out of memory"), OSError()])
def test_train_leaves_other_errors_alone(error: Exception, make_forecast: Maker, make_config: Maker) -> None:
    with holding(8, error) as full, pytest.raises(type(error)):
        run(make_config(epochs=1), make_forecast(rows=70))
    assert full.seen == [16]


def test_train_with_no_memory_for_one_sample_raises_as_it_came(make_forecast: Maker, make_config: Maker) -> None:
    with holding(0) as full, pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        run(make_config(epochs=1), make_forecast(rows=70))
    assert full.seen == [16, 8, 4, 2, 1]


def test_train_out_of_memory_in_the_backward_pass_drops_what_was_summed() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2), torch.randn(10, 3)
    fails = iter([False, False, True])

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, y: Tensor) -> Tensor:
            return y.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            if len(grad) > 2 and next(fails):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return grad

    def loss_at(index: Tensor, _piece: int) -> Tensor:
        return Fails.apply(model(x[index])).square().mean()

    loss, size = backward(loss_at, torch.arange(10), model.zero_grad, 3)  # the third of its pieces fails
    assert size == 2
    gradient = model.weight.grad
    whole, none = backward(lambda index, _piece: model(x[index]).square().mean(), torch.arange(10), model.zero_grad)
    assert none is None
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(gradient, model.weight.grad)


def test_backward_of_a_loss_for_each_member() -> None:
    torch.manual_seed(0)
    weights, x = nn.Linear(3, 4, bias=False), torch.randn(7, 3)  # four members of one row each

    def loss_at(index: Tensor, _piece: int) -> Tensor:
        return weights(x[index]).square().mean(dim=0)

    whole, _ = backward(loss_at, torch.arange(7), weights.zero_grad)
    gradient = weights.weight.grad
    loss, size = backward(loss_at, torch.arange(7), weights.zero_grad, 2)
    assert size == 2 and loss.shape == (4,)
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(weights.weight.grad, gradient)


def test_a_failed_attempt_is_let_go_of_before_the_next() -> None:
    import weakref

    held: list[weakref.ref[Tensor]] = []

    def attempt(size: int) -> int:
        assert not any(one() is not None for one in held)
        tensor = torch.zeros(size)
        held.append(weakref.ref(tensor))
        if size > 3:
            raise MemoryError
        return size

    assert fitting(attempt, 13) == (2, 2)
    assert len(held) == 4


@pytest.mark.slow
def test_train_resumed_goes_on_with_the_micro_batch_to_the_same_bits(
    tmp_path: Path, make_forecast: Maker, make_config: Maker
) -> None:
    data, config = make_forecast(rows=70), make_config(epochs=4, model={"dropout": 0.3, "layers": 2})
    with holding(6):
        begun = train(config, data, device="cpu")
        next(begun)
        save(next(begun).state, tmp_path)
        whole = list(begun)
    state = load(tmp_path, config, data, "cpu")
    assert state.micro_batch == 4
    rest = run(config, data, resume=state)  # with memory for all by now: the size stays all the same
    assert [one.train_loss for one in rest] == [one.train_loss for one in whole]
    assert [one.validation["rmse"] for one in rest] == pytest.approx([one.validation["rmse"] for one in whole])
    weights, there = rest[-1].state.model.state_dict(), whole[-1].state.model.state_dict()
    assert all(torch.equal(weights[name], there[name]) for name in weights)


def test_load_of_a_checkpoint_without_a_micro_batch(tmp_path: Path, make_forecast: Maker, make_config: Maker) -> None:
    save(next(train(make_config(), make_forecast(rows=70), device="cpu")).state, tmp_path)
    record = json.loads((tmp_path / STATE).read_text())
    del record["micro_batch"], record["together"]
    (tmp_path / STATE).write_text(json.dumps(record))
    state = load(tmp_path, make_config(), make_forecast(rows=70), "cpu")
    assert state.micro_batch is None and state.together is None


@pytest.mark.slow
def test_evaluate_and_predict_out_of_memory_halve_their_batch(make_forecast: Maker, make_config: Maker) -> None:
    data = make_forecast()
    model, windows = begin(make_config(model={"family": "xlstm"}), data).model, Windows(data, "train")
    expected, scored = predict(model, windows), judge(model, windows, data.target_std, 256).result()
    with holding(30) as full:
        torch.testing.assert_close(predict(model, windows), expected)
        assert full.seen[:3] == [len(windows), -(-len(windows) // 2), 26] and set(full.seen[3:-1]) == {26}
        assert judge(model, windows, data.target_std, 40).result() == pytest.approx(scored, rel=1e-6)
    with holding(0), pytest.raises(torch.OutOfMemoryError):
        predict(model, windows)


SCRIPT = """
import resource, sys
sys.path[:0] = {paths!r}
import torch
from training.conftest import forecast_data, trial_config
from xlstm_tune.training.loop import begin, train
from xlstm_tune.training.threads import threads_for

data = forecast_data(rows=3000, lookback=48)
model = {{"family": {family!r}, "hidden_size": 32}}
small = trial_config(model=model, epochs=1, batch_size=16)
config = trial_config(model=model, **{given!r})
next(train(small, data, device="cpu"))  # everything is loaded, every thread has begun
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20, resource.RLIM_INFINITY))
results = list(train(config, data, device="cpu"))
print(results[-1].micro_batch, *(result.train_loss for result in results), results[-1].validation["rmse"])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its memory as Linux does")
@pytest.mark.parametrize("family", ["lstm"])
def test_train_in_a_process_with_little_memory_goes_on_in_pieces(
    family: str, make_forecast: Maker, make_config: Maker
) -> None:
    given = {"epochs": 2, "batch_size": 2048, "optimiser": "sgd"}
    config = make_config(model={"family": family, "hidden_size": 32}, **given)
    plenty = list(train(config, make_forecast(rows=3000, lookback=48), device="cpu"))
    script = SCRIPT.format(paths=[str(ROOT), str(ROOT / "tests")], family=family, given=given)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    micro, *figures = done.stdout.split()
    assert plenty[-1].micro_batch is None and 1 <= int(micro) < 2048
    expected = [*(result.train_loss for result in plenty), plenty[-1].validation["rmse"]]
    assert [float(figure) for figure in figures] == pytest.approx(expected, rel=1e-5)


@pytest.mark.gpu
def test_train_on_a_gpu_with_little_memory_goes_on_in_pieces(make_forecast: Maker, make_config: Maker) -> None:
    data = make_forecast(rows=3000, lookback=48)
    given = {"model": {"family": "lstm", "hidden_size": 32}, "precision": "fp32"}
    config = make_config(**given, epochs=2, batch_size=2048, optimiser="sgd")
    next(train(make_config(**given, epochs=1, batch_size=16), data, device="cuda"))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    plenty = list(train(config, data, device="cuda"))
    needed = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + needed / 2
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        few = list(train(config, data, device="cuda"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert plenty[-1].micro_batch is None and 1 <= (few[-1].micro_batch or 0) < 2048
    figures = [[*(one.train_loss for one in results), results[-1].validation["rmse"]] for results in (few, plenty)]
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)
