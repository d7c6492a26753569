"""A trial that trains one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xlstm_tune.data.windows import Prepared
from xlstm_tune.search.folder import WEIGHTS
from xlstm_tune.training.checkpoint import load, save, save_weights
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.loop import EpochResult, TrainingState, train


class SingleTrial:
    """Trains one configuration; keeps its best weights in the trial's folder.

    objective: of `metrics.METRICS`.
    """

    def __init__(self, config: TrialConfig, data: Prepared, folder: Path, objective: str) -> None:
        self._config, self._data, self._folder, self._objective = config, data, folder, objective
        self._state: TrainingState | None = None
        self._epochs = train(config, data, objective=objective)

    def step(self) -> dict[str, Any]:
        """One epoch. Returns the row that scheduler, searcher and driver see."""
        result = next(self._epochs)
        self._state = result.state
        return epoch_row(result, self._folder)

    def save(self, folder: Path) -> None:
        """Everything that the next epoch depends on."""
        if self._state is None:
            raise RuntimeError("the trial has no finished epoch to save yet")
        save(self._state, folder)

    def load(self, folder: Path) -> None:
        """Go on after the last saved epoch."""
        self._state = load(folder, self._config, self._data)
        self._epochs = train(self._config, self._data, resume=self._state, objective=self._objective)


def epoch_row(result: EpochResult, folder: Path) -> dict[str, Any]:
    """What scheduler, searcher and driver see of a configuration's epoch; the best weights so far go to its folder."""
    state = result.state
    # The first epoch always improves, so there is a best one from here on.
    assert state.best_validation is not None and state.best_weights is not None
    if result.improved:
        about = {"config": state.config.key(), "epoch": str(result.epoch)}
        save_weights(folder / WEIGHTS, state.best_weights, about)
    return {
        "epoch": result.epoch,
        "train_loss": result.train_loss,
        **{f"val_{name}": value for name, value in result.validation.items()},
        **{f"best_val_{name}": value for name, value in state.best_validation.items()},
        "best_epoch": state.best_epoch,
        "learning_rate": result.learning_rate,
        "epoch_seconds": result.seconds,
        "sequences_per_s": result.sequences_per_s,
        "peak_memory_mib": result.peak_memory_mib,
        "micro_batch": result.micro_batch,
        "members_at_once": result.together,
        "parameters": result.parameters,
        "backend": result.backend,
        "status": "completed" if result.finished else "running",
        "finished": result.finished,
        "done": result.finished,
    }
