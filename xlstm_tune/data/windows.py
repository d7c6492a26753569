"""Standardised arrays that every trial shares, and one part of them as tensors on a device. `prepare` makes them.

R rows, F inputs, K targets, N samples, S series or sequences, C static inputs; a batch is B samples.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xlstm_tune.data.cut import PARTS

if TYPE_CHECKING:  # training needs neither tables nor what reads them
    from xlstm_tune.data.scaling import Scaling


class Rounded(NamedTuple):
    """The data as earlier programs had them, which rounded all inputs to float32 before they standardised them."""

    fingerprint: str
    columns: tuple[str, ...]
    """Inputs of which little or nothing is left by that."""


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
    static: np.ndarray | None = None
    """[S, C] float32, standardised over the series that training samples come from; None without static inputs."""
    static_names: tuple[str, ...] = ()
    """C names."""
    series: np.ndarray | None = None
    """int64 [N]: the row of `static` for each sample; None without static inputs."""
    scaling: Scaling | None = None
    """What the columns were standardised by; None for arrays that were made by hand."""
    target_minimum: float | None = None
    """In the targets' units: no forecast goes below it; None = there is none."""
    rounded: Rounded | None = None
    """None where no input is rounded by much."""

    @property
    def floor(self) -> tuple[float, ...]:
        """`target_minimum` of each of K targets, standardised; () without one."""
        return standardised_floor(self.target_minimum, self.target_mean, self.target_std)

    def in_units(self, standardised: np.ndarray) -> np.ndarray:
        """Forecasts or targets [.., K] in the targets' units, float64."""
        values: np.ndarray = standardised.astype(np.float64) * self.target_std + self.target_mean
        if self.target_minimum is None:
            return values
        # Models know the floor in float32, and what they cut off there is the minimum itself.
        at_floor = standardised <= np.array(self.floor, dtype=np.float32)
        return np.where(at_floor, self.target_minimum, np.maximum(values, self.target_minimum))

    @property
    def shortest(self) -> int:
        """Steps that every sample has before its end."""
        return int((self.ends - self.starts).min())


def standardised_floor(minimum: float | None, mean: np.ndarray, std: np.ndarray) -> tuple[float, ...]:
    """The least value of targets in deviations [K] from their means [K]; () for None."""
    return () if minimum is None else tuple(((minimum - mean) / std).tolist())


class Batch(NamedTuple):
    """Samples for a model, float32 and standardised."""

    x: Tensor
    """[B, L, F]; shorter sequences are padded with zeros on the right."""
    y: Tensor
    """[B, H, K]."""
    lengths: Tensor | None
    """int64 [B], steps of x that are real; None where no sample of the part is shorter than L."""
    static: Tensor | None
    """[B, C]; None without static inputs."""


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
        self.padded = bool(self.lookback > reach.min())
        """Some samples are shorter than the lookback: batches come with lengths."""
        self._features = _share(prepared.features, device)
        self._targets = _share(prepared.targets, device)
        self._samples = _share(samples, device)
        self._starts = _share(prepared.starts[samples], device)
        self._ends = _share(prepared.ends[samples], device)
        self._static = None if prepared.static is None else _share(prepared.static, device)
        self._series = None if prepared.series is None else _share(prepared.series[samples], device)
        self._steps = torch.arange(self.lookback, device=device)
        self._future = torch.arange(self.horizon, device=device)

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, index: Tensor) -> Batch:
        """The samples at positions `index` of the part.

        A regression's sequence that is longer than L gives its last L steps; a shorter one stands at the front of x.
        """
        index = index.to(self._ends.device)
        ends = self._ends[index]
        static = None if self._static is None or self._series is None else self._static[self._series[index]]
        if self.padded:
            lengths = (ends - self._starts[index]).clamp(max=self.lookback)
            rows = (ends - lengths).unsqueeze(1) + self._steps  # [B, L]
            padding = self._steps >= lengths.unsqueeze(1)
            x = _gather(self._features, rows.clamp(max=len(self._features) - 1))
            x = x.masked_fill_(padding.unsqueeze(2), 0.0)
        else:
            lengths = None
            x = _gather(self._features, (ends - self.lookback).unsqueeze(1) + self._steps)
        if self._forecast:
            y = _gather(self._targets, ends.unsqueeze(1) + self._future)
        else:
            y = self._targets[self._samples[index]].unsqueeze(1)
        return Batch(x, y, lengths, static)


def _gather(table: Tensor, rows: Tensor) -> Tensor:
    """Rows [B, T] of table [R, C] as [B, T, C]."""
    return table.index_select(0, rows.flatten()).view(*rows.shape, table.shape[1])


def _share(array: np.ndarray, device: torch.device | str) -> Tensor:
    with warnings.catch_warnings():
        # The arrays are read-only because trials share them; nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.to(device)
