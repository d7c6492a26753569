"""What each input is worth to the winner: how far it is off on the test part when that input is another sample's.

Permutation importance (Breiman 2001, "Random forests"; Fisher, Rudin & Dominici 2019, "All models are wrong, but many
are useful"), of whole windows or sequences: an input keeps its course through time, and belongs to another sample.

n samples, L steps, F inputs, C static inputs, H horizon steps, K targets.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xlstm_tune.data.calendar import cycle_names
from xlstm_tune.data.columns import column_of
from xlstm_tune.data.windows import Batch, Prepared, Windows
from xlstm_tune.models.drawn import drawn
from xlstm_tune.search.finals.finalists import Finalist, in_a_task, load_models
from xlstm_tune.search.persistence.store import Shared
from xlstm_tune.search.placement.resources import Placement
from xlstm_tune.search.variables import switch
from xlstm_tune.spec import SearchSpec
from xlstm_tune.training.judge import forecasts

IMPORTANCE = "XLSTM_TUNE_IMPORTANCE"
"""Environment variable: `off` leaves the inputs' importance out."""
PART = "test"
SHUFFLES = 5
"""Of each input, each with other samples: fewer where time is short."""
MOST_SAMPLES, FEWEST_SAMPLES = 1000, 30
"""Looked at, drawn evenly over the part; fewer where time is short."""
LEAST_SECONDS, SHARE = 5.0, 0.05
"""The time that it is fitted into: so much, or this share of what the winner's training took."""
MOST_SECONDS = 60.0
"""The time, if it is more than that, beyond which the fewest samples are not looked at either."""


@dataclass(frozen=True)
class Input:
    """What is shuffled at a time."""

    name: str
    columns: tuple[int, ...]
    """Of the F inputs: several for a category, each of whose values is one."""
    static: tuple[int, ...] = ()
    """Of the C static inputs."""


@dataclass(frozen=True)
class Importance:
    """The winner's squared errors, each the mean over steps, targets, shuffles and seeds, in the target's own units."""

    samples: npt.NDArray[np.int64]
    """[n] positions in the part."""
    squares: dict[str | None, npt.NDArray[np.float64]]
    """By the input that was shuffled; None: nothing was. [n] each."""


class Shuffled:
    """Some samples of a part, one input of each being that of another sample."""

    def __init__(self, windows: Windows, samples: Tensor, one: Input | None = None, donors: Tensor | None = None):
        """samples, donors: int64 [n], positions in the part; donors: whose input each sample gets."""
        self._windows, self._samples, self._one, self._donors = windows, samples, one, donors

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, index: Tensor) -> Batch:
        """The samples at positions `index` of these."""
        index = index.to(self._samples.device)
        own = self._windows.batch(self._samples[index])
        if self._one is None or self._donors is None:
            return own
        other = self._windows.batch(self._donors[index])
        if columns := list(self._one.columns):
            own.x[:, :, columns] = other.x[:, :, columns]
            if own.lengths is not None:  # a longer donor must not reach into the padding
                steps = torch.arange(own.x.shape[1], device=own.x.device)
                own.x.masked_fill_((steps >= own.lengths.unsqueeze(1)).unsqueeze(2), 0.0)
        if (static := list(self._one.static)) and own.static is not None and other.static is not None:
            own.static[:, static] = other.static[:, static]
        return own


def inputs_of(data: Prepared, categories: Sequence[str], calendar: Sequence[str] = ()) -> list[Input]:
    """The columns of the data that the model sees, in its order.

    All values of a category (`weather=rain`) are one, and both columns of a cycle of the calendar, `data.calendar`: one
    without the other would be a date that there is not.
    """
    cycles = {name: f"calendar: {cycle}" for name, cycle in cycle_names(calendar).items()}
    columns: dict[str, list[int]] = {}
    static: dict[str, list[int]] = {}
    for names, found in ((data.feature_names, columns), (data.static_names, static)):
        for position, name in enumerate(names):
            whole = cycles.get(name) or column_of(name, categories)
            found.setdefault(whole, []).append(position)
    every = dict.fromkeys([*columns, *static])
    return [Input(name, tuple(columns.get(name, ())), tuple(static.get(name, ()))) for name in every]


def measure(
    folder: Path,
    one: Finalist,
    spec: SearchSpec,
    data: Prepared,
    trained: float,
    device: torch.device | None = None,
) -> Importance | str:
    """The errors of a finalist, with each input shuffled and with none; a sentence where there is no time or no sample.

    trained: seconds that its training took. device: as for `load_models`. What is drawn is the same for the same
    `search.seed` and number of samples, which follows from the time that a pass takes.
    """
    models, config, device, dtype = load_models(folder, one, spec, data, device)
    windows = Windows(data, PART, config.lookback, device)
    if len(windows) < 2:
        return "the test part has a single sample"
    inputs = inputs_of(data, spec.data.categories, spec.data.calendar)

    def squares(shuffled: Shuffled) -> npt.NDArray[np.float64]:
        total = np.zeros(len(shuffled))
        for model in models:
            errors = [predicted.double() - actual.double() for predicted, actual in forecasts(model, shuffled, dtype)]
            total += np.square(torch.cat(errors).cpu().numpy() * data.target_std).mean((1, 2))
        return total / len(models)

    def onto(positions: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(positions).to(device)

    few = drawn(len(windows), FEWEST_SAMPLES)
    squares(Shuffled(windows, onto(few[:2])))  # what a first call takes longer is no measure of the others
    began = time.monotonic()
    squares(Shuffled(windows, onto(few)))
    each = (time.monotonic() - began) / len(few) * len(inputs)  # seconds for a sample with every input shuffled once
    allowed = max(LEAST_SECONDS, SHARE * trained)
    if each * len(few) > max(MOST_SECONDS, allowed):
        return f"{len(inputs)} inputs would take about {each * len(few):.0f} s"
    room = int(min(allowed / max(each, 1e-9), SHUFFLES * MOST_SAMPLES))
    samples = drawn(len(windows), min(MOST_SAMPLES, max(FEWEST_SAMPLES, room)))
    shuffles = min(SHUFFLES, max(1, room // len(samples)))
    found: dict[str | None, npt.NDArray[np.float64]] = {None: squares(Shuffled(windows, onto(samples)))}
    for number, changed in enumerate(inputs):
        generator = np.random.default_rng([spec.search.seed, number])
        total = np.zeros(len(samples))
        for _ in range(shuffles):
            donors = samples[_others(len(samples), generator)]
            total += squares(Shuffled(windows, onto(samples), changed, onto(donors)))
        found[changed.name] = total / shuffles
    return Importance(samples, found)


def measure_remotely(
    store: Shared, one: Finalist, spec: SearchSpec, data: Any, placement: Placement, trained: float
) -> Importance | str:
    """`measure` by a Ray task with a trial's own resources. data, store: as for `finalists.predict_remotely`."""
    import ray

    task = ray.remote(num_cpus=placement.cpus, num_gpus=placement.gpus)(_measure_task)
    found: Importance | str = ray.get(task.remote(store, one, spec.model_dump(by_alias=True), data, trained))
    return found


def _measure_task(
    store: Shared, one: Finalist, raw: dict[str, Any], data: Prepared, trained: float
) -> Importance | str:
    with in_a_task(store, one):
        return measure(store.folder, one, SearchSpec.parse(raw), data, trained)


def importance_columns(trial: int, found: Importance, labels: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Columns of the importance table. labels: (series, time) of each sample of the part."""
    series, times = zip(*(labels[sample] for sample in found.samples), strict=True)
    each, n = len(found.squares), len(found.samples)
    return {
        "trial": [trial] * each * n,
        "input": [name for name in found.squares for _ in range(n)],
        "series": series * each,
        "time": times * each,
        "square": np.concatenate(list(found.squares.values())),
    }


def wanted() -> bool:
    """Whether the environment leaves it on. Raises SpecError for a wrong value."""
    return switch(IMPORTANCE)


def _others(n: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """For each of n, another one, each once: a random circle."""
    order = generator.permutation(n)
    others = np.empty(n, dtype=np.int64)
    others[order] = np.roll(order, 1)
    return others
