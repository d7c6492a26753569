"""A trial that trains one model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save as as_safetensors

from xlstm_tune.data.windows import Prepared
from xlstm_tune.errors import CheckpointError
from xlstm_tune.search.persistence.folder import WEIGHTS
from xlstm_tune.search.persistence.store import HERE, Shared
from xlstm_tune.search.trials.checkpoints import Checkpoints, worth_saving
from xlstm_tune.tracking import VALIDATION_END
from xlstm_tune.training.checkpoint import load, load_metadata, save, save_weights
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.loop import EpochResult, TrainingState, train


class SingleTrial:
    """Trains one configuration; keeps its best weights and its checkpoints in the trial's folder.

    state: after the last epoch; None before the first.
    objective: of `ranking.METRICS`. known: epochs that the driver knows of an earlier worker; those that only the
    folder knows are told by the first step. store: where other workers find the checkpoints.
    """

    def __init__(
        self,
        config: TrialConfig,
        data: Prepared,
        folder: Path,
        objective: str,
        known: int = 0,
        store: Shared = HERE,
    ) -> None:
        self._folder, self._data = folder, data
        self._checkpoints = Checkpoints(folder, store)
        self.state, self._untold = last_state(self._checkpoints, known, config, data)
        forget_later_weights(folder, self.state, known)
        self._epochs = train(config, data, resume=self.state, objective=objective)

    def step(self) -> list[dict[str, Any]]:
        """One epoch. Returns the rows that scheduler, searcher and driver see."""
        if self._untold:
            rows, self._untold = self._untold, []
            return rows
        result = next(self._epochs)
        self.state = result.state
        row = epoch_row(result, self._folder, self._data)
        self._checkpoints.note(row)
        if worth_saving([self._checkpoints]):
            self.save()
        return [row]

    def save(self) -> None:
        """Save the last epoch, if it is not saved yet."""
        if self.state is not None and not self.state.finished:
            self._checkpoints.save(self.state.epoch, partial(save, self.state))


def last_state(
    checkpoints: Checkpoints, known: int, config: TrialConfig, data: Prepared, most: int | None = None
) -> tuple[TrainingState | None, list[dict[str, Any]]]:
    """The state to go on from, None = from the beginning, and the rows behind epoch `known` that came before it.

    most: of no later epoch than this one.
    """
    for epoch, place, rows in checkpoints.whole(known):
        if most is not None and epoch > most:
            continue
        try:
            state = load(place, config, data)
        except CheckpointError as error:
            checkpoints.damaged(place, str(error))
            continue
        checkpoints.go_on_from(epoch)
        return state, rows
    checkpoints.go_on_from(0)
    return None, []


def forget_later_weights(folder: Path, state: TrainingState | None, known: int) -> None:
    """Weights of an epoch that nobody heard of make way for those that go with the state: a worker may have trained on
    while the search's own record lost its end, as in a power cut or where a bucket's copy of it is older.

    known: as for `SingleTrial`.
    """
    place = folder / WEIGHTS
    try:
        epoch = int(load_metadata(place)["epoch"])
    except (CheckpointError, KeyError, ValueError):  # none, or damaged: the next ones replace them
        return
    if epoch <= max(known, state.epoch if state is not None else 0):
        return
    (folder / VALIDATION_END).unlink(missing_ok=True)  # what they predicted goes with them
    if state is None or state.best_weights is None:
        place.unlink()
    else:
        save_best(folder, state)


def save_best(folder: Path, state: TrainingState) -> None:
    """The weights of a run's best epoch, of which there is one, and which epoch that is."""
    assert state.best_weights is not None
    about = {"config": state.config.key(), "epoch": str(state.best_epoch)}
    save_weights(folder / WEIGHTS, state.best_weights, about)


def epoch_row(result: EpochResult, folder: Path, data: Prepared) -> dict[str, Any]:
    """What scheduler, searcher and driver see of a configuration's epoch; the best so far goes to its folder."""
    state = result.state
    assert state.best_validation is not None  # the first epoch always improves
    if result.improved:
        save_best(folder, state)
        save_end(folder, state, data)
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


def save_end(folder: Path, state: TrainingState, data: Prepared) -> None:
    """What a run predicted for the last validation samples at its best epoch, in the first target's own units.

    `predicted` and `actual` [m, H] float32, the samples one after another.
    """
    if state.best_end is None:  # of an epoch before a resume, which has saved it
        return
    own = state.best_end * data.target_std[0] + data.target_mean[0]
    about = {"target": data.target_names[0], "task": data.task}
    tensors = {"predicted": own[0].contiguous().float(), "actual": own[1].contiguous().float()}
    temporary = folder / f".{VALIDATION_END}.tmp"
    temporary.write_bytes(as_safetensors(tensors, about))
    temporary.replace(folder / VALIDATION_END)  # a picture is not worth waiting for the disk
