"""What Ray Tune's own controller costs the driver, measured in a real run for scale.py.

    python benchmarks/scale_ray.py TRIALS EPOCHS ACTORS FOLDER

Ray on this machine with ACTORS fake GPUs, one worker process on each, which takes one trial after the other
(`reuse_actors`). Workers train nothing: they answer at once. The driver is a search's own: searcher, referee,
scheduler and callback of xlstm_tune, in Ray's controller. A proxy around each takes the processor time of its calls;
what else the driver's thread needs is Ray's. Prints JSON.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Meter:
    """Processor seconds of the driver's thread inside our calls."""

    def __init__(self) -> None:
        self.ours = 0.0
        self.deep = False

    def wrap(self, thing: Any, *names: str) -> None:
        """Measure these methods of an object."""
        for name in names:
            setattr(thing, name, self._measured(getattr(thing, name)))

    def _measured(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*arguments: Any, **keywords: Any) -> Any:
            if self.deep:  # the searcher's word to the callback
                return function(*arguments, **keywords)
            began, self.deep = time.thread_time(), True
            try:
                return function(*arguments, **keywords)
            finally:
                self.deep = False
                self.ours += time.thread_time() - began

        return measured


def main() -> None:
    trials, epochs, actors = map(int, sys.argv[1:4])
    folder = Path(sys.argv[4])
    from xlstm_tune.search.libraries import quiet, set_environment

    set_environment()
    quiet()
    import ray
    from ray import tune
    from scale_driver import Ours, rss_mib
    from scale_space import worker_result

    class Worker(tune.Trainable):
        """Answers at once."""

        def setup(self, config: dict[str, Any]) -> None:
            self._trial, self._epoch, self._best = config["trials"][0], 0, math.inf

        def reset_config(self, config: dict[str, Any]) -> bool:
            self.setup(config)
            return True

        def step(self) -> dict[str, Any]:
            self._epoch += 1
            result = worker_result(self._trial, self._epoch, epochs, self._best)
            self._best = result["best_val_rmse"]
            return result

    ours, meter = Ours(trials, folder, epochs, "none"), Meter()
    marks: list[dict[str, float]] = []

    class Marks(tune.Callback):
        """Takes figures whenever so many trials have ended."""

        def __init__(self) -> None:
            self.ended = 0

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.ended += 1
            if self.ended in EVERY:
                marks.append(
                    {
                        "trials": self.ended,
                        "thread": time.thread_time(),
                        "process": time.process_time(),
                        "ours": meter.ours,
                        "wall": time.perf_counter(),
                        "rss_mib": rss_mib(),
                    }
                )

        def __getstate__(self) -> dict[str, Any]:
            return {}

    EVERY = {max(actors, 50), trials // 4, trials // 2, 3 * trials // 4, trials - actors}
    meter.wrap(ours.driver, "on_trial_start", "on_trial_result", "on_trial_complete", "on_end")
    meter.wrap(ours.searcher, "suggest", "on_trial_result", "on_trial_complete")
    meter.wrap(ours.losses, "on_trial_add", "on_trial_result", "on_trial_complete")
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=actors,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    referee = ours.referee

    class Metered(tune.Stopper):
        """Ray asks the type, not the object, to be called."""

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            began = time.thread_time()
            stop = referee(trial_id, result)
            meter.ours += time.thread_time() - began
            return bool(stop)

        def stop_all(self) -> bool:
            return bool(referee.stop_all())

        def __getstate__(self) -> dict[str, Any]:
            return {}

    tuner = tune.Tuner(
        tune.with_resources(Worker, tune.PlacementGroupFactory([{"CPU": 0, "GPU": 1}])),
        tune_config=tune.TuneConfig(
            search_alg=ours.searcher,
            scheduler=ours.losses,
            num_samples=-1,
            max_concurrent_trials=actors,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(folder),
            stop=Metered(),
            callbacks=[ours.driver, Marks()],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    tuner.fit()
    ray.shutdown()
    ours.close()
    print(json.dumps(marks))


if __name__ == "__main__":
    main()
