"""One trial as Ray runs it: a thin shell around a model's training, a population's, or that of several configurations.

Whatever goes wrong inside a trial is an outcome (`status: failed` with a reason), not a crash: the worker process
lives on and takes the next trial, which spares it the seconds of importing torch again.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import math
import os
import platform
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from xlstm_tune.data.windows import Prepared
from xlstm_tune.search.persistence.folder import CONFIG, HUNG, disk_stop, trial_folder
from xlstm_tune.search.persistence.store import Shared, StorageAway
from xlstm_tune.search.placement.resources import own_gpus_alone
from xlstm_tune.search.sampling.goals import times_forecasts, too_slow
from xlstm_tune.search.sampling.population import trial_members
from xlstm_tune.search.scheduling.losses import COMPILING, FIRST_EPOCH
from xlstm_tune.search.scheduling.schedulers import rungs
from xlstm_tune.search.trials.fused_trial import Fused, FusedTrial
from xlstm_tune.search.trials.population_trial import PopulationTrial
from xlstm_tune.search.trials.single_trial import SingleTrial
from xlstm_tune.search.trials.system import SystemMetrics
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.allocator import keep_freed_memory
from xlstm_tune.training.checkpoint import write_atomically
from xlstm_tune.training.clock import compile_seconds, nothing_compiled
from xlstm_tune.training.latency import forecast_latency
from xlstm_tune.training.loop import Diverged, shape_of
from xlstm_tune.training.micro import out_of_memory
from xlstm_tune.training.threads import threads_asked_for


class SearchTrial(tune.Trainable):  # type: ignore[misc]
    """Trains one configuration, a population of them, or several that are trials of their own, an epoch a step."""

    def setup(self, config: dict[str, Any], data: list[Any], spec: dict[str, Any], store: Shared) -> None:
        """config: `trials` from the searcher. data: Ray's reference to the Prepared data, in a list.

        The data come to a node once and are mapped by its trials without copies. store: of the search's files.
        """
        own_gpus_alone()
        self._data: Prepared = ray.get(data[0])
        self._spec, self._store = SearchSpec.parse(spec), store
        self._folder = store.folder
        self._of_architecture: dict[str, float] = {}
        """Latencies, each of which stands for all trials of an architecture, so that chance makes no winner."""
        self._extra = COMPILING if nothing_compiled() else FIRST_EPOCH
        self._system = SystemMetrics()
        self._worker = f"process {os.getpid()} on {platform.node()}"
        keep_freed_memory()
        torch.set_num_threads(threads_asked_for())
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in the same process. Always True: Ray hangs on a refusal."""
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._trials: list[dict[str, Any]] = config["trials"]
        self._known = {one["number"]: int(one["known"]) for one in self._trials}
        self._trial: SingleTrial | PopulationTrial | FusedTrial | None = None
        self._latency: dict[int, float] = {}
        self._away = False
        """Whether the storage was given up, or belongs to another driver: nothing more is handed over."""
        if torch.cuda.is_available():
            # A trial that a scheduler stopped leaves its tensors to the allocator; the next one must not pay for them.
            # A process's first optimiser lies in a circle of references, and a graph's memory with it.
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _started(self) -> SingleTrial | PopulationTrial | FusedTrial:
        """The trial, made when it is first needed: inside step(), where failures become outcomes."""
        if self._trial is None:
            objective = self._spec.search.objective.removeprefix("val_")
            self._store.begin(self._places())
            runs = [self._settle(one["number"], one["params"]) for one in self._trials]
            first = runs[0]
            if len(runs) > 1:
                at = rungs(self._spec.search, self._spec.max_epochs())
                self._trial = FusedTrial(runs, self._data, objective, self._store, at)
            elif members := trial_members(self._spec, first.config):
                self._trial = PopulationTrial(members, self._data, first.folder, objective, first.known, self._store)
            else:
                self._trial = SingleTrial(first.config, self._data, first.folder, objective, first.known, self._store)
        return self._trial

    def _places(self) -> list[Path]:
        return [trial_folder(self._folder, one["number"]) for one in self._trials]

    def _settle(self, number: int, params: dict[str, Any]) -> Fused:
        """A configuration's folder, with all that is known of it before it is trained."""
        config = self._spec.resolve(params)
        folder = trial_folder(self._folder, number)
        settled: dict[str, Any] = {"params": params, "config": config.flat()}
        if members := trial_members(self._spec, config):
            settled["members"] = [member.setting | {"training.seed": member.seed} for member in members]
        write_atomically(folder / CONFIG, json.dumps(settled, indent=2).encode())
        return Fused(number, config, folder, self._known[number])

    def step(self) -> dict[str, Any]:
        """One epoch. Returns what referee, searcher and driver see: `rows`, and the best of them as Ray's own."""
        compiled = compile_seconds()
        try:
            with self._watched():
                rows = self._rows(self._started().step(), compiled)
            self._hand_over()
        except Diverged as reason:
            return self._all_failed(f"diverged: {reason}")
        except StorageAway as error:  # as below
            self._away = True
            return self._result([], done=True) | {"storage_away": str(error)}
        except Exception as error:
            if out_of_memory(error):
                return self._all_failed(f"out of memory: {str(error).splitlines()[0] if str(error) else 'host memory'}")
            if why := disk_stop(error):  # no fault of the trial, and no other would fare better
                return self._result([], done=True) | {"disk": (why, f"{self._worker}: {error}")}
            self._keep_traceback()
            if isinstance(error, torch.AcceleratorError):
                # Nothing works on this GPU in this process any more: the trial goes on in another, as after any death.
                os._exit(1)
            return self._all_failed(f"error: {type(error).__name__}: {error}")
        self._known |= {row["number"]: row["epoch"] for row in rows}
        return self._result(rows, done=all(row["done"] for row in rows))

    def _rows(self, rows: list[dict[str, Any]], compiled: float) -> list[dict[str, Any]]:
        """The rows of a step with what this worker adds. compiled: `compile_seconds` before it."""
        number, system = self._trials[0]["number"], self._system.read()
        about = {"worker": self._worker, "compile_seconds": compile_seconds() - compiled}
        rows, known = [{"number": number, **about, **row} for row in rows], dict(self._known)
        for row in rows:
            if row["status"] != "failed":
                row |= self._timed(row["number"])
                row["system"] = system
            if row["status"] == "failed":
                row |= self._failed(known[row["number"]] + 1, row["reason"])
            known[row["number"]] = row["epoch"]
        return rows

    def _hand_over(self) -> None:
        """What the driver is about to hear of is there for it: the best weights first of all."""
        for place in self._places():
            self._store.push(place)

    def _timed(self, number: int) -> dict[str, Any]:
        """How long a forecast takes, where the search asks; too long is a failure."""
        if not times_forecasts(self._spec.search):
            return {}
        if number not in self._latency:
            (params,) = (one["params"] for one in self._trials if one["number"] == number)
            config = self._spec.resolve(params)
            same = f"{config.model.model_dump_json(exclude={'dropout'})} {config.lookback} {config.training.precision}"
            if same not in self._of_architecture:
                self._of_architecture[same] = forecast_latency(config, shape_of(self._data, config))
            self._latency[number] = self._of_architecture[same]
        latency = self._latency[number]
        reason = too_slow(self._spec, latency)
        if reason is None:
            return {"latency_ms": latency}
        self._store.mark([trial_folder(self._folder, number)])  # others that it is trained with go on without it
        return {"latency_ms": latency, "status": "failed", "reason": reason}

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """End this process, with a note of where it hangs, when an epoch takes longer than `resources.trial_timeout`.

        The watch is kept by a thread that needs nothing of Python, so that it works whatever hangs.
        """
        seconds = self._spec.resources.trial_timeout
        if not isinstance(seconds, float):
            yield
            return
        folder = trial_folder(self._folder, self._trials[0]["number"])
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / HUNG).open("w") as file:
            faulthandler.dump_traceback_later(seconds + self._extra, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
        self._extra = 0.0
        (folder / HUNG).unlink(missing_ok=True)

    def _keep_traceback(self) -> None:
        """Reported, not swallowed: the reason goes into every record, the traceback beside the trial's config."""
        text = traceback.format_exc()
        for one in self._trials:
            folder = trial_folder(self._folder, one["number"])
            with suppress(OSError):  # the folder itself may be what failed
                folder.mkdir(parents=True, exist_ok=True)
                name = "error.txt" if len(self._trials) == 1 else "error-together.txt"
                (folder / name).write_text(text)
                self._store.push(folder)

    def _all_failed(self, reason: str) -> dict[str, Any]:
        """One configuration's failure; that of several together is no word on any of them, and leaves no rows."""
        number = self._trials[0]["number"]
        failed = self._failed(self._known[number] + 1, reason)
        rows = [{"number": number, **failed}] if len(self._trials) == 1 else []
        return failed | self._result(rows, done=True)

    def _result(self, rows: list[dict[str, Any]], done: bool) -> dict[str, Any]:
        # Ray wants the metric in every result; NaN tells that there is none.
        metric = f"best_{self._spec.search.objective}"
        values = [row[metric] for row in rows if not math.isnan(row[metric])]
        return {
            "epoch": max(self._known.values()),
            metric: min(values, default=math.nan),
            "numbers": [one["number"] for one in self._trials],
            "rows": rows,
            "done": done,
        }

    def _failed(self, epoch: int, reason: str) -> dict[str, Any]:
        objective = self._spec.search.objective
        return {
            "epoch": epoch,
            objective: math.nan,
            f"best_{objective}": math.nan,
            "status": "failed",
            "reason": reason,
            "finished": False,
            "done": True,
        }

    def cleanup(self) -> None:
        """Save what is not saved yet, and let go of the model and its device memory. Ray calls this before a stop."""
        try:
            if self._trial is not None and not self._away:
                self._trial.save()
        except Exception as error:
            # A full disk, of which safetensors tells by an error of its own: the last checkpoint counts.
            if not isinstance(error, OSError) and disk_stop(error) is None:
                raise
        finally:
            self._trial = None
            self._store.leave()
