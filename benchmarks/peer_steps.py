"""The others' side of cpu_step.py: torch.nn.LSTM, xlstm's block stack, neuralforecast's xLSTM.

Runs in the peers' environment (torch.nn.LSTM in any with torch) and imports nothing of xlstm_tune.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from worker import Case, Task, serve, timed, vital_signs

STEPS = 6
"""Steps of one fit of a `trained` case that are timed; one more before them is not."""


class Pass:
    """Forward and backward of torch.nn.LSTM or xLSTMBlockStack."""

    def __init__(self, case: Case):
        torch.manual_seed(0)
        if case.model == "lstm":
            self.body: nn.Module = nn.LSTM(case.width, case.width, case.blocks, batch_first=True)
        else:
            self.body = block_stack(case)
        self.embedding = nn.Linear(case.features, case.width) if case.features else None
        self.x = torch.randn(case.batch, case.steps, case.features or case.width, requires_grad=True)
        self.upstream = torch.randn(case.batch, case.steps, case.width)
        self.given: dict[str, Any] | None = None
        if case.exchange and Path(case.exchange).exists():
            self.given = torch.load(case.exchange)
            self.body.load_state_dict(self.given["weights"])
            self.x = self.given["x"].requires_grad_()
            self.upstream = self.given["upstream"]

    def run(self) -> Tensor:
        x = self.x if self.embedding is None else self.embedding(self.x)
        y = self.body(x)
        y = y[0] if isinstance(y, tuple) else y
        self.x.grad = None
        self.body.zero_grad(set_to_none=True)
        y.backward(self.upstream)
        return y

    def check(self) -> dict[str, Any]:
        y = self.run()
        facts = vital_signs(self.body, y)
        if self.given is not None:
            assert self.x.grad is not None
            facts["differs"] = max(farthest(y.detach(), self.given["y"]), farthest(self.x.grad, self.given["dx"]))
        return facts

    def step(self) -> list[float]:
        return timed(self.run)


def farthest(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def block_stack(case: Case) -> nn.Module:
    """xlstm's stack at its defaults, but for sLSTM's backend: its default needs CUDA."""
    from xlstm import (
        FeedForwardConfig,
        mLSTMBlockConfig,
        mLSTMLayerConfig,
        sLSTMBlockConfig,
        sLSTMLayerConfig,
        xLSTMBlockStack,
        xLSTMBlockStackConfig,
    )

    if case.model == "slstm":
        layer = sLSTMLayerConfig(backend="vanilla", num_heads=case.heads)
        block = {"slstm_block": sLSTMBlockConfig(slstm=layer, feedforward=FeedForwardConfig())}
    else:
        block = {"mlstm_block": mLSTMBlockConfig(mlstm=mLSTMLayerConfig(num_heads=case.heads))}
    config = xLSTMBlockStackConfig(
        **block,
        context_length=case.steps,
        num_blocks=case.blocks,
        embedding_dim=case.width,
        dropout=case.dropout,
    )
    return xLSTMBlockStack(config)


def forecaster(case: Case, **settings: Any) -> Any:
    """neuralforecast's xLSTM at its defaults, but for the case's sizes."""
    from neuralforecast.models.xlstm import xLSTM

    return xLSTM(
        h=case.horizon,
        input_size=case.steps,
        encoder_n_blocks=case.blocks,
        encoder_hidden_size=case.width,
        encoder_dropout=case.dropout,
        backbone={"slstm": "sLSTM", "mlstm": "mLSTM"}[case.model],
        hist_exog_list=[f"x{number}" for number in range(1, case.features)] or None,
        windows_batch_size=case.batch,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        **settings,
    )


class Step:
    """A training step of neuralforecast's network on one batch, without its trainer."""

    def __init__(self, case: Case):
        torch.manual_seed(0)
        self.model = forecaster(case)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=1e-3)  # as configure_optimizers has it
        batch, steps, horizon, others = case.batch, case.steps, case.horizon, case.features - 1
        self.windows = {
            "insample_y": torch.randn(batch, steps, 1),
            "insample_mask": torch.ones(batch, steps, 1),
            "hist_exog": torch.randn(batch, steps, others) if others > 0 else None,
            "futr_exog": None,
            "stat_exog": None,
        }
        self.y, self.mask = torch.randn(batch, horizon, 1), torch.ones(batch, horizon, 1)

    def run(self) -> Tensor:
        predicted: Tensor = self.model(self.windows)
        loss = self.model.loss(y=self.y, y_hat=predicted, mask=self.mask, y_insample=self.windows["insample_y"])
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return predicted

    def check(self) -> dict[str, Any]:
        return vital_signs(self.model, self.run())

    def step(self) -> list[float]:
        return timed(self.run)


class Trained:
    """Steps of neuralforecast's own fit(): from the start of one batch to the start of the next."""

    def __init__(self, case: Case):
        from neuralforecast.tsdataset import TimeSeriesDataset

        self.case = case
        self.dataset = TimeSeriesDataset.from_df(table(case))[0]
        self._fit()

    def _fit(self) -> None:
        from pytorch_lightning.callbacks import Callback

        class Clock(Callback):  # type: ignore[misc]
            """Notes when batches begin, and after the last backward which gradients there are."""

            def __init__(self) -> None:
                self.starts: list[float] = []
                self.signs: dict[str, Any] = {}

            def on_train_batch_start(self, *_: Any, **__: Any) -> None:
                self.starts.append(time.perf_counter())

            def on_after_backward(self, _: Any, module: Any) -> None:
                if len(self.starts) == STEPS + 2:
                    self.signs = vital_signs(module, torch.tensor(module.train_trajectories[-1][1]))

        clock = Clock()
        length = STEPS + 2
        model = forecaster(self.case, max_steps=length, val_check_steps=length, callbacks=[clock], accelerator="cpu")
        model.fit(self.dataset)
        self.starts, self.signs = clock.starts, clock.signs

    def check(self) -> dict[str, Any]:
        return self.signs

    def step(self) -> list[float]:
        self._fit()
        return [after - before for before, after in zip(self.starts[1:-1], self.starts[2:], strict=True)]


def table(case: Case) -> Any:
    """A random walk y and white noise in the other columns, as our side's."""
    import numpy as np
    import pandas as pd

    rows = case.steps + case.horizon - 1 + 10 * case.batch
    rng = np.random.default_rng(0)
    columns = {f"x{number}": rng.standard_normal(rows) for number in range(1, case.features)}
    hours = pd.date_range("2020-01-01", periods=rows, freq="h")
    return pd.DataFrame({"unique_id": "y", "ds": hours, "y": rng.standard_normal(rows).cumsum(), **columns})


def build(case: Case) -> Task:
    """The task of a case."""
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    kinds: dict[str, Callable[[Case], Task]] = {"pass": Pass, "step": Step, "trained": Trained}
    return kinds[case.what](case)


def versions() -> dict[str, str]:
    """Of the peers that are installed."""
    found = {}
    for name in ("torch", "xlstm", "neuralforecast"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    # neuralforecast's sLSTM: KeyError CUDA_LIB where there is no CUDA.
    serve(build, versions, errors=(KeyError, ImportError))
