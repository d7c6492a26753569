"""Standardised arrays that every trial shares, and one part of them as tensors on a device.

R rows, F inputs, K targets, N samples; a batch is B samples: x [B, L, F] and y [B, H, K].
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xlstm_tune.data.clock import season_of
from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.cut import PARTS
from xlstm_tune.data.split import Split, check_no_leak, split
from xlstm_tune.data.table import Table
from xlstm_tune.data.words import listing
from xlstm_tune.errors import DataError


@dataclass(frozen=True)
class Prepared:
    """All that a trial needs of the data: read-only numpy arrays, put into the object store once."""

    task: str
    features: np.ndarray
    """[R, F] float32, standardised by the mean and deviation of the training part (deviation 1 if constant)."""
    targets: np.ndarray
    """float32, standardised; forecast [R, K] by row, regression [N, K] by sample."""
    starts: np.ndarray
    """int64 [N]: first row that a sample may see."""
    ends: np.ndarray
    """int64 [N]: one past its last input row; a forecast's horizon is ends[n] .. ends[n] + H - 1."""
    parts: dict[str, np.ndarray]
    """train, validation, test → int64 sample numbers."""
    target_mean: np.ndarray
    """[K] float64, of the training part in the target's units."""
    target_std: np.ndarray
    """[K] float64."""
    target_columns: tuple[int, ...]
    """Column of each target among the features; () for a regression."""
    feature_names: tuple[str, ...]
    target_names: tuple[str, ...]
    horizon: int
    """H; 1 for a regression."""
    lookback: int
    """L of the search file; the longest sequence for a regression without one."""
    season: int
    """Natural period in steps; 1 = none known."""
    oracle: np.ndarray | None
    """[N, K] float64, known conditional mean in the target's units."""
    notes: tuple[str, ...]
    fingerprint: str
    """SHA-256 over the data and how they are cut."""


def prepare(table: Table, config: DataConfig, max_lookback: int | None = None) -> Prepared:
    """Split the table, and standardise it by its training part alone.

    `max_lookback` is the largest lookback that any trial may ask for; None means the search file's own. Raises
    DataError when a part has no sample or a target is constant in the training part.
    """
    lookback = config.lookback or int(np.diff(table.offsets).max())
    largest = max(lookback, max_lookback or 0)
    result = split(table, config, largest)
    check_no_leak(table, result, config)
    forecast = config.task == "forecast"
    notes = [*table.notes, *result.notes]

    seen = result.train_rows if forecast else result.parts["train"]
    mean, std = _target_statistics(table, seen)
    targets = ((table.targets - mean) / std).astype(np.float32)
    columns = _columns(table, result, notes)
    names = tuple(table.features[column] for column in columns)
    target_columns = tuple(names.index(name) for name in table.target_names) if forecast else ()
    features = np.empty((len(table.values), len(columns)), dtype=np.float32)
    constant = []
    for position, column in enumerate(columns):
        if position in target_columns:
            # The same numbers as the target, so that "last value" means the same in both.
            features[:, position] = targets[:, target_columns.index(position)]
            continue
        # One column at a time: float64 of the whole table would take twice its memory.
        cells = table.values[:, column].astype(np.float64)
        low, high = cells[result.train_rows].min(), cells[result.train_rows].max()
        center, spread = (low, 1.0) if low == high else _moments(cells[result.train_rows])
        features[:, position] = (cells - center) / spread
        if low == high and column not in table.one_hot:
            constant.append(names[position])
    if constant:
        what = "input is" if len(constant) == 1 else "inputs are"
        notes.append(f"{len(constant)} {what} constant in the training part: {listing(constant, 'input')}")
    for array in (features, targets, mean, std, result.starts, result.ends, *result.parts.values()):
        array.flags.writeable = False
    digest = hashlib.sha256(table.fingerprint.encode())
    digest.update(f"{config.model_dump_json(exclude={'source'})} {largest}".encode())
    return Prepared(
        task=config.task,
        features=features,
        targets=targets,
        starts=result.starts,
        ends=result.ends,
        parts=result.parts,
        target_mean=mean,
        target_std=std,
        target_columns=target_columns,
        feature_names=names,
        target_names=table.target_names,
        horizon=config.horizon,
        lookback=lookback,
        season=config.season or season_of(table.step, table.time_kind),
        oracle=table.oracle,
        notes=tuple(notes),
        fingerprint=digest.hexdigest(),
    )


def _target_statistics(table: Table, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[K] mean and [K] deviation of the observed targets of the training part. `seen`: rows or samples of it."""
    moments = []
    for column, name in enumerate(table.target_names):
        cells = table.targets[seen, column][table.observed[seen, column]]
        if not len(cells):
            raise DataError(f"the target '{name}' has no value in the training part; change data.split")
        if cells.min() == cells.max():
            raise DataError(
                f"the target '{name}' is constant in the training part ({cells[0]:g} in all {len(cells)} "
                f"{'values' if len(cells) > 1 else 'value'}), so there is nothing to learn; "
                f"predict another column or change data.split"
            )
        moments.append(_moments(cells))
    mean, std = (np.array(values) for values in zip(*moments, strict=True))
    return mean, std


def _moments(cells: np.ndarray) -> tuple[float, float]:
    """Mean and deviation of float64 cells; deviation 1 where rounding leaves none."""
    std = float(cells.std())
    return float(cells.mean()), std if std > 0 else 1.0


def _columns(table: Table, result: Split, notes: list[str]) -> list[int]:
    """Columns to keep: values of categories that never occur in the training part say nothing there."""
    unseen = {column for column in table.one_hot if not table.values[result.train_rows, column].any()}
    if unseen:
        names = [table.features[column] for column in sorted(unseen)]
        verb = "occurs" if len(unseen) == 1 else "occur"
        notes.append(
            f"{listing(names, 'value')} {verb} only outside the training part and cannot be learnt from, so left out"
        )
    columns = [column for column in range(len(table.features)) if column not in unseen]
    if not columns:
        raise DataError("no input is left: every value of the categories occurs only outside the training part")
    return columns


class Windows:
    """One part of the data on a device; on the CPU it shares the memory of the arrays it is given."""

    def __init__(
        self, prepared: Prepared, part: str, lookback: int | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """`lookback` L: None means the search file's. Raises ValueError for an unknown part or a forecast's lookback
        that reaches before the first row of a sample's series."""
        if part not in PARTS:
            raise ValueError(f"part must be one of {', '.join(PARTS)}, got '{part}'")
        self.lookback = prepared.lookback if lookback is None else lookback
        self.horizon = prepared.horizon
        samples = prepared.parts[part]
        reach = prepared.ends[samples] - prepared.starts[samples]
        self._forecast = prepared.task == "forecast"
        if self.lookback < 1 or (self._forecast and self.lookback > reach.min()):
            raise ValueError(
                f"lookback must be between 1 and {reach.min()}, what the shortest history in the {part} part allows, "
                f"got {self.lookback}; give prepare() the largest lookback as max_lookback"
            )
        self._padded = bool(self.lookback > reach.min())
        self._features = _share(prepared.features, device)
        self._targets = _share(prepared.targets, device)
        self._samples = _share(samples, device)
        self._starts = _share(prepared.starts[samples], device)
        self._ends = _share(prepared.ends[samples], device)
        self._past = torch.arange(-self.lookback, 0, device=device)
        self._future = torch.arange(self.horizon, device=device)

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, L, F] and y [B, H, K], float32 and standardised, of the samples at positions `index` of the part.

        A regression's sequence that is longer than L gives its last L steps; a shorter one is preceded by zeros, the
        training mean.
        """
        index = index.to(self._ends.device)
        rows = self._ends[index].unsqueeze(1) + self._past  # [B, L]
        if self._padded:
            before = rows < self._starts[index].unsqueeze(1)
            x = _gather(self._features, rows.clamp(min=0)).masked_fill_(before.unsqueeze(2), 0.0)
        else:
            x = _gather(self._features, rows)
        if not self._forecast:
            return x, self._targets[self._samples[index]].unsqueeze(1)
        return x, _gather(self._targets, self._ends[index].unsqueeze(1) + self._future)


def _gather(table: Tensor, rows: Tensor) -> Tensor:
    """Rows [B, T] of table [R, C] as [B, T, C]."""
    return table.index_select(0, rows.flatten()).view(*rows.shape, table.shape[1])


def _share(array: np.ndarray, device: torch.device | str) -> Tensor:
    with warnings.catch_warnings():
        # The arrays are read-only because trials share them; nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.to(device)
