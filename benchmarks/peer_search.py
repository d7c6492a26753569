"""A search by neuralforecast's AutoxLSTM, run by search_speed.py in the peers' environment.

    python peer_search.py REQUEST.json ANSWER.json

REQUEST: table (CSV with unique_id, ds, y), validation (rows at the end of it that are held out), input_size, horizon,
trials, steps, windows (a step), widths, blocks, dropout, learning_rates [low, high], cpus (a trial), seed, folder (for
Ray's records).
ANSWER: moments in seconds since 1970 (first, last: of the trials; returned: the search with its refit), the completed
trials (loss, seconds, config) and how many failed (a loss that is NaN ends a trial), best config, parameters, and the
refitted best model's validation errors (mae, rmse, reported_mae) over so many windows.

Everything but the keys above is neuralforecast's default. The search learns of a trial what its validation_step
reports: the MAE over all validation windows. The best configuration is then trained again without the validation rows
(`refit_with_val` is its name for holding them out again), because the search keeps no weights, and forecasts every
validation window.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
from neuralforecast.auto import AutoxLSTM
from neuralforecast.common._base_auto import RayOptions
from neuralforecast.tsdataset import TimeSeriesDataset
from ray import tune


class TimedAutoxLSTM(AutoxLSTM):
    """AutoxLSTM that notes when its trials begin and end."""

    def _tune_model(self, **settings: Any) -> Any:
        self.first = time.time()
        results = super()._tune_model(**settings)
        self.last = time.time()
        return results


def search(request: dict[str, Any]) -> dict[str, Any]:
    """Run the search that the request describes; see the head of this file."""
    table = pd.read_csv(request["table"], parse_dates=["ds"])
    dataset, *_ = TimeSeriesDataset.from_df(table)
    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    # Its default writes to ~/ray_results.
    run_config = tune.RunConfig(storage_path=request["folder"], verbose=0)
    model = TimedAutoxLSTM(
        h=request["horizon"],
        config={
            "input_size": request["input_size"],
            "encoder_n_blocks": request["blocks"],
            "encoder_hidden_size": tune.choice(request["widths"]),
            "encoder_dropout": request["dropout"],
            "scaler_type": tune.choice([None, "robust", "standard"]),
            "learning_rate": tune.loguniform(*request["learning_rates"]),
            "max_steps": request["steps"],
            "batch_size": 32,
            "windows_batch_size": request["windows"],
            "random_seed": request["seed"],
            "enable_progress_bar": False,
            "logger": False,
        },
        num_samples=request["trials"],
        refit_with_val=True,
        ray_options=RayOptions(cpus=request["cpus"], run_config=run_config),
    )
    model.fit(dataset, val_size=request["validation"])
    returned = time.time()
    ray.shutdown()

    # predict() forecasts every window of the last `test_size` rows.
    model.model.set_test_size(request["validation"])
    predicted = model.predict(dataset, step_size=1).reshape(-1, request["horizon"])
    values = table["y"].to_numpy()[-request["validation"] :]
    actual = np.lib.stride_tricks.sliding_window_view(values, request["horizon"])
    assert predicted.shape == actual.shape, (predicted.shape, actual.shape)
    errors = predicted - actual
    best = model.results.get_best_result()
    return {
        "first": model.first,
        "last": model.last,
        "returned": returned,
        "trials": [
            {
                "loss": result.metrics["loss"],
                "seconds": result.metrics["time_total_s"],
                "config": plain(result.config),
            }
            for result in model.results
            if result.error is None
        ],
        "failed": len(model.results.errors),
        "best": plain(best.config),
        "parameters": sum(parameter.numel() for parameter in model.model.parameters()),
        "mae": float(np.abs(errors).mean()),
        "rmse": float(np.sqrt(np.square(errors).mean())),
        "reported_mae": float(best.metrics["loss"]),
        "windows": len(actual),
    }


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that JSON can hold."""
    return {key: value for key, value in config.items() if value is None or isinstance(value, (int, float, str))}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    asked = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(search(asked), indent=1))
