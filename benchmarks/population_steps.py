"""xlstm_tune's side of population.py: epochs of members that train together, or of one alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from our_steps import STEPS, write_table
from worker import Case, serve

from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import load_table
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.models.forecaster import count_parameters
from xlstm_tune.training.config import TrainingConfig, TrialConfig
from xlstm_tune.training.loop import shape_of, train
from xlstm_tune.training.population import train_population

RATES = (3e-4, 1e-3, 3e-3)


class Members:
    """Epochs of STEPS batches; a step is one of one member. `case.members` 0: a single run by `loop.train`."""

    def __init__(self, case: Case):
        self.case = case
        held_out = case.horizon + 7
        rows = case.steps + case.horizon - 1 + STEPS * case.batch
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "table.csv"
            write_table(path, rows + 2 * held_out, case.features)
            split = {"validation": held_out, "test": held_out}
            raw = {"source": str(path), "target": "y", "lookback": case.steps, "horizon": case.horizon, "split": split}
            config = DataConfig.parse(raw, "data")
            data = prepare(load_table(config), config)
        kind = {"family": "xlstm", "pattern": "ms"} if case.model == "ms" else {"family": case.model, "layers": 2}
        sizes = {"hidden_size": case.width, "heads": case.heads, "dropout": case.dropout}
        model = ModelConfig.parse(kind | sizes, "model")
        configs = [
            TrialConfig(
                model,
                TrainingConfig(
                    batch_size=case.batch, epochs=100_000, seed=number, learning_rate=RATES[number % len(RATES)]
                ),
                case.steps,
            )
            for number in range(max(1, case.members))
        ]
        self.parameters = count_parameters(model, shape_of(data, configs[0]))
        self.speeds = self._together(configs, data) if case.members else self._alone(configs[0], data)

    def _alone(self, config: TrialConfig, data: Any) -> Iterator[float]:
        for result in train(config, data, device="cpu"):
            yield result.sequences_per_s

    def _together(self, configs: list[TrialConfig], data: Any) -> Iterator[float]:
        for epoch in train_population(configs, data, device="cpu"):
            found = [one.result for one in epoch if one.result is not None]
            if len(found) < len(configs):
                raise RuntimeError(f"a member failed: {[one.failure for one in epoch]}")
            # A member's is that of its pass; packs come one after another.
            yield len(found) / sum(1.0 / result.sequences_per_s for result in found)

    def check(self) -> dict[str, Any]:
        """An epoch, after which every kernel is compiled. Parameters: of a member."""
        return {"sequences_per_s": next(self.speeds), "parameters": self.parameters}

    def step(self) -> list[float]:
        """Seconds of a step of one member, as an epoch has it on average."""
        return [self.case.batch / next(self.speeds)]


if __name__ == "__main__":
    serve(Members, lambda: {"torch": version("torch")})
