"""xlstm_tune's side of cpu_step.py."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from worker import Case, Task, roughen, serve, timed, vital_signs

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.models.forecaster import Shape, build_model
from xlstm_tune.models.lstm import LSTM
from xlstm_tune.models.official import to_official
from xlstm_tune.models.stack import XLSTMStack
from xlstm_tune.training.config import TrainingConfig, TrialConfig
from xlstm_tune.training.loop import EpochResult, train
from xlstm_tune.training.optimiser import build_optimiser, clip_gradients
from xlstm_tune.training.threads import threads_for

STEPS = 10
"""Training steps of an epoch of a `trained` case."""


def model_config(case: Case) -> ModelConfig:
    """The case's model as a search file has it."""
    sizes = {"layers": case.blocks, "hidden_size": case.width, "heads": case.heads}
    return ModelConfig.parse({"family": case.model, "dropout": case.dropout, **sizes}, "model")


class Pass:
    """Forward and backward of a stack, from its input (or the table's columns) to its output."""

    def __init__(self, case: Case):
        torch.manual_seed(0)
        config = model_config(case)
        self.body = LSTM(case.width, case.width, case.blocks) if case.model == "lstm" else XLSTMStack(config)
        roughen(self.body)
        self.embedding = nn.Linear(case.features, case.width) if case.features else None
        self.x = torch.randn(case.batch, case.steps, case.features or case.width, requires_grad=True)
        self.upstream = torch.randn(case.batch, case.steps, case.width)
        self.exchange = case.exchange

    def run(self) -> Tensor:
        x = self.x if self.embedding is None else self.embedding(self.x)
        y: Tensor = self.body(x)[0]
        self.x.grad = None
        self.body.zero_grad(set_to_none=True)
        y.backward(self.upstream)
        return y

    def check(self) -> dict[str, Any]:
        y = self.run()
        facts = vital_signs(self.body, y)
        if self.exchange:
            weights = self.body.state_dict() if isinstance(self.body, LSTM) else to_official(self.body)
            sides = {"x": self.x.detach(), "upstream": self.upstream, "y": y.detach(), "dx": self.x.grad}
            torch.save({"weights": weights, **sides}, self.exchange)
        return facts

    def step(self) -> list[float]:
        return timed(self.run)


class Step:
    """A training step of the forecaster on one batch: what the loop does between two batches."""

    def __init__(self, case: Case):
        torch.manual_seed(0)
        shape = Shape(case.features, case.steps, case.horizon, 1, (0,))
        self.model = build_model(model_config(case), shape)
        self.training = TrainingConfig(loss="mae")
        self.optimiser = build_optimiser(self.model, self.training)
        self.parameters = list(self.model.parameters())
        self.x = torch.randn(case.batch, case.steps, case.features)
        self.y = torch.randn(case.batch, case.horizon, 1)

    def run(self) -> Tensor:
        predicted: Tensor = self.model(self.x)
        loss = nn.functional.l1_loss(predicted, self.y)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(self.parameters, self.training.clip)
        self.optimiser.step()
        return predicted

    def check(self) -> dict[str, Any]:
        roughen(self.model)
        return vital_signs(self.model, self.run()) | {"backend": self.model.describe_backend()}

    def step(self) -> list[float]:
        with threads_for(self.model):
            return timed(self.run)


class Trained:
    """Steps of `training.loop.train` on a table of exactly STEPS batches."""

    def __init__(self, case: Case):
        self.case = case
        rows = case.steps + case.horizon - 1 + STEPS * case.batch
        held_out = case.horizon + 7
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "table.csv"
            write_table(path, rows + 2 * held_out, case.features)
            config = DataConfig.parse(
                {
                    "source": str(path),
                    "target": "y",
                    "lookback": case.steps,
                    "horizon": case.horizon,
                    "split": {"validation": held_out, "test": held_out},
                },
                "data",
            )
            self.data = prepare(load_table(config), config)
        training = TrainingConfig(loss="mae", batch_size=case.batch, epochs=100_000, schedule="constant", warmup=0)
        trial = TrialConfig(model_config(case), training, case.steps)
        self.epochs: Iterator[EpochResult] = train(trial, self.data, device="cpu")

    def check(self) -> dict[str, Any]:
        windows = len(self.data.parts["train"])
        assert windows == STEPS * self.case.batch, windows
        result = next(self.epochs)
        model = result.state.model
        return vital_signs(model, torch.tensor(result.train_loss)) | {"backend": result.backend}

    def step(self) -> list[float]:
        # One figure for the whole epoch: the loop tells sequences per second of training alone.
        return [self.case.batch / next(self.epochs).sequences_per_s]


def write_table(path: Path, rows: int, columns: int) -> None:
    """A random walk y and white noise in the other columns."""
    torch.manual_seed(0)
    values = torch.randn(rows, columns)
    values[:, 0] = values[:, 0].cumsum(0)
    names = ["y", *(f"x{number}" for number in range(1, columns))]
    lines = [",".join(f"{cell:.5f}" for cell in row) for row in values.tolist()]
    path.write_text("\n".join([",".join(names), *lines]) + "\n")


def build(case: Case) -> Task:
    """The task of a case."""
    if case.what != "pass":
        case = replace(case, features=case.features or 1)
    kinds: dict[str, Callable[[Case], Task]] = {"pass": Pass, "step": Step, "trained": Trained}
    return kinds[case.what](case)


if __name__ == "__main__":
    serve(build, lambda: {"torch": version("torch")})
