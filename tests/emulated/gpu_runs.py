"""Trainings on the emulated GPU: `python gpu_runs.py NAME` prints what came of one as JSON.

In a process of their own with `emulated_gpu.environment()`.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import emulated_gpu
import torch

from xlstm_tune.training import loop
from xlstm_tune.training.capture import VARIABLE
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.loop import EpochResult, train
from xlstm_tune.training.population import train_population

_spec = importlib.util.spec_from_file_location("made", Path(__file__).parent.parent / "training" / "conftest.py")
assert _spec is not None and _spec.loader is not None
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

GPU = emulated_gpu.made()
CUDA, CPU = "cuda:0", "cpu"
FORECAST = made.forecast_data(rows=60, lookback=6)
REGRESSION = made.regression_data(steps=5, lengths=(5, 4, 2), static=True)
EXACT = {"learning_rate": 2.0**-7, "schedule": "constant", "warmup": 0.0, "precision": "fp32", "epochs": 5}
"""A learning rate that is the same number in float32, which tensors of it have on a GPU."""
MS = {"family": "xlstm", "pattern": "ms", "dropout": 0.3, "direction": "both", "pooling": "attention"}
SHORT = made.forecast_data(rows=20, lookback=2)  # one batch of 11
LONG = made.forecast_data(rows=110, lookback=24)
WIDE = made.trial_config(model={"family": "lstm", "layers": 2}, batch_size=48, **EXACT)
"""Its activations on LONG are many times the size of its weights."""


def run(config: TrialConfig, data: Any, device: str, capture: str = "auto") -> list[EpochResult]:
    os.environ[VARIABLE] = capture
    return list(train(config, data, device=device))


def run_together(configs: list[TrialConfig], data: Any, device: str, capture: str = "auto") -> list[EpochResult]:
    os.environ[VARIABLE] = capture
    epochs = train_population(configs, data, device=device, width=len(configs))
    return [one.result for epoch in epochs for one in epoch if one.result is not None]


def members(config: TrialConfig, rates: Sequence[float] = (0.0, 0.3, 0.5)) -> list[TrialConfig]:
    """As many as there are rates of dropout, which differ in clip, seed and learning rate too."""
    return [
        replace(
            config,
            model=config.model.model_copy(update={"dropout": rate}),
            training=config.training.model_copy(
                update={"seed": seed, "clip": 0.1 * seed, "learning_rate": 2.0 ** -(6 + seed)}
            ),
        )
        for seed, rate in enumerate(rates)
    ]


def figures(results: list[EpochResult]) -> list[float]:
    return [value for one in results for value in (one.train_loss, *one.validation.values())]


def apart(mine: list[EpochResult], true: list[EpochResult]) -> float:
    """The largest relative difference of any loss and metric."""
    return max(abs(a - b) / abs(b) for a, b in zip(figures(mine), figures(true), strict=True))


def against_eager(train_on: Callable[[str, str], list[EpochResult]]) -> dict[str, Any]:
    """A captured training beside an eager one, and one on the CPU."""
    graph = torch.cuda.CUDAGraph
    before = int(GPU.emulated_used())
    captured, eager, on_cpu = train_on(CUDA, "auto"), train_on(CUDA, "off"), train_on(CPU, "off")
    weights = [one.state.model.state_dict() for one in (captured[-1], eager[-1])]
    found = {
        "captured": captured[-1].captured,
        "captures": graph.captures,
        "replays": graph.replays,
        "backend": captured[-1].backend,
        "same": figures(captured) == figures(eager),
        "same_weights": all(torch.equal(value, weights[1][name]) for name, value in weights[0].items()),
        "from_cpu": apart(eager, on_cpu),
    }
    del captured, eager, weights
    gc.collect()
    return found | {"kept": int(GPU.emulated_used()) - before}


def alone(data: Any = FORECAST, **model: Any) -> dict[str, Any]:
    config = made.trial_config(model=model, **EXACT)
    return against_eager(lambda device, capture: run(config, data, device, capture))


def together(data: Any = FORECAST, **model: Any) -> dict[str, Any]:
    configs = members(made.trial_config(model=model, **EXACT))
    return against_eager(lambda device, capture: run_together(configs, data, device, capture))


def little_memory(train_on: Callable[[str, str], list[EpochResult]]) -> list[dict[str, Any]]:
    """Trainings with ever smaller shares of the memory that the eager one takes at the most."""
    before = int(GPU.emulated_used())
    GPU.emulated_reset_peak()
    true = train_on(CUDA, "off")
    most = int(GPU.emulated_peak()) - before
    found = []
    for share in (1.05, 0.7, 0.4):
        for capture in ("auto", "off"):
            gc.collect()
            GPU.emulated_limit(int(GPU.emulated_used()) + int(share * most))
            mine = train_on(CUDA, capture)
            GPU.emulated_limit(emulated_gpu.MEMORY)
            found.append(
                {
                    "share": share,
                    "capture": capture,
                    "micro_batch": mine[-1].micro_batch,
                    "together": mine[-1].together,
                    "captured": mine[-1].captured,
                    "apart": apart(mine, true),
                    "backend": mine[-1].backend,
                }
            )
            del mine
    return found


def waiting_step() -> dict[str, Any]:
    """A step that asks the device for a number, which a capture refuses."""
    plain = loop.loss_of

    def nosy(config: Any) -> Any:
        criterion = plain(config)

        def loss(predicted: Any, true: Any) -> Any:
            assert predicted.sum().item() < 1e9
            return criterion(predicted, true)

        return loss

    loop.loss_of = nosy
    return alone(family="lstm") | {"broken": torch.cuda.CUDAGraph.broken}


def compiled() -> dict[str, Any]:
    """Models within torch.compile, without a break in their graphs, before anything else has asked for a kernel."""
    found = {}
    x = torch.randn(4, FORECAST.lookback, 2, device=CUDA)
    for name, model in {"lstm": {"family": "lstm"}, "ms": {"family": "xlstm", "pattern": "ms"}}.items():
        config = made.trial_config(model=model)
        built = loop.build_model(config.model, loop.shape_of(FORECAST, config)).to(CUDA)
        parameters = list(built.parameters())
        outputs = [call(x) for call in (torch.compile(built, fullgraph=True, backend="aot_eager"), built)]
        gradients = [torch.autograd.grad(output.square().sum(), parameters) for output in outputs]
        found[name] = {
            "same": torch.equal(*outputs),
            "same_gradients": all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(*gradients, strict=True)),
        }
    return found


RUNS: dict[str, Callable[[], Any]] = {
    "ms": lambda: alone(**MS),
    "padded": lambda: alone(REGRESSION, family="slstm", dropout=0.3),
    "kernels": lambda: {
        "lstm": alone(SHORT, family="lstm", heads=1),
        "mlstm": alone(SHORT, family="mlstm", heads=1, layers=2, conv_kernel=0),  # the last one runs no kernel
    },
    "kernels together": lambda: together(SHORT, family="slstm", heads=1),
    "memory": lambda: little_memory(lambda device, capture: run(WIDE, LONG, device, capture)),
    "memory together": lambda: little_memory(
        lambda device, capture: run_together(members(WIDE, (0.0, 0.0, 0.0, 0.0)), LONG, device, capture)
    ),
    "waiting": waiting_step,
    "compiled": compiled,
}

if __name__ == "__main__":
    print(json.dumps(RUNS[sys.argv[1]]()))
