"""Workers that are lost: noticed, told apart, and ended by force when they hang."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from xlstm_tune.search.persistence.folder import HUNG, trial_folder
from xlstm_tune.search.persistence.store import looks

NODE_LOST = "node lost"
_WORDS = {
    "running low on memory": "worker killed: the machine's memory ran out",
    "node has died": NODE_LOST,
    "node was terminated": NODE_LOST,
    "node is dead": NODE_LOST,
}
"""What Ray says of a lost worker, and what that means."""
_AT_ITS_START = re.compile(r'error raised in its creation task.*\n  File "[^\n]*\n(?:    [^\n]*\n)*(.+)', re.DOTALL)
"""The exception with which a worker's own start ended, in what Ray says of it: all behind the last traceback."""
FIRST_EPOCH = 60.0
"""Seconds that the first epoch of a worker process gets more than `resources.trial_timeout`: it loads the kernels."""
COMPILING = 600.0
"""The same where the machine keeps no compiled kernels yet."""


SILENT = "no sign of life"
"""How the note begins that the driver leaves for a worker that it has ended."""


class Losses(FIFOScheduler):  # type: ignore[misc]
    """Ray tells its scheduler first that a worker is lost; this one keeps why. folder: of the search.

    silent: whether Ray's trial of this id has said nothing for `resources.trial_timeout`: what a worker that hangs
    writes down stays on its own machine where that shares no disk with this one. out_of_time: whether none may begin.
    """

    def __init__(
        self,
        folder: Path,
        silent: Callable[[str], bool] = lambda trial_id: False,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self._folder, self._silent, self._out_of_time = folder, silent, out_of_time
        self._reasons: dict[str, str] = {}
        self._old: dict[str, tuple[int, ...]] = {}
        """By Ray's trial, what the note looked like that an earlier worker had left."""

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A worker is about to be asked for; its own note will be written over the one that there is."""
        hung = _note(self._folder, trial)
        if hung.exists():
            self._old[trial.trial_id] = looks(hung)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A worker is lost."""
        hung, old = _note(self._folder, trial), self._old.pop(trial.trial_id, None)
        note = hung.read_text(errors="replace") if hung.exists() and looks(hung) != old else ""
        if note.startswith(SILENT):
            hung.unlink()  # no worker would: theirs may be another folder
        if note or self._silent(trial.trial_id):
            self._reasons[trial.trial_id] = "hung: no epoch within resources.trial_timeout"
            return
        text = Path(trial.error_file).read_text() if trial.error_file and Path(trial.error_file).exists() else ""
        self._reasons[trial.trial_id] = _meaning(text)

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None in particular: Ray then begins its pending trials in their order, of which it keeps a list.

        FIFOScheduler looks for the first of them among all trials that there have ever been, at each step. Out of time,
        those that still wait for a place are given up: Ray would begin them.
        """
        if self._out_of_time():
            for trial in list(tune_controller.get_live_trials()):
                if trial.status == Trial.PENDING:  # as Ray does it where a stopper ends all trials, without a word
                    controller = tune_controller._tune_controller
                    controller._schedule_trial_stop(trial)
                    # Ray counts those that its searcher was told the end of, and without room asks for no more.
                    controller._search_alg.on_trial_complete(trial.trial_id)
        return None

    def why(self, trial_id: str) -> str:
        """Why Ray's trial lost its worker."""
        return self._reasons.get(trial_id, "worker died")

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its Tuner, and never needs the copy."""
        return {}


@contextmanager
def every_loss_told() -> Iterator[None]:
    """Tune hears of every lost worker as of a lost worker.

    When a machine's memory runs out, Ray ends workers and says so by an error that is neither of the two that Tune
    expects: it would end the whole search (Ray 2.60). It would again where Tune then asks a worker without a result
    what it is.
    """
    as_ray_has_it, as_asked = RayActorManager._actor_task_failed, Trial._get_default_result_or_future

    def failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(exception, (RayActorError, RayTaskError)):
            exception = RayActorError(error_msg=str(exception))
        as_ray_has_it(self, tracked_actor_task, exception)

    def asked(self: Trial) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] | None = as_asked(self)
        except RayError:
            found = self._default_result_or_future = None
        return found

    RayActorManager._actor_task_failed, Trial._get_default_result_or_future = failed, asked
    try:
        yield
    finally:
        RayActorManager._actor_task_failed, Trial._get_default_result_or_future = as_ray_has_it, as_asked


class Watch(tune.Callback):  # type: ignore[misc]
    """Ends workers that say nothing for longer than `seconds` and could not end themselves. folder: of the search.

    They are given a tenth more to do so, 2 to 30 seconds, because they leave a note of where they hang. first: seconds
    that a worker's first epoch may take besides.
    """

    def __init__(self, seconds: float, folder: Path, first: float = FIRST_EPOCH) -> None:
        self._timeout = seconds
        self._seconds, self._folder = seconds + max(2.0, min(30.0, seconds / 10)), folder
        self._first = first
        self._heard: dict[str, float] = {}

    def silent(self, trial_id: str) -> bool:
        """Whether a trial, once it had its first epoch, said nothing for as long as none may take."""
        return time.monotonic() - self._heard.get(trial_id, math.inf) >= self._timeout

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its Tuner, and never needs the copy."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A worker took the trial."""
        self._heard[trial.trial_id] = time.monotonic() + self._first

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A sign of life."""
        self._heard[trial.trial_id] = time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Nothing to wait for any more."""
        self._heard.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Nothing to wait for any more."""
        self._heard.pop(trial.trial_id, None)

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Ray comes by ten times a second."""
        late = time.monotonic() - self._seconds
        hanging = {trial_id for trial_id, heard in self._heard.items() if heard < late}
        for trial in trials if hanging else ():
            if trial.trial_id in hanging and (actor := trial.temporary_state.ray_actor) is not None:
                note = _note(self._folder, trial)
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(f"{SILENT} for {self._seconds:.0f} s; the search ended the worker\n")
                self._heard.pop(trial.trial_id)
                ray.kill(actor)


def _meaning(text: str) -> str:
    """Why a worker was lost. text: Ray's account of it, empty if there is none."""
    for words, meaning in _WORDS.items():
        if words in text:
            return meaning
    raised = _AT_ITS_START.search(text)
    return f"worker died at its start: {' '.join(raised[1].split())}" if raised else "worker died"


def _note(folder: Path, trial: Trial) -> Path:
    """Where a worker of this trial says that it hangs. folder: of the search."""
    return trial_folder(folder, trial.config["trials"][0]["number"]) / HUNG
