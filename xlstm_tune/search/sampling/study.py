"""The Optuna study behind a search: where it is kept, and what its sampler sees of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalStorage
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from xlstm_tune.data.words import count
from xlstm_tune.errors import StorageError, first_line
from xlstm_tune.layout import OPTUNA_JOURNAL as JOURNAL
from xlstm_tune.lines import cut_torn_line
from xlstm_tune.search.sampling.samplers import NumberedSampler
from xlstm_tune.search.sampling.study_memory import StudyMemory
from xlstm_tune.search.sampling.thinning import GP, TPE, ThinnedSampler, ThinnedStudy, Thinning
from xlstm_tune.spec import SearchConfig
from xlstm_tune.tracking import hide_credentials

LOCK_SECONDS = 10
"""A lock left by a killed driver is taken over after this long without a write."""


class SyncedJournal(JournalFileBackend):  # type: ignore[misc]
    """Optuna's journal file, forced to disk when told to rather than at every line.

    Optuna waits for the disk (3 to 20 ms) once per parameter and per reported value. A killed process loses nothing
    without that; only a machine that loses power does, and then a trial that had not ended begins again anyway.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = JournalFileSymlinkLock(str(path), grace_period=LOCK_SECONDS)
        super().__init__(str(path), lock_obj=self._guard)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append, one line per log."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._guard.acquire()
        try:
            with self._path.open("ab") as file:
                file.write(text.encode())
        finally:
            self._guard.release()

    def sync(self) -> None:
        """Force everything appended so far to disk."""
        with self._path.open("ab") as file:
            os.fsync(file.fileno())


_THINNED: dict[str, Thinning] = {"tpe": TPE, "gp": GP}
"""Samplers that take longer with every trial that they see."""
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, AssertionError, OverflowError, RecursionError)
"""What Optuna raises for lines of a journal that it has not written."""


def open_study(
    name: str,
    config: SearchConfig,
    folder: Path,
    resume: bool = False,
    known: Collection[int] = (),
    may_lack: bool = False,
) -> tuple[optuna.Study, BaseStorage, Callable[[], None]]:
    """Create the study of a search, or, to resume it, open it again.

    folder: the search folder, which holds the journal unless `search.storage` names an Optuna URL.
    known: numbers of trials of the search's journal; the study was on the disk before each was written there.
    may_lack: `make_up` follows, for a study that lies in the folder. Elsewhere another study may have been named.
    Returns the study, where it is kept, and what to call to force it to disk.
    Raises StorageError when the storage cannot be opened, lacks trials of `known`, or holds a study of this name
    already and `resume` is not set.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    where = hide_credentials(config.storage or str(folder / JOURNAL))
    try:
        storage, sync = _open_storage(config.storage, folder / JOURNAL)
        made_up = may_lack and config.storage is None
        if not made_up and (lacking := _lacking(storage, name, known)):
            raise StorageError(
                f"the study in {where} lacks {count(len(lacking), 'trial')} that the search '{name}' has had (the "
                f"first: {min(lacking)}); bring it back, or give the search.storage that the search was begun with"
            )
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            sampler=RandomSampler(),
            directions=["minimize"] * (1 + len(config.costs)),
            load_if_exists=resume,
        )
        memory = StudyMemory(storage, storage.get_study_id_from_name(study.study_name))
    except StorageError:
        raise
    except optuna.exceptions.DuplicatedStudyError:
        raise StorageError(
            f"the storage {where} already holds a search named '{name}'; resume it, or choose another --name"
        ) from None
    except optuna.exceptions.StorageInternalError as error:  # says less than what it was raised for
        reason = hide_credentials(first_line(error.__cause__ or error))
        raise StorageError(
            f"search.storage {where} cannot be written: {reason}; get leave to write there, or choose another"
        ) from None
    # RuntimeError: tables of another version of Optuna.
    except (OSError, SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
        reason = hide_credentials(first_line(error))
        raise StorageError(f"search.storage {where} cannot be opened: {reason}; check the path or URL") from None
    sampler: BaseSampler = NumberedSampler(config)
    if thinning := _THINNED.get(config.algorithm):
        view = ThinnedStudy(memory, thinning, objectives=len(study.directions))
        sampler = ThinnedSampler(sampler, view, study.study_name)
    return optuna.load_study(study_name=study.study_name, storage=memory, sampler=sampler), memory, sync


def _lacking(storage: BaseStorage, name: str, known: Collection[int]) -> list[int]:
    """Those of these trials that the study of this name does not hold. Makes none."""
    if not known:
        return []
    try:
        held = storage.get_n_trials(storage.get_study_id_from_name(name))
    except KeyError:  # no such study
        held = 0
    return [number for number in known if number >= held]


def _open_storage(url: str | None, path: Path) -> tuple[BaseStorage, Callable[[], None]]:
    if url is not None:
        return optuna.storages.get_storage(url), lambda: None  # databases see to that themselves
    if path.exists():
        cut_torn_line(path)
    journal = SyncedJournal(path)
    try:
        return JournalStorage(journal), journal.sync
    except _DAMAGE as error:
        raise StorageError(
            f"{path} is damaged ({type(error).__name__}: {first_line(error)}); bring it back, or remove it: --resume "
            "makes it anew from the search's own journal"
        ) from None


def open_trials(study: optuna.Study, storage: BaseStorage) -> list[optuna.Trial]:
    """The trials that an earlier driver asked for and did not end, by number; they can be told once they have ended."""
    for _ in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.ask()
    identity = storage.get_study_id_from_name(study.study_name)
    return [
        optuna.Trial(study, storage.get_trial_id_from_study_id_trial_number(identity, trial.number))
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    ]
