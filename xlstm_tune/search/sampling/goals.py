"""What a trial is weighed by besides its error, and what is more than a search allows.

The size of a model is known before it is trained, so one that is too large is never begun; how long a forecast takes is
known after its first epoch. The sampler is told by how much a limit was passed (as a share of it), and learns from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xlstm_tune.data.windows import Prepared
from xlstm_tune.models.forecaster import count_parameters
from xlstm_tune.search.sampling.duplicates import TOO_LARGE, TOO_SLOW
from xlstm_tune.spec import Cost, SearchConfig, SearchSpec
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.loop import shape_of
from xlstm_tune.training.memory import estimate_trial


class Goals:
    """The costs and limits of one search. data: what the models are made for; None = nothing can be sized."""

    def __init__(self, search: SearchConfig, data: Prepared | None = None) -> None:
        self.costs: tuple[Cost, ...] = tuple(search.costs)
        self._limits = search.constraints
        self._data = data

    def sizes(self, config: TrialConfig) -> dict[str, float]:
        """Of what is limited: `parameters`, and `memory_gib` to train it, by the estimate that `--dry-run` prints."""
        found: dict[str, float] = {}
        if self._data is None:
            return found
        shape = shape_of(self._data, config)
        if self._limits.max_parameters is not None:
            found["parameters"] = count_parameters(config.model, shape)
        if self._limits.max_memory_gib is not None:
            found["memory_gib"] = estimate_trial(config, self._data).total_mib / 1024
        return found

    def excess(self, figures: Mapping[str, Any]) -> dict[str, float]:
        """By how much each figure that is limited passes its limit, as a share of it; at most 0 where it does not."""
        return {
            name: float(figures[name]) / limit - 1
            for name, limit in self._limits.by_figure().items()
            if figures.get(name) is not None
        }

    def too_large(self, sizes: Mapping[str, float]) -> str | None:
        """Why a model of these sizes is not begun; None where it may be."""
        over = [name for name, excess in self.excess(sizes).items() if excess > 0]
        if not over:
            return None
        told = {"parameters": "{:,.0f} parameters", "memory_gib": "an estimated {:.3g} GiB to train"}
        limits = self._limits.by_figure()
        return TOO_LARGE + "; ".join(
            f"{told[name].format(sizes[name])}, search.constraints.max_{name} is {limits[name]:,.10g}" for name in over
        )


def times_forecasts(search: SearchConfig) -> bool:
    """Whether trials have to measure `latency_ms`."""
    return "latency_ms" in search.costs or search.constraints.max_latency_ms is not None


def too_slow(spec: SearchSpec, latency_ms: float) -> str | None:
    """Why a trial whose forecast takes so long ends; None where it goes on."""
    limit = spec.search.constraints.max_latency_ms
    if limit is None or latency_ms <= limit:
        return None
    return f"{TOO_SLOW}a forecast takes {latency_ms:.3g} ms, search.constraints.max_latency_ms is {limit:g}"


def costs_of(row: Mapping[str, Any], costs: tuple[Cost, ...]) -> list[float]:
    """What a trial costs, in the order of `search.costs`, from a row of its results."""
    return [float(row[name]) for name in costs]
