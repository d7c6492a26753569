"""After the search: the best of each family and block pattern are scored on the test part, once.

Test data decide nothing; they are looked at here for the first time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from xlstm_tune.data.table import Table
from xlstm_tune.data.windows import Prepared, Windows
from xlstm_tune.errors import CheckpointError, last_line
from xlstm_tune.models.baselines import JUDGED
from xlstm_tune.models.drawn import drawn
from xlstm_tune.models.forecaster import Forecaster, build_model
from xlstm_tune.report.contenders import contenders
from xlstm_tune.search.persistence.folder import WEIGHTS, member_folder, trial_folder
from xlstm_tune.search.persistence.store import Shared
from xlstm_tune.search.placement.resources import Placement, own_gpus_alone
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.checkpoint import load_weights
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.judge import predict
from xlstm_tune.training.loop import autocast_dtype, pick_device, shape_of
from xlstm_tune.training.members import standard_error
from xlstm_tune.training.metrics import score_units

Array = npt.NDArray[Any]
TEST = "test"
MOST_ROWS = 200_000
"""Predictions kept per model and part; of longer parts some windows are drawn, and the squared errors of all kept."""
MOST_RESIDUALS = 2_000_000
"""The same of the winner on validation: `predict` makes its intervals of these."""
ENOUGH_WINDOWS = 100
"""That are kept of these even so: intervals of 99 % take 99 of them."""
MOST_OF_ENOUGH = 5_000_000
"""Predictions that these may take together."""


@dataclass(frozen=True)
class Finalist:
    """A trial worth scoring on the test part."""

    number: int
    family: str
    params: dict[str, Any]
    members: tuple[int, ...] = ()
    """Every seed of a population's best setting, the best first; empty where the trial is one model."""


def finalists(
    trials: Iterable[dict[str, Any]], spec: SearchSpec, members: Iterable[dict[str, Any]] = ()
) -> list[Finalist]:
    """The trials that stand for their architectures (`contenders`); the first of them is the best of all.

    trials, members: rows of these tables; of the trials' JSON columns, `params` and `setting` as dicts.
    """
    objective = spec.search.objective
    best = contenders(trials, objective)
    chosen: dict[int, list[tuple[float, int]]] = {row["trial"]: [] for row in best}
    settings = {row["trial"]: row.get("setting") for row in best}
    for row in members:
        if row["trial"] in chosen and json.loads(row["setting"]) == settings[row["trial"]]:
            chosen[row["trial"]].append((row[objective], row["member"]))
    return [
        Finalist(row["trial"], row["family"], row["params"], tuple(m for _, m in sorted(chosen[row["trial"]])))
        for row in best
    ]


def load_models(
    folder: Path, one: Finalist, spec: SearchSpec, data: Prepared, device: torch.device | None = None
) -> tuple[list[Forecaster], TrialConfig, torch.device, torch.dtype | None]:
    """The models of a finalist's members, in their order, its settings, their device, and what they compute in.

    folder: of the search. device: None = the GPU where there is one, else the CPU. dtype: of autocast.
    """
    config, device = spec.resolve(one.params), pick_device(device)
    place = trial_folder(folder, one.number)
    models = []
    for each in [member_folder(place, member) for member in one.members] or [place]:
        model = build_model(config.model, shape_of(data, config))
        model.load_state_dict(load_weights(each / WEIGHTS))
        models.append(model.to(device))
    return models, config, device, autocast_dtype(config.training.precision, device)


def actual(table: Table, data: Prepared, part: str) -> Array:
    """What really happened in a part, as the table has it, [n, H, K] float64: back from float32, 31 is 30.999999."""
    samples = data.parts[part]
    if data.task == "regression":
        return np.asarray(table.targets[samples][:, None, :])
    return np.asarray(table.targets[data.ends[samples][:, None] + np.arange(data.horizon)])


def sample_labels(table: Table, data: Prepared, part: str) -> list[tuple[str, str]]:
    """(series, time) of each sample of a part: the time of a forecast's first step, of a sequence's last row."""
    rows = data.ends[data.parts[part]] - (data.task == "regression")
    series = np.searchsorted(table.offsets, rows, side="right") - 1
    return [(table.series_name(int(s)), table.time_label(int(row))) for s, row in zip(series, rows, strict=True)]


def prediction_columns(
    trial: int | None,
    model: str,
    part: str,
    predicted: Array,
    truth: Array,
    labels: Sequence[tuple[str, str]],
    targets: Sequence[str],
    intervals: bool = False,
) -> dict[str, Any]:
    """Long columns of the predictions table for one model and part.

    predicted, truth: [n, H, K] in the target's own units. labels: (series, time of the first step) of each sample.
    intervals: whether they are the winner's on validation, of which more are kept.
    """
    n, horizon, k = predicted.shape
    kept = drawn(n, most_windows(horizon * k, intervals))
    rows = len(kept) * horizon * k
    series, times = zip(*(labels[i] for i in kept), strict=True)
    return {
        "trial": [trial] * rows,
        "model": [model] * rows,
        "part": [part] * rows,
        "series": np.repeat(np.array(series, dtype=object), horizon * k),
        "time": np.repeat(np.array(times, dtype=object), horizon * k),
        "step": np.tile(np.repeat(np.arange(1, horizon + 1, dtype=np.int32), k), len(kept)),
        "target": np.tile(np.array(targets, dtype=object), len(kept) * horizon),
        "actual": truth[kept].reshape(-1),
        "predicted": predicted[kept].reshape(-1),
    }


def most_windows(size: int, intervals: bool = False) -> int:
    """How many windows of `size` = H · K predictions are kept; intervals: as for `prediction_columns`."""
    most = (MOST_RESIDUALS if intervals else MOST_ROWS) // size
    if intervals:
        most = max(most, min(ENOUGH_WINDOWS, MOST_OF_ENOUGH // size))
    return max(1, most)


class Judge:
    """What really happened in the judged parts, worked out once for all baselines and finalists."""

    def __init__(self, table: Table, data: Prepared) -> None:
        self._data = data
        self._truth = {part: actual(table, data, part) for part in JUDGED}
        self._labels = {part: sample_labels(table, data, part) for part in JUDGED}

    def truth(self, part: str) -> Array:
        """What happened in a part, in the target's own units, [n, H, K]."""
        return self._truth[part]

    def labels(self, part: str) -> list[tuple[str, str]]:
        """(series, time) of each sample of a part."""
        return self._labels[part]

    def metrics(self, part: str, predicted: Array) -> dict[str, float]:
        """Scores of predictions [n, H, K] in the target's own units."""
        return score_units(predicted, self._truth[part], self._data.target_std)

    def columns(
        self, trial: int | None, model: str, part: str, predicted: Array, intervals: bool = False
    ) -> dict[str, Any]:
        """The same predictions as columns of the predictions table; trial None = a baseline.

        intervals: as for `prediction_columns`.
        """
        truth, labels = self._truth[part], self._labels[part]
        return prediction_columns(trial, model, part, predicted, truth, labels, self._data.target_names, intervals)

    def squares(self, trial: int | None, model: str, predicted: Array) -> pa.Table | None:
        """The same of the test part as the squares table has it; None where `columns` leaves nothing out."""
        n, horizon, k = predicted.shape
        if n <= most_windows(horizon * k):
            return None
        who = {"trial": pa.nulls(n, pa.int64()) if trial is None else pa.repeat(trial, n), "model": pa.repeat(model, n)}
        square = pa.array(np.square(predicted - self._truth[TEST]).mean((1, 2)))
        return pa.table({**who, "part": pa.repeat(TEST, n), **self._tested, "square": square})

    @cached_property
    def _tested(self) -> dict[str, pa.Array]:
        """Series and times of the test part's samples."""
        series, times = zip(*self._labels[TEST], strict=True)
        return {"series": pa.array(series, pa.string()), "time": pa.array(times, pa.string())}


Scored = tuple[Finalist, list[dict[str, Array]] | CheckpointError]
"""A finalist with the predictions of its members, in their order; of one model where it has none. Or why there are no
predictions: its weights were removed or damaged."""


def predict_here(chosen: Sequence[Finalist], folder: Path, spec: SearchSpec, data: Prepared) -> Iterator[Scored]:
    """Predict on this machine's processors, in this process: new ones would load torch again, which takes longer."""
    for one in chosen:
        yield one, _or_why_not(partial(predict_finalist, folder, one, spec, data, torch.device("cpu")))


def predict_remotely(
    chosen: Sequence[Finalist], store: Shared, spec: SearchSpec, data: Any, placement: Placement
) -> Iterator[Scored]:
    """Predict by Ray tasks with a trial's own resources: on a GPU, or where the driver's machine is not the trials'.

    data: Ray's reference to the Prepared data that the trials used. store: of the search's files.
    """
    import ray

    task = ray.remote(num_cpus=placement.cpus, num_gpus=placement.gpus)(_predict_task)
    raw = spec.model_dump(by_alias=True)
    waiting = [task.remote(store, one, raw, data) for one in chosen]
    for one, answer in zip(chosen, waiting, strict=True):
        yield one, _or_why_not(partial(ray.get, answer))


def _or_why_not(predict: Callable[[], list[dict[str, Array]]]) -> list[dict[str, Array]] | CheckpointError:
    try:
        return predict()
    except CheckpointError as error:  # from a task it has a traceback before it
        return CheckpointError(last_line(error).removeprefix(f"{CheckpointError.__module__}.CheckpointError: "))


def _predict_task(store: Shared, one: Finalist, raw: dict[str, Any], data: Prepared) -> list[dict[str, Array]]:
    with in_a_task(store, one):
        return predict_finalist(store.folder, one, SearchSpec.parse(raw), data)


@contextmanager
def in_a_task(store: Shared, one: Finalist) -> Iterator[None]:
    """In a Ray task: a finalist's files are here, and torch sees the task's GPUs alone."""
    own_gpus_alone()
    store.pull(trial_folder(store.folder, one.number))
    try:
        yield
    finally:
        store.leave()


def predict_finalist(
    folder: Path, one: Finalist, spec: SearchSpec, data: Prepared, device: torch.device | None = None
) -> list[dict[str, Array]]:
    """Forecasts of the judged parts in the target's own units, [n, H, K], by each of its models."""
    models, config, device, dtype = load_models(folder, one, spec, data, device)
    windows = {part: Windows(data, part, config.lookback, device) for part in JUDGED}
    return [
        {part: data.in_units(predict(model, samples, dtype=dtype).numpy()) for part, samples in windows.items()}
        for model in models
    ]


def mean_scores(figures: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The scores-table columns of a population: every metric's mean over seeds, and its standard error."""
    columns: dict[str, Any] = {"seeds": len(figures)}
    for name in figures[0]:
        values = [one[name] for one in figures]
        columns[name], columns[f"{name}_std_error"] = fmean(values), standard_error(values)
    return columns
