"""The Optuna study of a search, rebuilt in memory from the trials table, for Optuna's own figures."""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from xlstm_tune.ranking import SCORED
from xlstm_tune.report.record import Record, finite, section

LOG_FROM = 100.0
"""Largest over smallest value from which inferred ranges are logarithmic."""


@dataclass(frozen=True)
class Rebuilt:
    """A study, and what its trials are called here: duplicates are left out, so Optuna's numbers are others."""

    study: optuna.Study
    rows: Sequence[Mapping[str, Any]]
    """Of the trials table, by Optuna's number."""
    distributions: Mapping[str, BaseDistribution]


class _ReadOnly(InMemoryStorage):  # type: ignore[misc]
    """Trials that nobody changes once they are in: figures ask for all of them once a setting, and need no copies."""

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return list(super().get_all_trials(study_id, deepcopy=False, states=states))


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna without its warnings and its log."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def rebuild(record: Record, pruned_count: bool = True) -> Rebuilt:
    """The study as it was told, duplicates left out.

    pruned_count: a trial that was stopped early counts as complete, with its best epoch's value, as on the
        leaderboard; False = it is PRUNED.
    """
    rows = [row for row in record.trials if row["status"] != "duplicate"]
    distributions = distributions_of(record, rows)
    trials = []
    for row in rows:
        value = row[record.objective] if finite(row[record.objective]) else None
        state = TrialState.COMPLETE if row["status"] == "completed" or pruned_count else TrialState.PRUNED
        if row["status"] not in SCORED or value is None:
            state, value = TrialState.FAIL, None
        params = {key: one for key, one in row["params"].items() if key in distributions}
        trials.append(
            create_trial(
                state=state,
                value=value if state == TrialState.COMPLETE else None,
                params=params,
                distributions={key: distributions[key] for key in params},
                intermediate_values={
                    epoch: float(one) for epoch, one in record.curves.get(row["trial"], ()) if one is not None
                },
            )
        )
    with quiet():
        study = optuna.create_study(storage=_ReadOnly(), direction="minimize")
        study.add_trials(trials)
    return Rebuilt(study, rows, distributions)


def distributions_of(record: Record, rows: Sequence[Mapping[str, Any]]) -> dict[str, BaseDistribution]:
    """Of each searched setting: as the search file has it where its values fit that, else from the values."""
    space = section(record.spec, "space")
    values: dict[str, list[Any]] = {}
    for row in rows:
        for key, value in row["params"].items():
            values.setdefault(key, []).append(value)
    found = {}
    for key in [*(key for key in space if key in values), *(key for key in sorted(values) if key not in space)]:
        wanted = _given(space.get(key))
        fits = wanted is not None and all(_contains(wanted, value) for value in values[key])
        found[key] = wanted if fits and wanted is not None else _inferred(values[key])
    return found


def _given(line: Any) -> BaseDistribution | None:
    """A line of `space:` as a distribution; None for what is none."""
    if not isinstance(line, Mapping):
        return None
    try:
        if "choice" in line:
            return CategoricalDistribution(tuple(dict.fromkeys(line["choice"])))
        for kind, make, log in (
            ("float", FloatDistribution, False),
            ("log_float", FloatDistribution, True),
            ("int", IntDistribution, False),
            ("log_int", IntDistribution, True),
        ):
            if kind in line:
                low, high = line[kind]
                return make(low, high, log=log)  # steps matter to a sampler, not to a figure
    except (TypeError, ValueError):
        pass
    return None


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    whole = isinstance(distribution, FloatDistribution) or isinstance(value, int)
    return whole and bool(distribution.low <= value <= distribution.high)


def _inferred(values: Sequence[Any]) -> BaseDistribution:
    if all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in values):
        low, high = min(values), max(values)
        log = low > 0 and high / low >= LOG_FROM
        if all(isinstance(one, int) for one in values):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low), float(high), log=log)
    return CategoricalDistribution(tuple(dict.fromkeys(values)))
