"""What the tables of a search hold: columns, the keys that tell rows apart, and which values a row may have.

Errors (rmse, mae) are in the target's own units; the *_standardised ones in standard deviations of the
training part. Times are UTC. Seconds are seconds, memory is MiB.
"""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from xlstm_tune.ranking import METRICS
from xlstm_tune.strict import did_you_mean

VERSION = 1
VERSION_KEY = b"xlstm_tune.results"
_INT, _REAL, _TEXT, _TIME = pa.int64(), pa.float64(), pa.string(), pa.timestamp("ms", tz="UTC")


def _metrics(prefix: str = "") -> dict[str, pa.DataType]:
    return {prefix + name: _REAL for name in METRICS}


@dataclass(frozen=True)
class Kind:
    """One table: its columns, those that tell rows apart, and those that hold JSON text."""

    columns: dict[str, pa.DataType]
    key: tuple[str, ...]
    json: tuple[str, ...] = ()
    whole: bool = False  # rows of one key are written together, and replace all earlier ones of that key

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(self.columns, metadata={VERSION_KEY: str(VERSION).encode()})


KINDS = {
    # The search itself, so that a report needs these tables alone.
    "search": Kind(
        {
            "name": _TEXT,
            "spec": _TEXT,  # JSON: the search file as it was frozen, without passwords
            "environment": _TEXT,  # JSON: versions, hardware and commit
            "data": _TEXT,  # JSON: what the models were given; search/record.py lists its keys
            "concurrent": _INT,  # trials at a time
            "cpus_per_trial": _REAL,
            "gpus_per_trial": _REAL,
            "status": _TEXT,  # running (or killed), completed, interrupted
            "reason": _TEXT,  # why it stopped before its last trial; null where it did not
            "started": _TIME,  # of its first part
            "resumed": _TIME,  # when its latest part began; null where that is the first
            "ended": _TIME,
            "seconds": _REAL,  # that it has run, over all its parts, without the pauses between them
        },
        key=("name",),
        json=("spec", "environment", "data"),
    ),
    "trials": Kind(
        {
            "trial": _INT,  # Optuna's number
            "name": _TEXT,
            "status": _TEXT,  # completed, pruned, failed, duplicate
            "reason": _TEXT,
            "family": _TEXT,
            "config": _TEXT,  # JSON: everything that made the model
            "params": _TEXT,  # JSON: what was suggested
            "epochs": _INT,
            "best_epoch": _INT,
            **_metrics("val_"),  # at the best epoch; of a population, the best setting's mean over its seeds
            "std_error": _REAL,  # of the objective's mean over seeds; null with one seed
            "members": _INT,  # of a population; null where a trial is one model
            "fused": _INT,  # configurations in one pass with this one, since it last went on; null = it alone
            "setting": _TEXT,  # JSON: the population's best setting, whose best seed `config` describes
            **_metrics("test_"),
            "parameters": _INT,
            "seconds": _REAL,
            "sequences_per_s": _REAL,
            "peak_memory_mib": _REAL,
            "latency_ms": _REAL,  # of one sample's forecast, where the search weighs or limits it
            "micro_batch": _INT,  # samples at a time, since a whole batch ran out of memory; null = whole batches
            "members_at_once": _INT,  # that go through the model, since more ran out of memory; null = all of a pass
            "backend": _TEXT,
            "duplicate_of": _INT,
            "started": _TIME,
            "ended": _TIME,
        },
        key=("trial",),
        json=("config", "params", "setting"),
    ),
    # The runs that a population's trial trains together.
    "members": Kind(
        {
            "trial": _INT,
            "member": _INT,  # from 0, in the order of settings and then seeds
            "seed": _INT,
            "setting": _TEXT,  # JSON: the population's keys and this member's values
            "status": _TEXT,  # completed, failed, dropped (another seed of its setting failed), or as the trial ended
            "reason": _TEXT,
            "best_epoch": _INT,
            "epochs": _INT,
            **_metrics("val_"),  # at its own best epoch
            **_metrics("test_"),  # of the finalists' best settings
        },
        key=("trial", "member"),
        json=("setting",),
    ),
    "epochs": Kind(
        {
            "trial": _INT,
            "epoch": _INT,
            "train_loss": _REAL,
            **_metrics("val_"),  # of a population, the score so far: means over seeds of their best epochs
            "std_error": _REAL,
            "learning_rate": _REAL,
            "seconds": _REAL,
            "sequences_per_s": _REAL,
            "micro_batch": _INT,
            "timestamp": _TIME,
        },
        key=("trial", "epoch"),
    ),
    "predictions": Kind(
        {
            "trial": _INT,  # null for baselines
            "model": _TEXT,  # family, or the baseline's name
            "part": _TEXT,
            "series": _TEXT,
            "time": _TEXT,  # label of the first horizon step, or of the sequence
            "step": _INT,  # 1..H
            "target": _TEXT,
            "actual": _REAL,
            "predicted": _REAL,
        },
        key=("trial", "model", "part"),
        whole=True,
    ),
    # The errors of every sample of the test part, where not all predictions are kept.
    "squares": Kind(
        {
            "trial": _INT,  # the first five as in `predictions`
            "model": _TEXT,
            "part": _TEXT,
            "series": _TEXT,
            "time": _TEXT,
            "square": _REAL,  # squared error, its mean over steps and targets
        },
        key=("trial", "model", "part"),
        whole=True,
    ),
    # What each input is worth to the best trial: its errors on the test part when that input is another sample's.
    "importance": Kind(
        {
            "trial": _INT,
            "input": _TEXT,  # a column of the data, all values of a category together; null = inputs as they are
            "series": _TEXT,  # of a sample, as in `predictions`
            "time": _TEXT,
            "square": _REAL,  # squared error, its mean over steps, targets, shuffles and seeds
        },
        key=("trial", "input"),
        whole=True,
    ),
    # How often the best trial's intervals, and quantiles where it forecasts some, held on the test part.
    "coverage": Kind(
        {
            "trial": _INT,
            "kind": _TEXT,  # interval, quantile
            "level": _REAL,  # what was promised
            "share": _REAL,  # of the values, inside the interval, or at or below the quantile
            "width": _REAL,  # of the intervals, on average; null for quantiles and where targets differ in units
            "samples": _INT,  # windows or sequences
        },
        key=("trial", "kind", "level"),
    ),
    "baselines": Kind(
        {"name": _TEXT, "part": _TEXT, **_metrics(), "settings": _TEXT}, key=("name", "part"), json=("settings",)
    ),
    # Finalists are scored once, after the search, when their rows in `trials` are long written. Blank where a trial
    # went on after that, when the search was resumed.
    "scores": Kind(
        {
            "model": _TEXT,
            "trial": _INT,
            "part": _TEXT,
            **_metrics(),  # of a population, the mean over the seeds of its best setting
            "seeds": _INT,  # null where a trial is one model
            **{f"{name}_std_error": _REAL for name in METRICS},
        },
        key=("model", "trial", "part"),
    ),
}
SCHEMAS: dict[str, pa.Schema] = {name: kind.schema for name, kind in KINDS.items()}
_MAY_BE_NULL = {("predictions", "trial"), ("scores", "trial")}


def rows_to_table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Plain rows as a table of the schema."""
    return pa.Table.from_pylist(rows, schema=SCHEMAS[name])


def plain_row(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Every column of the table, as values that JSON and Parquet both keep. Times become ms since 1970."""
    kind = KINDS[name]
    for column in row:
        check_column(name, column)
    for column in kind.key:
        if row.get(column) is None and (name, column) not in _MAY_BE_NULL:
            raise KeyError(f"table '{name}' needs the column '{column}' in every row")
    return {
        column: _plain(f"{name}.{column}", row.get(column), type_, column in kind.json)
        for column, type_ in kind.columns.items()
    }


def _plain(where: str, value: Any, type_: pa.DataType, is_json: bool) -> Any:
    if value is None:
        return None
    if type_ == _TEXT:
        if is_json and isinstance(value, Mapping):
            return json.dumps(value, sort_keys=True, ensure_ascii=False)
        if isinstance(value, str):
            return str(value)
    elif type_ == _TIME:
        if isinstance(value, datetime) and value.tzinfo is not None:
            return round(value.astimezone(UTC).timestamp() * 1000)
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            return round(float(value) * 1000)
    elif type_ == _INT:
        if isinstance(value, numbers.Integral) and not isinstance(value, bool):
            return int(value)
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    raise TypeError(f"{where} must be {type_}, got {value!r}")


def check_column(table: str, column: str) -> None:
    """Raises KeyError with the nearest column that exists."""
    if column not in KINDS[table].columns:
        raise KeyError(f"table '{table}' has no column '{column}'; {did_you_mean(column, KINDS[table].columns)}")
