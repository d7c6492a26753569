"""How many trials share a GPU, and how many configurations a trial, by an estimate of the largest one's memory.

Ray's fractions of a GPU place trials, they do not limit their memory: a trial that takes more than was estimated runs
out of it, or lets another, and goes on in smaller pieces (training/micro.py).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from xlstm_tune.data.windows import Prepared
from xlstm_tune.models.forecaster import count_parameters
from xlstm_tune.search.placement.resources import memory_mib
from xlstm_tune.search.sampling.extremes import furthest
from xlstm_tune.search.sampling.population import trial_members
from xlstm_tune.search.sampling.space import Space
from xlstm_tune.spec import ResourceConfig, SearchSpec
from xlstm_tune.training.config import TrialConfig
from xlstm_tune.training.loop import shape_of
from xlstm_tune.training.members import width_for
from xlstm_tune.training.memory import estimate_trial, process_mib, rough_size

MOST = 8
"""Trials on one GPU. Not measured yet: more of them seldom compute at the same time."""


@dataclass(frozen=True)
class Packing:
    """How many trials share a GPU."""

    per_gpu: int
    why: str
    """For people, a sentence."""
    width: int = 1
    """Configurations that a trial may train together."""

    @property
    def share(self) -> float:
        """GPUs of a trial: 1 / `per_gpu`, rounded down to the four decimals that Ray counts in."""
        return math.floor(10_000 / self.per_gpu) / 10_000


@dataclass(frozen=True)
class Largest:
    """The trial of a space that takes the most memory, in MiB of a GPU, its process and the data included."""

    title: str
    mib: float
    each_mib: float = 0.0
    """What a further configuration of the same shape adds to a trial."""


def pack(
    largest: Largest,
    gpu_mib: float,
    config: ResourceConfig,
    available: Mapping[str, float],
    width: int = 1,
    trials: int | None = None,
) -> Packing:
    """As many trials on a GPU as its memory holds of the largest, as CPUs and `max_concurrent` allow, at most `MOST`.

    gpu_mib: memory of the smallest GPU. available: the `CPU` and `GPU` counts, of which there is at least one GPU.
    width: configurations that are to train together in each trial; fewer where a whole GPU does not hold as many.
    trials: configurations that there are in all; None = any number. Ray fills one GPU before it takes the next: more on
    one than their share would leave others idle.
    """
    if width > 1:
        width = _narrowed(width, largest.each_mib, gpu_mib - largest.mib + largest.each_mib)
    if width > 1:
        title = f"{width} of {largest.title} together"
        largest = Largest(title, largest.mib + (width - 1) * largest.each_mib, largest.each_mib)
    slots = math.floor(available.get("CPU", 0.0) / config.cpus_per_trial + 1e-9)
    each = max(1, math.floor(available["GPU"]))
    limits = [
        (math.floor(gpu_mib / largest.mib), "its memory"),
        (MOST, "the most that is tried"),
        # The GPUs that there are share the CPUs.
        (slots // each, "the CPUs"),
        (-(-(config.max_concurrent or MOST * each) // each), "resources.max_concurrent"),
    ]
    if trials is not None:
        limits.append((-(-math.ceil(trials / width) // each), "the number of trials"))
    per_gpu, limit = min(limits, key=lambda one: one[0])
    per_gpu = max(1, per_gpu)
    shared = f"{per_gpu} trials share a GPU" if per_gpu > 1 else "each trial has a GPU to itself"
    return Packing(
        per_gpu,
        f"{shared}: the largest ({largest.title}) takes an estimated {largest.mib:,.0f} of {gpu_mib:,.0f} MiB, "
        f"and {limit} set{'' if limit.startswith('the CPUs') else 's'} the limit",
        width,
    )


def largest_trial(spec: SearchSpec, space: Space, data: Prepared) -> Largest:
    """The trial that takes the most memory. Those that look largest are worked out on the CPU, which takes seconds."""
    looked_at = largest_configs(spec, space, data)
    return max((_estimated(spec, config, data) for config in looked_at), key=lambda one: one.mib)


def largest_configs(spec: SearchSpec, space: Space, data: Prepared) -> list[TrialConfig]:
    """Of each family that may be trained the configuration that looks as if it took the most memory, the one that
    takes most first; at least one of all."""
    limit = spec.search.constraints.max_parameters

    def size(config: TrialConfig) -> float:
        too_large = limit is not None and count_parameters(config.model, shape_of(data, config)) > limit
        return 0.0 if too_large else rough_size(config, data)

    found = sorted((spec.combine(point) for point in furthest(spec, space, size)), key=size, reverse=True)
    return [config for config in found if size(config)] or found[:1]


def _estimated(spec: SearchSpec, config: TrialConfig, data: Prepared) -> Largest:
    """A trial's process, with all members of its population."""
    members = max(1, len(trial_members(spec, config)))
    estimate = estimate_trial(config, data)
    mib = process_mib(estimate, data, members)
    return Largest(config.title(), mib, process_mib(estimate, data, members + 1) - mib)


def room_on_cpu(spec: SearchSpec, space: Space, data: Prepared, width: int, slots: int) -> int:
    """Configurations that a trial may train together so that `slots` of them take half of the memory at most.

    By a rule of thumb, not to keep a search waiting for a measurement: twice the numbers that `rough_size` counts, of
    the configurations that gain by it.
    """
    if width == 1:
        return 1

    def size(config: TrialConfig) -> float:
        return rough_size(config, data) if width_for(config, data.lookback, gpu=False) > 1 else 0.0

    largest = max(size(spec.combine(point)) for point in furthest(spec, space, size))
    return _narrowed(width, largest * 2 * 4 / 2**20, memory_mib() / 2 / slots) if largest else 1


def _narrowed(width: int, each_mib: float, room_mib: float) -> int:
    """As many configurations as `room_mib` holds at `each_mib`, at least 1 and at most `width`."""
    return max(1, min(width, math.floor(room_mib / each_mib)))


def local_gpu_mib() -> float:
    """Memory of the smallest GPU that torch can reach, in MiB; 0 where it reaches none."""
    import torch

    devices = range(torch.cuda.device_count())
    return min((torch.cuda.get_device_properties(device).total_memory for device in devices), default=0) / 2**20


def cluster_gpu_mib(seconds: float = 60.0) -> list[float]:
    """Memory of a GPU of each node of the Ray cluster that this process is connected to, as `local_gpu_mib` has it.

    The driver cannot see a cluster's GPUs: a task on each node that has any tells. Nodes whose GPUs are taken by
    others, that are still starting or get lost are left out.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, num_gpus=1, max_retries=0)(local_gpu_mib)
    asked = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU", 0.0) >= 1
    ]
    if not asked:
        return []
    ready, late = ray.wait(asked, num_returns=len(asked), timeout=seconds)
    told = []
    for answer in ready:
        with contextlib.suppress(ray.exceptions.RayError):
            told.append(float(ray.get(answer)))
    for answer in late:  # and no other: Ray ends the process where a task is cancelled at the moment at which it ends
        ray.cancel(answer)
    return told
