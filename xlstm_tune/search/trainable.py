"""One trial as Ray runs it: a thin shell around the training loop.

Whatever goes wrong inside a trial is an outcome (`status: failed` with a reason), not a crash: the worker process
lives on and takes the next trial, which spares it the seconds of importing torch again.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from xlstm_tune.data.windows import Prepared
from xlstm_tune.search.folder import CONFIG, WEIGHTS, trial_folder
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.allocator import keep_freed_memory
from xlstm_tune.training.checkpoint import load, save, save_weights, write_atomically
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.loop import Diverged, EpochResult, TrainingState, train
from xlstm_tune.training.micro import out_of_memory


class SearchTrial(tune.Trainable):  # type: ignore[misc]
    """Trains one configuration, an epoch a step."""

    def setup(self, config: dict[str, Any], data: list[Any], spec: dict[str, Any], folder: str) -> None:
        """config: `number` and `params` from the searcher. data: Ray's reference to the Prepared data, in a list.

        The data come to a node once and are mapped by its trials without copies.
        """
        self._data: Prepared = ray.get(data[0])
        self._spec, self._folder = SearchSpec.parse(spec), folder
        keep_freed_memory()
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in the same process. Always True: Ray hangs on a refusal."""
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._state: TrainingState | None = None
        self._number: int = config["number"]
        self._params: dict[str, Any] = config["params"]
        self._epochs: Iterator[EpochResult] = self._run(None)
        if torch.cuda.is_available():
            # A trial that a scheduler stopped leaves its tensors to the allocator; the next one must not pay for them.
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _config(self) -> TrialConfig:
        return self._spec.resolve(self._params)

    def _run(self, resume: TrainingState | None) -> Iterator[EpochResult]:
        # Also the first lines of a trial (building the model) run inside step(), where failures become outcomes.
        config = self._config()
        trial_folder(self._folder, self._number).mkdir(parents=True, exist_ok=True)
        text = json.dumps({"params": self._params, "config": config.flat()}, indent=2)
        write_atomically(trial_folder(self._folder, self._number) / CONFIG, text.encode())
        objective = self._spec.search.objective.removeprefix("val_")
        yield from train(config, self._data, resume=resume, objective=objective)

    def step(self) -> dict[str, Any]:
        """One epoch. Returns the row that scheduler, searcher and driver see."""
        try:
            result = next(self._epochs)
        except Diverged as reason:
            return self._failed(f"diverged: {reason}")
        except Exception as error:
            if out_of_memory(error):
                return self._failed(f"out of memory: {str(error).splitlines()[0] if str(error) else 'host memory'}")
            # Reported, not swallowed: the reason goes into every record, the traceback beside the trial's config.
            folder = trial_folder(self._folder, self._number)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "error.txt").write_text(traceback.format_exc())
            return self._failed(f"error: {type(error).__name__}: {error}")
        self._state = result.state
        return self._row(result)

    def _row(self, result: EpochResult) -> dict[str, Any]:
        state = result.state
        # The first epoch always improves, so there is a best one from here on.
        assert state.best_validation is not None and state.best_weights is not None
        if result.improved:
            path = trial_folder(self._folder, self._number) / WEIGHTS
            save_weights(path, state.best_weights, {"config": self._config().key(), "epoch": str(result.epoch)})
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
            "parameters": result.parameters,
            "backend": result.backend,
            "status": "completed" if result.finished else "running",
            "finished": result.finished,
            "done": result.finished,
        }

    def _failed(self, reason: str) -> dict[str, Any]:
        # Ray wants the metric in every result; NaN tells searcher and scheduler that there is none.
        objective = self._spec.search.objective
        return {
            "epoch": self.iteration + 1,
            objective: float("nan"),
            f"best_{objective}": float("nan"),
            "status": "failed",
            "reason": reason,
            "finished": False,
            "done": True,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Everything that the next epoch depends on, without pickle."""
        if self._state is None:
            raise RuntimeError(f"trial {self._number} has no finished epoch to save yet")
        save(self._state, Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Go on after the last saved epoch."""
        self._state = load(Path(checkpoint_dir), self._config(), self._data)
        self._epochs = self._run(self._state)

    def cleanup(self) -> None:
        """Let go of the model and its device memory."""
        self._state = None
        self._epochs = iter(())
