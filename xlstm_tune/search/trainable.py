"""One trial as Ray runs it: a thin shell around a model's training or a population's.

Whatever goes wrong inside a trial is an outcome (`status: failed` with a reason), not a crash: the worker process
lives on and takes the next trial, which spares it the seconds of importing torch again.
"""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from xlstm_tune.data.windows import Prepared
from xlstm_tune.search.folder import CONFIG, trial_folder
from xlstm_tune.search.population import trial_members
from xlstm_tune.search.population_trial import PopulationTrial
from xlstm_tune.search.single_trial import SingleTrial
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.allocator import keep_freed_memory
from xlstm_tune.training.checkpoint import write_atomically
from xlstm_tune.training.loop import Diverged
from xlstm_tune.training.micro import out_of_memory


class SearchTrial(tune.Trainable):  # type: ignore[misc]
    """Trains one configuration, or a population of them, an epoch a step."""

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
        self._number: int = config["number"]
        self._params: dict[str, Any] = config["params"]
        self._trial: SingleTrial | PopulationTrial | None = None
        if torch.cuda.is_available():
            # A trial that a scheduler stopped leaves its tensors to the allocator; the next one must not pay for them.
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _started(self) -> SingleTrial | PopulationTrial:
        """The trial, made when it is first needed: inside step(), where failures become outcomes."""
        if self._trial is None:
            config = self._spec.resolve(self._params)
            folder = trial_folder(self._folder, self._number)
            folder.mkdir(parents=True, exist_ok=True)
            settled: dict[str, Any] = {"params": self._params, "config": config.flat()}
            objective = self._spec.search.objective.removeprefix("val_")
            if members := trial_members(self._spec, config):
                settled["members"] = [member.setting | {"training.seed": member.seed} for member in members]
                self._trial = PopulationTrial(members, self._data, folder, objective)
            else:
                self._trial = SingleTrial(config, self._data, folder, objective)
            write_atomically(folder / CONFIG, json.dumps(settled, indent=2).encode())
        return self._trial

    def step(self) -> dict[str, Any]:
        """One epoch. Returns the row that scheduler, searcher and driver see."""
        try:
            row = self._started().step()
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
        return row if row["status"] != "failed" else row | self._failed(row["reason"])

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
        self._started().save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Go on after the last saved epoch."""
        self._started().load(Path(checkpoint_dir))

    def cleanup(self) -> None:
        """Let go of the model and its device memory."""
        self._trial = None
