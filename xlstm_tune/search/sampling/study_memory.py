"""A study that this process alone writes to: its trials by state, without asking the storage about each of them again.

Optuna looks through all trials of a study several times for each suggestion (is one waiting, which are running, which
have ended), and a journal file is read again each time. At 10,000 trials that is most of what a search's driver does.
"""

from __future__ import annotations

import copy
from bisect import insort
from collections.abc import Container, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState


class Forwarding(BaseStorage):  # type: ignore[misc]
    """A storage in front of another one, to which it passes everything on."""

    def __init__(self, inner: BaseStorage) -> None:
        self._inner = inner

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return int(self._inner.create_new_study(directions, study_name))

    def delete_study(self, study_id: int) -> None:
        self._inner.delete_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._inner.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._inner.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        return int(self._inner.get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        return str(self._inner.get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return list(self._inner.get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return dict(self._inner.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return dict(self._inner.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[FrozenStudy]:
        return list(self._inner.get_all_studies())

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        return int(self._inner.create_new_trial(study_id, template_trial))

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self._inner.set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return int(self._inner.get_trial_id_from_study_id_trial_number(study_id, trial_number))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        return bool(self._inner.set_trial_state_values(trial_id, state, values))

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._inner.set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._inner.set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._inner.set_trial_system_attr(trial_id, key, value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._inner.get_trial(trial_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return list(self._inner.get_all_trials(study_id, deepcopy, states))

    def remove_session(self) -> None:
        self._inner.remove_session()


class StudyMemory(Forwarding):
    """The trials of one study, in memory. inner: where it is kept, a study of which `study_id` is.

    Nobody else may write to the study meanwhile: what they wrote would not be seen.
    """

    def __init__(self, inner: BaseStorage, study_id: int) -> None:
        super().__init__(inner)
        self._study_id = study_id
        self._name, self._directions = inner.get_study_name_from_id(study_id), inner.get_study_directions(study_id)
        self._open: dict[int, FrozenTrial] = {}
        """Trials that have not ended, by their id in the storage."""
        self._stale: set[int] = set()
        """Those of them that were written to since they were read."""
        self._finished: list[FrozenTrial] = []
        """By number."""
        self.ended: list[FrozenTrial] = []
        """The same in the order in which they ended, as far as this object has seen it."""
        for trial in inner.get_all_trials(study_id, deepcopy=False):
            if trial.state.is_finished():
                self._finished.append(trial)
            else:
                self._open[trial._trial_id] = trial
        self.ended.extend(self._finished)

    def __len__(self) -> int:
        """Trials of the study."""
        return len(self._finished) + len(self._open)

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._study_id if study_name == self._name else super().get_study_id_from_name(study_name)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return list(self._directions)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, template_trial)
        self._read(trial_id)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        self._stale.add(trial_id)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        changed = super().set_trial_state_values(trial_id, state, values)
        self._read(trial_id)
        return changed

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._stale.add(trial_id)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_user_attr(trial_id, key, value)
        self._stale.add(trial_id)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_system_attr(trial_id, key, value)
        self._stale.add(trial_id)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        if trial_id not in self._open:
            return super().get_trial(trial_id)
        if trial_id in self._stale:
            self._read(trial_id)
        return self._open[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = self.still_open(states)
        if states is None or any(state in states for state in TrialState if state.is_finished()):
            ended = self._finished if states is None else [trial for trial in self._finished if trial.state in states]
            trials = sorted([*ended, *trials], key=_number)
        return copy.deepcopy(trials) if deepcopy else trials

    def still_open(self, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """Trials that wait or run, by number, as they are now."""
        for trial_id in self._stale & self._open.keys():
            self._read(trial_id)
        self._stale.clear()
        found = (trial for trial in self._open.values() if states is None or trial.state in states)
        return sorted(found, key=_number)

    def _read(self, trial_id: int) -> None:
        """Take over what the storage says of a trial now."""
        trial = self._inner.get_trial(trial_id)
        self._stale.discard(trial_id)
        if not trial.state.is_finished():
            self._open[trial_id] = trial
        elif self._open.pop(trial_id, None) is not None or trial.number >= len(self):
            insort(self._finished, trial, key=_number)
            self.ended.append(trial)


def _number(trial: FrozenTrial) -> int:
    return int(trial.number)
