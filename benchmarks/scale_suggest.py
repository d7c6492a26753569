"""What a suggestion costs by the number of ended trials and of what its sampler sees, for scale.py.

    python benchmarks/scale_suggest.py RUNNING SUGGESTIONS

TPE with our settings on scale_space.py's space, in memory, RUNNING trials open. The ended ones were drawn at random.
Prints JSON lines: the median processor milliseconds of SUGGESTIONS suggestions with the whole history, and thinned.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

import numpy as np
import optuna
from optuna.samplers import RandomSampler
from scale_quality import thinned, tpe
from scale_space import define_by_run, error

from xlstm_tune.search.sampling.thinning import TPE

SIZES = (100, 1_000, 3_000, 10_000)


def cost(study: optuna.Study, ended: int, running: int, suggestions: int) -> float:
    """Median milliseconds."""
    sampler = study.sampler
    study.sampler = RandomSampler(seed=20261)
    for index in range(ended + running):
        trial = study.ask()
        define_by_run(trial)
        if index < ended:
            study.tell(trial, error(trial.params))
    study.sampler = sampler
    seconds = []
    for _ in range(suggestions):
        began = time.process_time()
        trial = study.ask()
        define_by_run(trial)
        seconds.append(time.process_time() - began)
        study.tell(trial, error(trial.params))
    return 1000 * float(np.median(seconds))


def main() -> None:
    running, suggestions = map(int, sys.argv[1:])
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for ended in SIZES:
        whole = cost(optuna.create_study(sampler=tpe(1)), ended, running, suggestions)
        seen = cost(thinned(1, TPE.most, TPE.best), ended, running, suggestions)
        print(json.dumps({"ended": ended, "whole_ms": whole, "thinned_ms": seen}), flush=True)


if __name__ == "__main__":
    main()
