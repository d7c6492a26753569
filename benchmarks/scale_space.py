"""What scale.py searches: a conditional space, a made-up error over it, and its learning curves."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

EPOCHS = 10
SPACE: dict[str, Any] = {
    "model.family": {"choice": ["lstm", "slstm", "mlstm", "xlstm"]},
    "model.layers": {"choice": [1, 2, 3], "when": {"model.family": ["lstm", "slstm", "mlstm"]}},
    "model.pattern": {"choice": ["ms", "sm", "mms", "ssm"], "when": {"model.family": "xlstm"}},
    "model.hidden_size": {"choice": [32, 64, 128, 256]},
    "model.dropout": {"float": [0.0, 0.5]},
    "training.batch_size": {"choice": [32, 64, 128]},
    "training.learning_rate": {"log_float": [1e-5, 1e-1]},
    "training.weight_decay": {"log_float": [1e-6, 1e-1]},
}
_BEST_RATE = {"lstm": -2.6, "slstm": -3.1, "mlstm": -3.4, "xlstm": -2.9}
"""log10 of each family's best learning rate at width 64."""
_FAMILY = {"lstm": 0.10, "slstm": 0.05, "mlstm": 0.04, "xlstm": 0.0}
_PATTERN = {"ms": 0.02, "sm": 0.05, "mms": 0.0, "ssm": 0.06}


def error(params: Mapping[str, Any]) -> float:
    """The error that a configuration ends with, without its luck. The lowest possible is 1.

    Families want learning rates of their own, wide models smaller ones and more dropout: no setting can be chosen
    without the others.
    """
    family, width = params["model.family"], math.log2(params["model.hidden_size"] / 64)
    rate = math.log10(params["training.learning_rate"]) - (_BEST_RATE[family] - 0.25 * width)
    dropout = params["model.dropout"] - (0.1 + 0.08 * width)
    decay = math.log10(params["training.weight_decay"]) + 2.5
    batch = math.log2(params["training.batch_size"] / 64) - rate / 2
    depth = (
        _PATTERN[params["model.pattern"]] if family == "xlstm" else 0.03 * abs(params["model.layers"] - 2 + width / 4)
    )
    return (
        1
        + _FAMILY[family]
        + depth
        + 0.25 * math.sqrt(rate * rate + 0.01)
        - 0.025
        + 0.8 * dropout * dropout
        + 0.01 * decay * decay
        + 0.02 * batch * batch
        + 0.015 * (width - 1) ** 2
    )


def curve(params: Mapping[str, Any], epoch: int, luck: float = 0.01) -> float:
    """The validation error after an epoch: falls to the final one, with a luck that is the configuration's own."""
    draws = _draws(params, epoch)
    return error(params) * (1 + 1.5 * math.exp(-epoch / 2.5)) + luck * (draws - 0.5)


def pace(params: Mapping[str, Any]) -> float:
    """How long a configuration's epochs take by the mean of all: between half and one and a half times as long."""
    return 0.5 + _draws(params, 0)


def worker_result(trial: Mapping[str, Any], epoch: int, epochs: int, best: float) -> dict[str, Any]:
    """What a worker of ours tells of an epoch, as SearchTrial makes it. best: before this epoch."""
    value = curve(trial["params"], epoch)
    best, finished = min(value, best), epoch == epochs
    names = ("rmse", "mae", "mse_standardised", "mae_standardised")
    row = {
        "number": trial["number"],
        "worker": "1",
        "epoch": epoch,
        "train_loss": value,
        **{f"val_{name}": value for name in names},
        **{f"best_val_{name}": best for name in names},
        "best_epoch": epoch,
        "learning_rate": 1e-3,
        "epoch_seconds": 60.0,
        "sequences_per_s": 1000.0,
        "peak_memory_mib": None,
        "micro_batch": None,
        "members_at_once": None,
        "parameters": 12345,
        "backend": "reference",
        "status": "completed" if finished else "running",
        "finished": finished,
        "done": finished,
        "system": {"cpu_percent": 50.0, "memory_mib": 400.0},
    }
    return {"epoch": epoch, "best_val_rmse": best, "numbers": [trial["number"]], "rows": [row], "done": finished}


def _draws(params: Mapping[str, Any], what: int) -> float:
    """A number in [0, 1) that belongs to the configuration."""
    return zlib.crc32(repr((sorted(params.items()), what)).encode()) / 2**32


def define_by_run(trial: Any) -> None:
    """The same space for OptunaSearch."""
    family = trial.suggest_categorical("model.family", SPACE["model.family"]["choice"])
    if family == "xlstm":
        trial.suggest_categorical("model.pattern", SPACE["model.pattern"]["choice"])
    else:
        trial.suggest_categorical("model.layers", SPACE["model.layers"]["choice"])
    trial.suggest_categorical("model.hidden_size", SPACE["model.hidden_size"]["choice"])
    trial.suggest_float("model.dropout", *SPACE["model.dropout"]["float"])
    trial.suggest_categorical("training.batch_size", SPACE["training.batch_size"]["choice"])
    for name in ("training.learning_rate", "training.weight_decay"):
        trial.suggest_float(name, *SPACE[name]["log_float"], log=True)
