"""A search that has been checked from end to end: everything that can be refused is refused here, before it starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xlstm_tune.data.calendar import cycle_names
from xlstm_tune.data.derived import fixed_inputs
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.table import Table, load_table
from xlstm_tune.data.windows import Prepared
from xlstm_tune.data.words import count, listing
from xlstm_tune.errors import StorageError, reaching
from xlstm_tune.models.baselines import JUDGED, Baseline, baselines, best_possible
from xlstm_tune.search.persistence.folder import check_folder, check_password, check_same_data, find_folder
from xlstm_tune.search.persistence.resume import check_enough_trials, check_same_search
from xlstm_tune.search.persistence.store import Remote, Shared, make_store
from xlstm_tune.search.placement.packing import largest_trial, local_gpu_mib, pack, room_on_cpu
from xlstm_tune.search.placement.resources import Placement, check_cluster, local_resources, packable, place
from xlstm_tune.search.sampling.fusion import widest
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.spec import DEFAULT_TRIALS, SearchSpec
from xlstm_tune.storage.copy import kept_at
from xlstm_tune.strict import counted
from xlstm_tune.tracking import check_tracking_uri, default_uri, remembered_uri
from xlstm_tune.tracking.spool import address_path
from xlstm_tune.tracking.uri import sqlite_path
from xlstm_tune.training.loop import shape_of


@dataclass(frozen=True)
class Plan:
    """What will be run, on what, where."""

    spec: SearchSpec
    space: Space
    table: Table
    data: Prepared
    baselines: list[Baseline]
    best_possible: dict[str, float] | None
    """RMSE of the known conditional mean per part; None where nobody knows it."""
    folder: Path
    tracking_uri: str
    address: str | None
    placement: Placement | None
    """None: it depends on the cluster at `address`."""
    resume: bool = False
    """The folder holds an earlier part of this search."""
    refit: bool = False
    """The winner is trained again on training and validation part."""
    storage: str = ""
    """As it was given, without credentials; empty = the folder's parent."""
    kept: Remote | None = None
    """How machines hand each other the search's files; None = they all see the folder."""

    @property
    def store(self) -> Shared:
        """How machines hand each other the search's files."""
        return self.kept or Shared(self.folder)

    @property
    def trials(self) -> int:
        """Distinct configurations that will be trained."""
        return wanted_trials(self.spec, self.space)

    @property
    def exhausted(self) -> bool:
        """These trials are all that there is to train: a grid's distinct points, or a finite space."""
        grid = self.spec.search.algorithm == "grid"
        return self.trials == (len(self.space.grid().points) if grid else self.space.count())

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What the user should know before the search starts, one sentence each."""
        lost = _levels_lost(self.spec, self.space, self.table)
        return (*self.data.notes, *self.space.notes, *_no_space(self.spec), *_idle_scheduler(self.spec), *lost)

    def size(self) -> str:
        """How much there is to search: `176 points, 16 of them repeat another: 160 distinct configurations`."""
        if self.spec.search.algorithm != "grid":
            return self.space.describe()
        grid = self.space.grid()
        repeats = f", {grid.duplicates} of them repeat another" if grid.duplicates else ""
        return f"{counted(grid.size, 'point')}{repeats}: {counted(len(grid.points), 'distinct configuration')}"


def make_plan(
    spec: SearchSpec,
    space: Space,
    storage: str,
    tracking_uri: str | None,
    address: str | None,
    resume: bool = False,
    refit: bool = False,
    elsewhere: str | None = None,
    dry: bool = False,
) -> Plan:
    """Check resources, storage, tracking and data, in the order of what is quickest to refuse.

    elsewhere: the file of the cluster whose head will run the search; its resources and its MLflow are not looked at.
    dry: nothing will be run, so that the name may be taken.
    Raises UserError with one sentence.
    """
    # Not at the head of this module: what reads the variables is handed a Plan.
    from xlstm_tune.search.environment import check_environment

    check_environment()
    check_password(spec)
    if address:
        check_cluster(address)
    here = local_resources()
    placement = None if address or elsewhere else place(spec.resources, here)
    folder = find_folder(storage, spec.name) if resume else check_folder(storage, spec.name, may_be_taken=dry)
    if resume:
        check_same_search(folder, spec)
        check_enough_trials(folder, spec)
    kept = make_store(storage, folder, spec.resources.trial_timeout)
    uri = tracking_uri or _tracked_at(folder, resume)
    if not elsewhere:
        check_tracking_uri(uri)
        if spec.search.storage is not None:
            from xlstm_tune.search.sampling.database import check_database  # loads SQLAlchemy

            check_database(spec, folder, resume)
    table, data = check_data(spec, space)
    data = _without_groups(table, data)
    if placement:
        placement = fit(placement, spec, space, data, here, local_gpu_mib)
    if resume:
        check_same_data(folder, data.fingerprint, data.rounded)
    return Plan(
        spec=spec,
        space=space,
        table=table,
        data=data,
        baselines=baselines(data, sample_groups(table, data), table.targets),
        best_possible=best_possible(data),
        folder=folder,
        tracking_uri=uri,
        address=address or elsewhere,
        placement=placement,
        resume=resume,
        refit=refit,
        storage=kept.where.shown if kept else "",
        kept=kept,
    )


def check_data(spec: SearchSpec, space: Space) -> tuple[Table, Prepared]:
    """The data, read and cut for the search. Raises DataError or SpecError."""
    table = load_table(spec.data)
    data = prepare(table, spec.data, spec.max_lookback())
    check_models(spec, space, data)
    return table, data


def chosen_uri(storage: Path) -> str:
    """Where MLflow's runs go without --tracking-uri: MLflow's own environment variable, else a file in the storage."""
    return os.environ.get("MLFLOW_TRACKING_URI") or default_uri(storage)


def _no_space(spec: SearchSpec) -> list[str]:
    """A note where many trials are asked for, and the file leaves nothing to search."""
    if spec.space or (spec.search.trials or 1) == 1:
        return []
    return [
        f"search.trials is {spec.search.trials:,}, but without a space there is one configuration to train; "
        "give what is searched, for example space: {model.family: {choice: [lstm, slstm, mlstm]}}"
    ]


def _idle_scheduler(spec: SearchSpec) -> list[str]:
    """A note where the scheduler can stop nothing, which was hardly meant."""
    search, epochs = spec.search, spec.max_epochs()
    if search.scheduler == "none" or search.grace_epochs is None or search.grace_epochs < epochs:
        return []
    return [
        f"search.scheduler '{search.scheduler}' stops no trial early, since search.grace_epochs is "
        f"{search.grace_epochs:,} and no trial trains more than {count(epochs, 'epoch')}; "
        "give fewer grace_epochs, or scheduler: none"
    ]


def _levels_lost(spec: SearchSpec, space: Space, table: Table) -> list[str]:
    """A note where models see each window by its changes alone, and some inputs have none."""
    searched = [domain.listed for domain in space.domains if domain.key == "model.instance_norm"]
    values = searched[0] if searched else (spec.model.instance_norm,)
    if spec.data.task != "forecast" or not {"last", "reversible"} & set(values):
        return []
    of_calendar = cycle_names(spec.data.calendar)
    fixed = [name for name in fixed_inputs(table, spec.data.categories) if name not in of_calendar]
    if not fixed:
        return []
    them = "it" if len(fixed) == 1 else "them"
    instead = " in place of data.features" if set(fixed) & set(spec.data.features) else ""
    return [
        f"{listing(fixed, 'input')} never change{'s' if len(fixed) == 1 else ''} within a series, so that models with "
        f"model.instance_norm, which takes each input's last value or mean away, cannot see {them}; name {them} in "
        f"data.static{instead}"
    ]


def _tracked_at(folder: Path, resume: bool) -> str:
    """Where the runs of a search go that says nothing of it: where they went before, where that is."""
    here = chosen_uri(folder.parent)
    with reaching(address_path(folder), StorageError):
        if not resume or not address_path(folder).is_file():
            return here
        uri = remembered_uri(folder)
        # A database on another machine's disk; all runs are made again here, from the spool.
        return here if uri.startswith("sqlite") and not sqlite_path(uri).exists() and kept_at(folder) else uri


def wanted_trials(spec: SearchSpec, space: Space) -> int:
    """Distinct configurations that a search will train."""
    asked = spec.search.trials
    if spec.search.algorithm == "grid":
        points = len(space.grid().points)
        return min(asked or points, points)
    asked = asked or DEFAULT_TRIALS
    return min(asked, space.count() or asked)


def fit(
    placement: Placement,
    spec: SearchSpec,
    space: Space,
    data: Prepared,
    available: Mapping[str, float],
    gpu_mib: Callable[[], float | None],
    where: str = "this machine",
    fullest: int | None = None,
) -> Placement:
    """The placement with as many trials on a GPU, and as many configurations in a trial, as memory holds.

    gpu_mib: tells the memory of the smallest GPU; 0 where torch finds none, None where none told it in time, and then
    nothing shares one. fullest: the most trials on one node; None = all are on one.
    """
    trials = wanted_trials(spec, space)
    width = widest(spec, space, trials, placement.gpus > 0)
    if not placement.gpus:
        return replace(placement, width=room_on_cpu(spec, space, data, width, fullest or placement.concurrent))
    if not packable(spec.resources, available):
        return replace(placement, width=width)
    if not (memory := gpu_mib()):
        untold = "no GPU of the cluster told its memory in time"
        unseen = "torch finds none where Ray has them, and trials train on processors there"
        return replace(placement, why=f"each trial has a GPU to itself: {untold if memory is None else unseen}")
    packing = pack(largest_trial(spec, space, data), memory, spec.resources, available, width, trials)
    placed = place(spec.resources, available, where, packing.share, packing.why)
    return replace(placed, width=packing.width)


def check_models(spec: SearchSpec, space: Space, data: Prepared) -> None:
    """Raise SpecError when the space holds models that cannot serve sequences of the lengths that the data have.

    What the search file alone shows has been refused before.
    """
    if data.task == "forecast":
        return
    seen: set[tuple[tuple[str, Any], ...]] = set()
    for point in space.examples():
        params = {key: value for key, value in point.items() if not key.startswith("training.")}
        if (identity := tuple(params.items())) in seen:
            continue
        seen.add(identity)
        config = spec.combine(params)
        shape = shape_of(data, config)
        config.model.check_problem(False, shape.lookback, shape.varying)


def sample_groups(table: Table, data: Prepared) -> npt.NDArray[np.int64] | None:
    """A number per sample: that of its values of `group_columns`. None where there are none, as for forecasts."""
    chosen = group_columns(table, data)
    return _numbers(_sample_keys(table, data)[:, [table.key_names.index(name) for name in chosen]]) if chosen else None


def group_columns(table: Table, data: Prepared) -> tuple[str, ...]:
    """The key columns by which a regression's sequences have known groups (the county of county × year).

    Those whose values on validation and test all occur in training, and together too: a year to come says nothing, in
    whichever order the columns are named. Of columns that do not go together the one with most values stays.
    """
    if data.task != "regression":
        return ()
    keys = _sample_keys(table, data)
    judged = np.concatenate([data.parts[part] for part in JUDGED])
    values = {column: len(np.unique(keys[:, column])) for column in range(keys.shape[1])}
    chosen: list[int] = []
    for column in sorted(values, key=lambda column: (-values[column], table.key_names[column])):
        numbers = _numbers(keys[:, [*chosen, column]])
        if values[column] > 1 and np.isin(numbers[judged], numbers[data.parts["train"]]).all():
            chosen.append(column)
    return tuple(table.key_names[column] for column in sorted(chosen))


def _sample_keys(table: Table, data: Prepared) -> npt.NDArray[np.str_]:
    """[N, key columns]"""
    series = np.searchsorted(table.offsets, data.ends - 1, side="right") - 1
    return np.array(table.keys, dtype=str).reshape(len(table.keys), len(table.key_names))[series]


def _numbers(keys: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _without_groups(table: Table, data: Prepared) -> Prepared:
    """With a note where sequences of several keys have no known group."""
    if data.task != "regression" or len(table.key_names) < 2 or group_columns(table, data):
        return data
    note = (
        f"no baseline group_mean: no column of data.sequence ({', '.join(table.key_names)}) has all of its values on "
        "validation and test in the training part too"
    )
    return replace(data, notes=(*data.notes, note))
