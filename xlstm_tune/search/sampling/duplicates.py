"""Which configurations are known: scored, stopped, failed, or running right now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from xlstm_tune.search.sampling.space import Params

Status = Literal["completed", "pruned", "failed", "duplicate"]
Ending = Literal["completed", "pruned", "failed"]

# User attributes of the Optuna trials, for reports and for the next resume.
REASON = "reason"
DUPLICATE_OF = "duplicate_of"
START = "start"
"""Which start point the trial is."""
DRAW = "draw"
"""Of which number the point is that a random search drew ahead: points of one shape leave out of turn."""
# How the reasons of failed trials begin that are no fault of the training.
INVALID = "invalid: "
TOO_LARGE = "too large: "
TOO_SLOW = "too slow: "
OVER_LIMIT = (TOO_LARGE, TOO_SLOW)
NEVER_BEGUN = (INVALID, TOO_LARGE)


def never_begun(reason: str | None) -> bool:
    """Whether a configuration with this reason was refused before it was trained, and so does not count as a trial."""
    return reason is not None and reason.startswith(NEVER_BEGUN)


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
    costs: list[float] = field(default_factory=list)
    """Of `search.costs`, once they are known."""
    excess: dict[str, float] = field(default_factory=dict)
    """By how much each limited figure passes its limit, once it is known."""
    followers: list[tuple[optuna.Trial, Params]] = field(default_factory=list)
    """Equal trials that wait for this one to end."""


class Ledger:
    """The distinct configurations of one search by their key."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}
        self._refused: set[str] = set()
        """Keys of those that were never begun, and never will be."""

    def __len__(self) -> int:
        """Distinct configurations started."""
        return len(self._known)

    def __contains__(self, key: object) -> bool:
        """Whether it needs no other try: it was started, or refused."""
        return key in self._known or key in self._refused

    def find(self, key: str) -> Known | None:
        """The configuration, if it was started."""
        return self._known.get(key)

    def refuse(self, key: str) -> None:
        """Note a configuration that is not begun."""
        self._refused.add(key)

    def start(self, key: str, number: int) -> Known:
        """Note a configuration that starts now. One that was refused may: another machine's memory decides anew."""
        assert key not in self._known
        self._refused.discard(key)
        self._known[key] = Known(number)
        return self._known[key]

    def read(self, trials: list[FrozenTrial], key_of: Callable[[FrozenTrial], str | None]) -> None:
        """Take over the finished trials of an earlier run.

        key_of: the configuration's key, None for a combination that is not a model.
        """
        for trial in trials:
            attributes = trial.user_attrs
            reason = attributes.get(REASON)
            if not trial.state.is_finished() or DUPLICATE_OF in attributes or (key := key_of(trial)) is None:
                continue
            if never_begun(reason):
                self.refuse(key)
            else:
                value, *costs = trial.values or [None]
                status = "failed" if (reason or "").startswith(OVER_LIMIT) else ENDINGS[trial.state]
                self._known[key] = Known(
                    trial.number, status, reason, trial.intermediate_values, value, costs, dict(trial.constraints)
                )


ENDINGS: dict[TrialState, Ending] = {
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
