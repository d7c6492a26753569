"""Which configurations are known: scored, stopped, failed, or running right now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from xlstm_tune.search.space import Params

Status = Literal["completed", "pruned", "failed", "duplicate"]
Ending = Literal["completed", "pruned", "failed"]

# User attributes of the Optuna trials, for reports and for the next resume.
REASON = "reason"
DUPLICATE_OF = "duplicate_of"
START = "start"
"""Which start point the trial is."""


@dataclass(frozen=True)
class TrialEnd:
    """How one Optuna trial ended; each ends exactly once."""

    number: int
    """Of the Optuna trial."""
    trial_id: str | None
    """Ray's; None for duplicates and refused combinations, which Ray never sees."""
    status: Status
    reason: str | None
    value: float | None
    """The objective: of completed trials the best epoch's, of pruned ones the best so far; None for failed ones."""
    params: Params
    duplicate_of: int | None = None


@dataclass
class Known:
    """One distinct configuration."""

    number: int
    """The Optuna trial that runs or ran it."""
    status: Ending | None = None
    """None while it runs."""
    reason: str | None = None
    steps: dict[int, float] = field(default_factory=dict)
    """Epoch → best objective up to it."""
    value: float | None = None
    followers: list[tuple[optuna.Trial, Params]] = field(default_factory=list)
    """Equal trials that wait for this one to end."""


class Ledger:
    """The distinct configurations of one search by their key."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}

    def __len__(self) -> int:
        """Distinct configurations started."""
        return len(self._known)

    def __iter__(self) -> Iterator[str]:
        """The keys."""
        return iter(self._known)

    def __contains__(self, key: object) -> bool:
        return key in self._known

    def find(self, key: str) -> Known | None:
        """The configuration, if it was started."""
        return self._known.get(key)

    def start(self, key: str, number: int) -> Known:
        """Note a configuration that starts now."""
        assert key not in self._known
        self._known[key] = Known(number)
        return self._known[key]

    def read(self, trials: list[FrozenTrial], key_of: Callable[[FrozenTrial], str | None]) -> None:
        """Take over the finished trials of an earlier run.

        key_of: the configuration's key, None for a combination that is not a model.
        """
        for trial in trials:
            attributes = trial.user_attrs
            if trial.state.is_finished() and DUPLICATE_OF not in attributes and (key := key_of(trial)) is not None:
                self._known[key] = Known(
                    trial.number, ENDINGS[trial.state], attributes.get(REASON), trial.intermediate_values, trial.value
                )


ENDINGS: dict[TrialState, Ending] = {
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
