"""The samplers that `search.algorithm` names, in a form that an interrupted search can go on with."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from xlstm_tune.spec import SearchConfig


class NumberedSampler(BaseSampler):  # type: ignore[misc]
    """Proposes by the seed, the trial's number and what the study holds, and by nothing else.

    Optuna's samplers draw from one stream of random numbers, which ends with the process: here each trial has its own,
    so that a search that was interrupted goes on with the configurations that it would have tried.

    number: of the trial that is drawn; None = the trial's own.
    """

    def __init__(self, config: SearchConfig, number: int | None = None) -> None:
        self._config, self._number = config, number
        self._inner = self._for_trial(number or 0)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._inner = self._for_trial(trial.number)
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._inner.infer_relative_search_space(study, trial))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return dict(self._inner.sample_relative(study, trial, search_space))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """From a stream of its own: the driver may have been killed after the parameter before."""
        one = self._for_trial(trial.number, param_name)
        return one.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._inner.after_trial(study, trial, state, values)

    def _for_trial(self, number: int, param: str = "") -> BaseSampler:
        number = number if self._number is None else self._number
        words = [self._config.seed, number, zlib.crc32(param.encode())]
        return _make(self._config.algorithm, int(np.random.SeedSequence(words).generate_state(1)[0]))


def _make(algorithm: str, seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if algorithm == "tpe":
            # Without multivariate and group, TPE samples the settings of a conditional space independently;
            # without the liar, trials running side by side are near copies of each other.
            return TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)
        if algorithm == "gp":
            return GPSampler(seed=seed, warn_independent_sampling=False)
    # A grid's points are enqueued whole: its sampler only fills what an explicit start point leaves open.
    return RandomSampler(seed=seed)
