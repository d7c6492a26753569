"""What thinning the sampler's history costs in quality, for scale.py.

    python benchmarks/scale_quality.py TRIALS SEED MOST BEST

TPE with our settings on scale_space.py's error, 16 trials at a time that end in the order in which they began, in
memory: once with the whole history, once with MOST ended trials of it (of them the BEST best), once drawing at random.
Prints JSON: for each the regret (the lowest error found, less the lowest possible, 1) after every hundredth of TRIALS
and the processor seconds.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections import deque

import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from scale_space import define_by_run, error

from xlstm_tune.search.sampling.samplers import NumberedSampler
from xlstm_tune.search.sampling.study_memory import StudyMemory
from xlstm_tune.search.sampling.thinning import ThinnedSampler, ThinnedStudy, Thinning
from xlstm_tune.spec import SearchConfig

AT_A_TIME = 16


def tpe(seed: int) -> BaseSampler:
    """Ours."""
    return NumberedSampler(SearchConfig.parse({"algorithm": "tpe", "seed": seed}))


def thinned(seed: int, most: int, best: int) -> optuna.Study:
    """A study whose sampler sees so much of it."""
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage)
    memory = StudyMemory(storage, storage.get_study_id_from_name(study.study_name))
    view = ThinnedStudy(memory, Thinning(most, best, (TrialState.COMPLETE, TrialState.PRUNED)), objectives=1)
    sampler = ThinnedSampler(tpe(seed), view, study.study_name)
    return optuna.load_study(study_name=study.study_name, storage=memory, sampler=sampler)


def regrets(study: optuna.Study, trials: int) -> dict[str, object]:
    """Of the best after every hundredth of the trials."""
    running: deque[optuna.Trial] = deque()
    best, found, began = float("inf"), [], time.process_time()
    for index in range(trials + AT_A_TIME):
        if index < trials:
            running.append(study.ask())
            define_by_run(running[-1])
        if index >= AT_A_TIME:
            trial = running.popleft()
            value = error(trial.params)
            study.tell(trial, value)
            best = min(best, value)
            if (index - AT_A_TIME + 1) % max(1, trials // 100) == 0:
                found.append(best - 1)
    return {"regrets": found, "cpu": time.process_time() - began}


def main() -> None:
    trials, seed, most, best = map(int, sys.argv[1:])
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = {
        "random": regrets(optuna.create_study(sampler=RandomSampler(seed=seed)), trials),
        "thinned": regrets(thinned(seed, most, best), trials),
        "whole": regrets(optuna.create_study(sampler=tpe(seed)), trials),
    }
    print(json.dumps({"trials": trials, "seed": seed, "most": most, "best": best, **found}))


if __name__ == "__main__":
    main()
